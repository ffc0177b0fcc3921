"""Nothing is saved or gone back to before weights, moments and objective were seen to be finite."""

import csv
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml

from lightning_genesis.callbacks.rollback import RollbackOptions
from lightning_genesis.callbacks.weight_average import WeightAverage
from lightning_genesis.cli import main
from lightning_genesis.errors import CheckpointError
from lightning_genesis.runs.run import read_last_good
from lightning_genesis.storage.checkpoint import read_checkpoint, write_checkpoint
from lightning_genesis.storage.finite import not_finite
from tests.callbacks.faulty import Faulty
from tests.callbacks.test_rollback import BAD_STEP, LAST_STEP, Run, differing
from tests.quick import few
from tests.ranks.command import PROBE, run, start
from tests.test_cli import TINY, error_line

NAN, INF = math.nan, math.inf
WEIGHT = "network.posterior_head.1.weight"


class Poison(pl.Callback):
    """Puts a number where it should not be, once, after a step whose gradient and loss were finite.

    As an option of the Trainer: `--trainer.callbacks tests.callbacks.test_finite_state.Poison`.
    """

    def __init__(
        self, place: str = "exp_avg_sq", value: float = NAN, steps: int = BAD_STEP + 1, rank: int = 0
    ) -> None:
        self.place, self.value, self.steps, self.rank = place, value, steps, rank

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step != self.steps or trainer.global_rank != self.rank:
            return
        if self.place in ("exp_avg", "exp_avg_sq"):
            parameter = dict(pl_module.named_parameters())[WEIGHT]
            target = trainer.optimizers[0].state[parameter][self.place]
        else:
            target = pl_module.state_dict()[self.place]
        target.view(-1)[-1] = self.value


def assert_finite_checkpoints(folder: Path) -> None:
    paths = [*folder.glob("**/*.ckpt")]
    assert paths
    for path in paths:
        contents = torch.load(path, weights_only=True)
        moments = [x for entry in contents["optimizer_states"][0]["state"].values() for x in entry.values()]
        for tensor in [*contents["state_dict"].values(), *moments]:
            assert bool(tensor.isfinite().all()), path


@pytest.mark.parametrize(
    ("place", "value", "named"),
    few(
        [
            (WEIGHT, NAN, WEIGHT),
            (WEIGHT, INF, WEIGHT),
            ("exp_avg_sq", NAN, f"the optimiser's exp_avg_sq of {WEIGHT}"),
            ("exp_avg", -INF, f"the optimiser's exp_avg of {WEIGHT}"),
            ("objective.average", INF, "objective.average"),
        ],
        *((WEIGHT, INF, WEIGHT), "exp_avg"),
    ),
)
@pytest.mark.parametrize("back", [False, True])
def test_what_a_step_left_is_seen_before_it_is_saved(
    place: str, value: float, named: str, back: bool, tmp_path: Path
) -> None:
    """Saved would be the state after six steps: the run stops there, or goes on from that after four."""
    options = RollbackOptions(max_rollbacks=int(back))
    run = Run(tmp_path, Faulty(), options, callbacks=[Poison(place, value)])
    assert_finite_checkpoints(tmp_path)
    if not back:
        cause, _, checkpoint = run.message.partition("; it was not saved and the run stops. ")
        assert cause == f"step {BAD_STEP}: what came of it is not finite: {named}"
        assert checkpoint == f"Last good checkpoint: {tmp_path / 'checkpoints/last.ckpt'}"
        assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == 4
        assert not (tmp_path / "checkpoints/step-6.ckpt").exists()
        return
    assert run.message == ""
    assert run.trainer.global_step == LAST_STEP
    (row,) = run.rows
    assert (row["step"], row["checkpoint_step"]) == (str(BAD_STEP), "4")
    assert row["cause"] == f"not finite: {named}"
    assert differing(run.state(), run.by_hand(tmp_path / "checkpoints/step-4.ckpt", BAD_STEP + 1)) == set()


