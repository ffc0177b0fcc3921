"""The code and the commands of a documentation page, written out and run in a folder of their own."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from lightning_genesis.cli import main

ROOT = Path(__file__).parents[1]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Kind and text of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def write_files(page: Path, folder: Path) -> list[Path]:
    """Writes the blocks whose first line names a file, as in `# mylab/model.py`."""
    written = []
    for _, text in blocks(page):
        if named := re.match(r"# ([\w/]+\.(?:py|yaml))\n", text):
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def commands(page: Path) -> list[list[str]]:
    """The lines of its `console` blocks, as words after the program's name."""
    lines = [line for kind, text in blocks(page) if kind == "console" for line in text.splitlines()]
    words = [shlex.split(line) for line in lines if line.strip()]
    assert all(line[0] == "lightning-genesis" for line in words)
    return [line[1:] for line in words]


def run_here(words: list[str]) -> None:
    """In this process."""
    if words[0] in ("fit", "test", "validate", "predict"):
        words = [*words, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(words) == 0, words


def run_process(words: list[str], folder: Path) -> str:
    """As a user does, in a process of its own; the project is importable, `folder` is not on the path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = (
        "import sys; from lightning_genesis.cli import main; sys.path = [p for p in sys.path if p]; "
        "sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr
