"""A run that is stopped at any point, in any way, continues as if it had not been."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.kills import GENESIS_V2, Report, Torture, experiment, fingerprint
from lightning_genesis.cli import main
from lightning_genesis.models import SceneModel
from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.ranks.command import TIMEOUT

STEPS = 16


class Died(BaseException):
    """What nothing catches."""


def fit(name: str, *args: str) -> int:
    return main(["fit", "--config", "experiment.yaml", "--run.name", name, "--ckpt_path", "last", *args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment that validates every 7 and saves every 3 steps, and its undisturbed run."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment(GENESIS_V2, STEPS, workers=0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert fit("whole") == 0
    return folder


def assert_equal_runs(folder: Path, name: str, undisturbed: str = "whole") -> None:
    whole, found = (fingerprint(folder / "runs" / run) for run in (undisturbed, name))
    differing = {part for part in whole.keys() | found.keys() if whole.get(part) != found.get(part)}
    rows = zip(whole["log"], found["log"], strict=False)
    assert not differing, (differing, [pair for pair in rows if pair[0] != pair[1]][:2])


def test_the_fingerprint_sees_a_difference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert fit("other", "--seed_everything", "1") == 0
    whole, other = (fingerprint(folder / "runs" / run) for run in ("whole", "other"))
    assert whole["last.ckpt state_dict"] != other["last.ckpt state_dict"]
    assert whole["log"] != other["log"]
    assert len(whole["log"]) == STEPS + STEPS // 7


QUICK = {
    "on_after_backward": 7,
    "on_train_batch_end": 7,
    "validation_step": 7,
    "on_validation_epoch_end": 13,
    "on_save_checkpoint": 1,
}
"""Each hook once, before, at and after a validation; in `training_step` dies `test_dies_again_and_again`."""


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        pytest.param(hook, step, marks=[] if QUICK.get(hook) == step else [pytest.mark.slow])
        for hook in ("training_step", *QUICK)
        for step in ((7, 13) if "validation" in hook else (1, 7, 13))  # the first validation is after 7 steps
    ],
)
def test_dies_in_a_hook(folder: Path, monkeypatch: pytest.MonkeyPatch, hook: str, step: int) -> None:
    """The worst moments are those between a step, its log, its validation and its checkpoint."""
    monkeypatch.chdir(folder)
    name, died = f"{hook}-{step}", []
    original: Callable[..., Any] = getattr(SceneModel, hook)

    def dies(model: SceneModel, *args: Any) -> Any:
        if model.global_step >= step and not died:
            died.append(model.global_step)
            raise Died
        return original(model, *args)

    monkeypatch.setattr(SceneModel, hook, dies)
    with pytest.raises(Died):
        fit(name)
    assert died
    assert fit(name) == 0
    assert_equal_runs(folder, name)


def test_dies_again_and_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    original, progress = SceneModel.training_step, []

    def dies(model: SceneModel, *args: Any) -> Any:
        if model.global_step == (progress[-1] if progress else 0) + 4:
            progress.append(model.global_step)
            raise Died
        return original(model, *args)

    monkeypatch.setattr(SceneModel, "training_step", dies)
    for _ in range(3):
        with pytest.raises(Died):
            fit("again")
    assert fit("again") == 0
    assert progress == [4, 8, 12]
    assert_equal_runs(folder, "again")


def test_any_checkpoint_continues(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the best one, which Lightning saves before the validation that chose it is over."""
    monkeypatch.chdir(folder)
    best = folder / "runs/whole/checkpoints/best.ckpt"
    assert (
        main(["fit", "--config", "experiment.yaml", "--run.name", "from-best", "--ckpt_path", str(best)]) == 0
    )
    whole, found = (fingerprint(folder / "runs" / run) for run in ("whole", "from-best"))
    for part in ("state_dict", "optimizer_states", "random_states"):
        assert whole[f"last.ckpt {part}"] == found[f"last.ckpt {part}"]
    first = read_checkpoint(best)["global_step"]
    assert found["log"] == [row for row in whole["log"] if int(row["step"]) >= first]


def test_gradient_accumulation_continues(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    accumulate = ("--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "9")
    assert fit("accumulated", *accumulate) == 0
    original, died = SceneModel.training_step, []

    def dies(model: SceneModel, batch: Any, batch_idx: int) -> Any:
        if model.global_step == 5 and batch_idx % 2 and not died:  # half the gradient is there
            died.append(batch_idx)
            raise Died
        return original(model, batch, batch_idx)

    monkeypatch.setattr(SceneModel, "training_step", dies)
    with pytest.raises(Died):
        fit("half", *accumulate)
    assert fit("half", *accumulate) == 0
    assert_equal_runs(folder, "half", "accumulated")


@pytest.mark.slow  # `tests/test_interruptions.py` stops a run with SIGTERM
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_saves_and_leaves_with_75(folder: Path, number: signal.Signals) -> None:
    name = f"signal-{number.name}"
    command = [sys.executable, "-m", "lightning_genesis.cli", "fit", "--config", "experiment.yaml"]
    command += ["--run.name", name, "--ckpt_path", "last"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    long = ["--trainer.max_steps", "100000", "--checkpoint.last_every", "100000"]
    process = subprocess.Popen(
        [*command, *long, "--checkpoint.keep_every", "5"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    checkpoints = folder / "runs" / name / "checkpoints"
    while process.poll() is None and not (checkpoints / "step-5.ckpt").is_file():
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 75, errors[-3000:]
    line = next(line for line in errors.splitlines() if line.startswith("lightning-genesis:"))
    assert line.startswith(f"lightning-genesis: {number.name}: stopped after step")
    saved = read_checkpoint(checkpoints / "last.ckpt")["global_step"]
    assert f"step {saved}," in line
    assert saved >= 5


def test_signal_before_training_leaves_with_75(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        "data_modules.MultiDSprites.prepare", lambda self: os.kill(os.getpid(), signal.SIGUSR1)
    )
    before = signal.getsignal(signal.SIGUSR1)
    assert fit("early") == 75
    assert signal.getsignal(signal.SIGUSR1) == before
    assert not (folder / "runs/early/checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 0)])
def test_killed_processes(tmp_path: Path, ranks: int, workers: int) -> None:
    """`benchmarks/kills.py` with few kills; docs/trust.md has the figures of many."""
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
    report = Torture(tmp_path, ranks, workers, steps=60, signals=signals, seed=7).torture(4, Report())
    assert report.failures == []
    assert report.differences == []
    assert report.kills >= 4