def test_after_the_last_step(tmp_path: Path) -> None:
    poison = Poison(steps=LAST_STEP)
    run = Run(tmp_path / "stops", Faulty(), RollbackOptions(), callbacks=[poison])
    assert run.message.startswith(f"step {LAST_STEP - 1}: what came of it is not finite")
    again = Run(tmp_path / "goes-back", Faulty(), RollbackOptions(max_rollbacks=1), callbacks=[poison])
    assert again.message == ""
    assert_finite_checkpoints(tmp_path)
    last, restored = (
        read_checkpoint(tmp_path / "goes-back/checkpoints" / f"{name}.ckpt") for name in ("last", "step-8")
    )
    assert last["global_step"] == LAST_STEP
    assert differing(last["state_dict"], restored["state_dict"]) == set()


def test_a_mask_of_infinities_may_be_saved(tmp_path: Path) -> None:
    """In a buffer of the network; but no NaN."""
    model = Faulty()
    model.network.register_buffer("mask", torch.tensor([0.0, -INF]))
    assert Run(tmp_path / "mask", model, RollbackOptions(), max_steps=2).message == ""
    path = tmp_path / "mask/checkpoints/last.ckpt"
    assert not_finite(read_checkpoint(path)) == ""
    poison = Poison("network.mask", NAN, steps=2)
    run = Run(tmp_path / "nan", model, RollbackOptions(), max_steps=2, callbacks=[poison])
    assert "what came of it is not finite: network.mask;" in run.message


@pytest.mark.parametrize("place", few([WEIGHT, "exp_avg"], "exp_avg"))
def test_averaged_weights_go_back_too(place: str, tmp_path: Path) -> None:
    """An average that has seen a NaN would keep it."""
    average = WeightAverage(decay=0.5)
    callbacks = [Poison(place), average]
    run = Run(tmp_path, Faulty(), RollbackOptions(max_rollbacks=1), callbacks=callbacks)
    assert run.message == ""
    assert len(run.rows) == 1
    for path in tmp_path.glob("checkpoints/*.ckpt"):
        contents = read_checkpoint(path)
        for state in (contents["state_dict"], contents["current_model_state"]):
            assert all(bool(value.isfinite().all()) for value in state.values()), path
        assert not_finite(contents) == ""
    last = read_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert not torch.equal(last["state_dict"][WEIGHT], last["current_model_state"][WEIGHT])


def test_names_in_a_message() -> None:
    state = {f"w{number}": torch.tensor([NAN]) for number in range(5)}
    state |= {"empty": torch.zeros(0), "step": torch.tensor(3), "large": torch.full((2**10,), 3e38)}
    assert not_finite({"state_dict": state}) == "w0, w1, w2 and 2 more"
    moments = [
        {"state": {1: {"step": torch.tensor(1.0), "exp_avg": torch.tensor([INF], dtype=torch.float64)}}}
    ]
    assert not_finite({"state_dict": {}, "optimizer_states": moments}, (), ("a", "b")) == (
        "the optimiser's exp_avg of b"
    )
    assert not_finite({"state_dict": {"large": state["large"]}, "optimizer_states": []}, ()) == ""
    averaged = {"state_dict": {"w": torch.ones(1)}, "current_model_state": {"w": torch.tensor([NAN])}}
    assert not_finite(averaged) == "the trained w"
    assert not_finite({"state_dict": {"objective.beta": torch.tensor([INF])}}) == "objective.beta"


# ---------------------------------------------------------------- as a user meets it


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "pictures": {"num_images": 0}}))
    return tmp_path


