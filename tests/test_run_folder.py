"""A run is what its folder says, wherever the folder lies; and one process at a time writes into it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_genesis.cli import main
from lightning_genesis.commands.options import place_given
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.runs.lock import LOCK, writing
from lightning_genesis.runs.loggers import make_wandb_logger
from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.test_cli import TINY

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def process(folder: Path, *args: str) -> subprocess.Popen[str]:
    """The command, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_genesis.cli", *args],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def command(folder: Path, *args: str) -> str:
    """What a command that ends well says."""
    running = process(folder, *args)
    _, said = running.communicate()
    assert running.returncode == 0, said[-3000:]
    return said


def last(run: Path) -> dict[str, Any]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was renamed, a new one of its old name with another seed, and a copy of the new one."""
    folder = tmp_path_factory.mktemp("run")
    tiny = {**TINY, "run": {"wandb": True}, "trainer": {**TINY["trainer"], "enable_progress_bar": False}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    runs = folder / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", "tiny.yaml", "--run.name", "exp"]) == 0
        (runs / "exp").rename(runs / "exp-old")
        new = ["--run.name", "exp", "--seed_everything", "1", "--trainer.max_steps", "6"]
        assert main(["fit", "--config", "tiny.yaml", *new]) == 0
    shutil.copytree(runs / "exp", runs / "exp-copy")
    return folder


def test_a_renamed_run_is_evaluated_with_its_own_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Its checkpoint, the place of its result, its name and its seed."""
    monkeypatch.chdir(folder)
    runs = folder / "runs"
    assert main(["test", "--config", "runs/exp-old/config.yaml", "--ckpt_path", "best"]) == 0
    assert not [warning for warning in recwarn if "untrained" in str(warning.message)]
    (file,) = (runs / "exp-old/metrics").glob("*.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert (result["run"], result["seed"], result["experiment"]) == ("exp-old", 0, "exp-old")
    assert result["checkpoint"]["path"] == "checkpoints/best.ckpt"
    assert not (runs / "exp/metrics").exists()
    assert (runs / "exp-old/test.csv").is_file()


def test_a_renamed_run_goes_on_from_its_own_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    runs = folder / "runs"
    untouched = (runs / "exp/checkpoints/last.ckpt").read_bytes()
    identity = (runs / "exp-old/wandb-id.txt").read_text(encoding="utf-8").splitlines()[0]
    go_on = ["--ckpt_path", "last", "--trainer.max_steps", "10"]
    assert main(["fit", "--config", "runs/exp-old/config.yaml", *go_on]) == 0
    assert last(runs / "exp-old")["global_step"] == 10
    assert (runs / "exp/checkpoints/last.ckpt").read_bytes() == untouched
    # it was moved: its W&B run is the same, and its configuration tells the new name
    assert (runs / "exp-old/wandb-id.txt").read_text(encoding="utf-8").splitlines() == [
        identity,
        str(runs / "exp-old"),
    ]
    assert (
        yaml.safe_load((runs / "exp-old/config.yaml").read_text(encoding="utf-8"))["run"]["name"] == "exp-old"
    )


def test_a_copied_run_is_a_run_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = folder / "runs"
    identity = (runs / "exp/wandb-id.txt").read_text(encoding="utf-8")
    go_on = ["--ckpt_path", "last", "--trainer.max_steps", "8"]
    monkeypatch.chdir(runs / "exp-copy")
    assert main(["fit", "--config", "config.yaml", *go_on, "--data.root", "../../data"]) == 0
    assert f"is a copy of {runs / 'exp'}; it goes on as a run of its own" in caplog.text
    assert last(runs / "exp-copy")["global_step"] == 8
    assert last(runs / "exp")["global_step"] == 6
    assert (runs / "exp/wandb-id.txt").read_text(encoding="utf-8") == identity
    copied, owner = (runs / "exp-copy/wandb-id.txt").read_text(encoding="utf-8").splitlines()
    assert copied != identity.split()[0]
    assert owner == str(runs / "exp-copy")
    assert [*(runs / "exp-copy").glob(f"wandb/*/run-{copied}.wandb")]


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (["--config", "runs/here/config.yaml"], "runs/here"),
        (["--config", "runs/moved/config.yaml"], "runs/moved"),
        (["-c", "runs/moved/config.yaml", "--run.wandb", "false", "--run", "{wandb: false}"], "runs/moved"),
        (["--config=link/config.yaml"], "runs/here"),
        (["--config", "runs/moved/../moved/config.yaml"], "runs/moved/../moved"),
        (["--config", "runs/here/config.yaml", "--config", "runs/moved/config.yaml"], "runs/moved"),
        (["--config", "runs/moved/config.yaml", "--config=wandb.yaml"], "runs/moved"),
        # the user chose another folder, or the file is of no run
        (["--config", "runs/moved/config.yaml", "--run.name", "here"], None),
        (["--config", "runs/moved/config.yaml", "--run.root=elsewhere"], None),
        (["--config", "runs/moved/config.yaml", "--run", "{name: here}"], None),
        (["--config", "runs/moved/config.yaml", "--config", "named.yaml"], None),
        (["--config", "alone/config.yaml"], None),
        (["--config", "named.yaml"], None),
        (["--config", "wandb.yaml"], None),
        (["--config", "nowhere.yaml"], None),
        (["--config"], None),
    ],
)
def test_which_folder_a_configuration_means(
    options: Sequence[str], place: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = yaml.safe_dump({"run": {"name": "here", "root": "runs", "wandb": True}})
    for run, beside in (("runs/here", "checkpoints"), ("runs/moved", LOCK), ("alone", "notes")):
        Path(run, beside).mkdir(parents=True)
        Path(run, "config.yaml").write_text(named)
    Path("link").symlink_to("runs/here")
    Path("named.yaml").write_text(named)
    Path("wandb.yaml").write_text("run: {wandb: false}")
    found = place_given(["fit", *options])
    assert found == (None if place is None else Path(place))


def test_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs/moved/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/moved/config.yaml").write_text("run: {name: here, root: runs}")
    monkeypatch.chdir(tmp_path / "runs/moved")
    assert place_given(["fit", "--config", "config.yaml"]) == tmp_path / "runs/moved"


def test_identity_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was written before folders were noted, one that was moved, a copy, a copy without original."""
    monkeypatch.setenv("WANDB_MODE", "offline")

    def identity(name: str) -> str:
        logger = make_wandb_logger(tmp_path / name, name)
        found, owner = (tmp_path / name / "wandb-id.txt").read_text(encoding="utf-8").splitlines()
        assert (logger._id, owner) == (found, str(tmp_path / name))
        return found

    (tmp_path / "one").mkdir()
    (tmp_path / "one/wandb-id.txt").write_text("abcd1234")
    assert identity("one") == "abcd1234"
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "one").rename(tmp_path / "three")
    assert identity("three") == "abcd1234"
    shutil.copytree(tmp_path / "three", tmp_path / "four")
    assert identity("four") != "abcd1234"
    assert identity("three") == "abcd1234"
    shutil.rmtree(tmp_path / "three")
    assert identity("two") == "abcd1234"


# ---------------------------------------------------------------- two at once


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_dies(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    """Killed with SIGKILL, the first leaves nothing that holds the second up."""
    run = folder / "runs" / "twice"
    fit = ["fit", "--config", "tiny.yaml", "--run.name", "twice", "--ckpt_path", "last"]
    workers = ["--data.num_workers", "1", "--run.wandb", "false"]
    first = process(folder, *fit, *workers, "--trainer.max_steps", "100000")
    request.addfinalizer(first.kill)
    while first.poll() is None and not (run / "checkpoints/last.ckpt").is_file():
        time.sleep(0.05)
    second = process(folder, *fit, *workers)
    _, said = second.communicate()
    assert second.returncode == 2
    (line,) = (line for line in said.splitlines() if line.startswith("lightning-genesis"))
    assert f"runs/twice: process {first.pid} on" in line
    assert "is training this run; wait for it, or give this one another name with --run.name" in line
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = last(run)["global_step"]
    command(folder, *fit, *workers, "--trainer.max_steps", str(before + 1))
    assert last(run)["global_step"] == before + 1


def test_lock_leaves_no_folder_behind(tmp_path: Path) -> None:
    with writing(tmp_path / "runs/a"):
        assert (
            (tmp_path / "runs/a" / LOCK).read_text(encoding="utf-8").startswith(f"process {os.getpid()} on ")
        )
    assert not (tmp_path / "runs/a").exists()
    with writing(tmp_path / "runs/a"):
        (tmp_path / "runs/a/metrics.csv").write_text("step\n")
    assert (tmp_path / "runs/a/metrics.csv").is_file()
    code = (  # what `writing` does, without its imports
        f"import fcntl, os; held = open({str(tmp_path / 'runs/a' / LOCK)!r}, 'a+'); "
        "fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB); held.truncate(0); "
        "print(f'process {os.getpid()} on', file=held, flush=True); print('held', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigurationError, match=f"process {other.pid} on"), writing(tmp_path / "runs/a"):
            pass
        other.stdin.close()
    with writing(tmp_path / "runs/a"):
        pass
