"""What ends a run from outside ends it with one line and a checkpoint: real processes."""

import fcntl
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml

from lightning_genesis.cli import main
from lightning_genesis.models import SceneModel
from lightning_genesis.runs.run import read_last_good
from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.test_cli import TINY, error_line, rows

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ENDLESS = ["--trainer.max_steps", "1000000", "--checkpoint.last_every", "1000000"]
STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an experiment; what was started in it is over after the test."""
    monkeypatch.chdir(tmp_path)
    trainer = {**TINY["trainer"], "enable_progress_bar": False, "val_check_interval": 1000000}
    config = {**TINY, "trainer": trainer, "pictures": {"num_images": 0}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    yield tmp_path
    for process in STARTED:
        process.kill()
    STARTED.clear()


def start(folder: Path, *args: str, **options: Any) -> subprocess.Popen[str]:
    """A run that goes on until something ends it; what it says goes to a file."""
    command = [sys.executable, "-m", "lightning_genesis.cli", "fit", "--config", "tiny.yaml"]
    command += ["--run.name", "run", "--checkpoint.keep_every", "5", *ENDLESS, *args]
    said = open(folder / "said.txt", "w")  # noqa: SIM115
    streams = {"stdout": said, "stderr": said} | options
    STARTED.append(subprocess.Popen(command, cwd=folder, text=True, env=ENVIRONMENT, **streams))
    return STARTED[-1]


def wait_for(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    path = folder / f"runs/run/checkpoints/step-{step}.ckpt"
    while process.poll() is None and not path.is_file():
        time.sleep(0.05)
    assert process.poll() is None, (folder / "said.txt").read_text()[-3000:]


def line_of(folder: Path) -> str:
    """The one line of the command itself."""
    said = (folder / "said.txt").read_text()
    assert "Traceback" not in said, said[-3000:]
    (line,) = (line for line in said.splitlines() if line.startswith("lightning-genesis"))
    return line


def children(process: int, name: str) -> list[int]:
    """Processes below one whose command line holds a name."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            if name in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
            found += children(child, name)
    return found


def saved(folder: Path) -> int:
    return int(read_checkpoint(folder / "runs/run/checkpoints/last.ckpt")["global_step"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_it_starts(number: signal.Signals) -> None:
    """Among the first imports, which would otherwise see it as an error of theirs."""
    code = (
        "import time, lightning_genesis.cli as cli\n"
        "def import_module(name):\n"
        "    print('importing', flush=True)\n"
        "    try: time.sleep(1000)\n"
        "    except BaseException: time.sleep(1000)\n"
        "cli.import_module = import_module\n"
        "cli.main(['fit'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(
            number, signal.SIG_DFL
        ),  # `nohup pytest` hands on that it is ignored
    )
    assert process.stdout
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 75
    assert said == f"lightning-genesis: {number.name}: stopped before training, nothing was unsaved\n"


def test_a_terminal_that_is_closed(folder: Path) -> None:
    """The run is the terminal's own; it saves, though whatever it prints then fails."""
    terminal, end = pty.openpty()

    def take_the_terminal() -> None:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as above
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    streams = dict.fromkeys(("stdin", "stdout", "stderr"), end)
    process = start(folder, "--trainer.enable_progress_bar", "true", preexec_fn=take_the_terminal, **streams)
    os.close(end)
    os.set_blocking(terminal, False)
    while process.poll() is None and not (folder / "runs/run/checkpoints/step-5.ckpt").is_file():
        try:  # or the run waits for a reader
            os.read(terminal, 65536)
        except BlockingIOError:
            time.sleep(0.05)
    os.close(terminal)
    assert process.wait() == 75
    assert saved(folder) >= 5


def test_a_loader_that_is_killed(folder: Path) -> None:
    """As for want of memory."""
    process = start(folder, "--data.num_workers", "1")
    wait_for(process, folder, 5)
    workers = [child for child in children(process.pid, "lightning_genesis.cli") if child != process.pid]
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert process.wait() == 2
    line = line_of(folder)
    assert line.startswith("lightning-genesis: error: DataLoader worker")
    assert "Last good checkpoint: runs/run/checkpoints/" in line
    # torch raises the error wherever the run is: between two steps it is saved, within one it is not
    assert read_last_good(folder / "runs/run")[1]["global_step"] >= 5


@pytest.mark.slow  # `tests/test_wandb.py` has one that does not answer, within this process
def test_a_process_of_wandb_that_is_killed(folder: Path) -> None:
    """The run goes on; the CSV file has everything."""
    process = start(
        folder, "--run.wandb", "true", "--trainer.log_every_n_steps", "1", "--checkpoint.keep_every", "1"
    )
    wait_for(process, folder, 2)
    services = children(process.pid, "wandb-core")
    assert services
    for service in services:
        os.kill(service, signal.SIGKILL)
    said = folder / "said.txt"
    while process.poll() is None and "does not answer" not in said.read_text():
        time.sleep(0.05)
    checkpoints = folder / "runs/run/checkpoints"
    before = len([*checkpoints.iterdir()])
    while process.poll() is None and len([*checkpoints.iterdir()]) < before + 5:  # it goes on
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    step = saved(folder)
    assert line_of(folder).startswith(f"lightning-genesis: SIGTERM: stopped after step {step}")
    assert said.read_text().count("does not answer") == 1
    logged = rows(folder / "runs/run/metrics.csv")
    assert [int(row["step"]) for row in logged if row["train/loss"]] == list(range(step))


def test_a_signal_that_a_kept_checkpoint_meets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Saving it looks at what the step left, the request to stop too: `last.ckpt` is of that step as well."""
    original = SceneModel.training_step

    def is_told(model: SceneModel, *args: Any) -> Any:
        if model.global_step == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(model, *args)

    monkeypatch.setattr(SceneModel, "training_step", is_told)
    fit = ["fit", "--config", "tiny.yaml", "--run.name", "run", "--checkpoint.keep_every", "1"]
    assert main([*fit, "--checkpoint.last_every", "3"]) == 75
    assert saved(folder) == 5
    assert "stopped after step 5, saved in runs/run/checkpoints/last.ckpt" in error_line(capsys)


class Remove(pl.Callback):
    """Deletes the run's folder; puts a file in its place where asked to."""

    def __init__(self, and_block: bool) -> None:
        self.and_block = and_block

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        run = Path("runs/run")
        if trainer.global_step == 5 and run.is_dir():
            shutil.rmtree(run)
            if self.and_block:
                run.write_text("")


def test_a_folder_that_is_deleted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run makes it anew; where it cannot, one line says so."""
    remove = [{"class_path": f"{__name__}.Remove", "init_args": {"and_block": False}}]
    fit = ["fit", "--config", "tiny.yaml", "--run.name", "run", "--trainer.callbacks"]
    with pytest.warns(UserWarning, match=r"runs/run was deleted under the run; it is made anew"):
        assert main([*fit, str(remove)]) == 0
    assert saved(folder) == 8
    assert rows(folder / "runs/run/metrics.csv")
    shutil.rmtree(folder / "runs")
    remove[0]["init_args"] = {"and_block": True}
    capsys.readouterr()
    assert main([*fit, str(remove)]) == 2
    line = error_line(capsys)
    assert "runs/run/metrics.csv: cannot be written (" in line
    assert line.endswith("the run stops, its last checkpoint is what it was")
