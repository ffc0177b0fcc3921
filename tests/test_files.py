"""Files that are there as a whole or not at all."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_genesis.storage.files import LEFTOVER_AGE, link, replacing


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def test_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for text in ("first", "second"):
        write(path, text)
        assert path.read_text() == text
    assert [*tmp_path.iterdir()] == [path]


def test_temporary_is_in_the_same_folder(tmp_path: Path) -> None:
    """Otherwise the last step would be no rename, but a copy."""
    with replacing(tmp_path / "file.txt") as temporary:
        assert temporary.parent == tmp_path
        assert not temporary.exists()
        temporary.touch()


def test_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def spy(name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*args: Any) -> Any:
            steps.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, call)

    spy("fsync")
    spy("replace")
    write(tmp_path / "file.txt", "text")
    assert steps == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace", "block"])
def test_failure_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "file.txt"
    write(path, "old")

    def fail(*_: object) -> None:
        raise error

    if step != "block":
        monkeypatch.setattr(os, step, fail)

    def replace() -> None:
        with replacing(path) as temporary:
            temporary.write_text("new")
            if step == "block":
                fail()

    with pytest.raises(type(error)):
        replace()
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_block_that_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write(path, "old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".a.txt.1.tmp", ".a.txt.2.tmp", ".b.txt.3.tmp"))
    for file in (old, young, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (time.time() - LEFTOVER_AGE - 60,) * 2)
    write(tmp_path / "a.txt", "text")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".a.txt.2.tmp", ".b.txt.3.tmp", "a.txt"]


def test_link(tmp_path: Path) -> None:
    last, previous = tmp_path / "last", tmp_path / "previous"
    write(last, "1")
    link(last, previous)
    link(last, previous)  # both are one file already
    write(last, "2")
    assert previous.read_text() == "1"
    link(last, previous)
    assert previous.read_text() == "2"
    assert sorted(tmp_path.iterdir()) == [last, previous]


def test_import_is_light() -> None:
    code = (
        "import sys, lightning_genesis.storage.files\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