@pytest.mark.slow
def test_a_step_that_runs_away_and_a_moment_before_a_validation(folder: Path) -> None:
    """In real processes: the two cases of the issue. After step 4 comes a validation."""
    fit = ["fit", "--config", "tiny.yaml", "--checkpoint.last_every", "1", "--checkpoint.keep_every", "1"]
    away = ["--model.optimizer", "SGD", "--model.learning_rate", "1e38", "--run.name", "away"]
    poison = [{"class_path": "tests.callbacks.test_finite_state.Poison", "init_args": {"steps": 4}}]
    moment = ["--trainer.callbacks", str(poison), "--run.name", "moment"]
    back = [*moment[:-1], "back", "--rollback.max_rollbacks", "1"]
    root = Path(__file__).parents[2]
    said = {}
    for options, code in ((away, 2), (moment, 2), (back, 0)):
        done = subprocess.run(
            [sys.executable, "-m", "lightning_genesis.cli", *fit, *options],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        )
        assert done.returncode == code, done.stderr[-3000:]
        lines = done.stderr.splitlines()
        said[code, len(said)] = [line for line in lines if line.startswith("lightning-genesis")]
    assert_finite_checkpoints(folder / "runs")
    (line,) = said[2, 0]
    assert "not finite" in line
    (line,) = said[2, 1]
    assert line.startswith("lightning-genesis: error: step 3: what came of it is not finite: the optimiser's")
    assert line.endswith("Last good checkpoint: runs/moment/checkpoints/last.ckpt")
    assert not (folder / "runs/moment/checkpoints/best.ckpt").exists()
    best = read_checkpoint(folder / "runs/back/checkpoints/best.ckpt")
    assert best["global_step"] == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "rank"), [(WEIGHT, 1), (WEIGHT, 0), ("exp_avg_sq", 0), ("objective.average", 1)]
)
def test_what_one_rank_of_two_sees_both_heed(place: str, rank: int, tmp_path: Path) -> None:
    """After step 4 come a validation and a save; the run stops there on both, or both go back to step 3."""
    options = {"place": place, "steps": 4, "rank": rank}
    poison = {"class_path": "tests.callbacks.test_finite_state.Poison", "init_args": options}
    config = {**TINY, "pictures": {"num_images": 0}, "checkpoint": {"last_every": 1, "keep_every": 1}}
    config["trainer"] = {
        **TINY["trainer"],
        "enable_progress_bar": False,
        "callbacks": [poison, {"class_path": PROBE, "init_args": {"indexed_noise": False}}],
    }
    done = start(tmp_path, "fit", "stops", config, ranks=2)
    assert done.returncode == 2, done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if line.startswith("lightning-genesis: error:")]
    assert said
    assert all("step 3: what came of it is not finite" in line for line in said)
    assert not (tmp_path / "runs/stops/checkpoints/best.ckpt").exists()
    assert read_checkpoint(tmp_path / "runs/stops/checkpoints/last.ckpt")["global_step"] == 3
    several = run(tmp_path, "fit", "back", config, "--rollback.max_rollbacks", "1", ranks=2)
    assert [record["global_step"] for record in several] == [8, 8]
    for key, value in several[0]["final"].items():
        assert bool(value.isfinite().all()), key
        assert torch.equal(value, several[1]["final"][key]), key
    (row,) = csv.DictReader((tmp_path / "runs/back/rollbacks.csv").read_text().splitlines())
    assert (row["step"], row["checkpoint_step"]) == ("3", "3")
    assert_finite_checkpoints(tmp_path / "runs")


def test_a_file_that_is_not_finite_is_not_resumed(
    folder: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    assert main(["fit", "--config", "tiny.yaml", "--run.name", "run", "--trainer.max_steps", "4"]) == 0
    checkpoints = folder / "runs/run/checkpoints"
    contents = read_checkpoint(checkpoints / "last.ckpt")
    next(iter(contents["optimizer_states"][0]["state"].values()))["exp_avg_sq"].fill_(NAN)
    write_checkpoint(checkpoints / "last.ckpt", contents)
    capsys.readouterr()
    explicit = ["--ckpt_path", str(checkpoints / "last.ckpt")]
    assert main(["fit", "--config", "tiny.yaml", "--run.name", "other", *explicit]) == 2
    assert "last.ckpt: not finite: the optimiser's exp_avg_sq of parameter 0" in error_line(capsys)
    assert not (folder / "runs/other").exists()
    path, good = read_last_good(folder / "runs/run")
    assert (path.name, good["global_step"]) == ("previous.ckpt", 2)
    assert any("last.ckpt: not finite" in str(warning.message) for warning in recwarn)
    for name in ("previous.ckpt", "best.ckpt", "step-4.ckpt"):
        write_checkpoint(checkpoints / name, contents)
    with pytest.raises(CheckpointError, match=r"no readable checkpoint: .*not finite"):
        read_last_good(folder / "runs/run")
