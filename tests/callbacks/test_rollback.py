"""A run that goes back to an earlier checkpoint is the run that was restored from it by hand.

As a script, the same on two ranks: `test_rollback.py FOLDER`.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_genesis.callbacks.checkpoints import CheckpointOptions, RunCheckpoints
from lightning_genesis.callbacks.rollback import Rollback, RollbackOptions
from lightning_genesis.errors import ConfigurationError, NonFiniteError
from lightning_genesis.objectives import FixedBeta
from lightning_genesis.storage.checkpoint import DurableCheckpointIO, read_checkpoint
from tests.callbacks.faulty import Fault, Faulty, Images
from tests.quick import few

ROOT = Path(__file__).parents[2]
NAN, INF = float("nan"), float("inf")
BAD_STEP = 5
"""Counted from 0. What is kept of the steps before was saved after 2 and after 4 steps."""
LAST_STEP = 9


class Scheduled(Faulty):
    """A learning rate that halves with every step."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Record(pl.Callback):
    """What was trained on, with which noise, and whether a weight was ever not finite."""

    def __init__(self) -> None:
        self.batches: dict[int, Tensor] = {}
        self.generators: dict[int, Tensor] = {}
        self.indices: list[int] = []
        self.always_finite = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batches[trainer.global_step] = batch["image"]
        self.generators[trainer.global_step] = torch.get_rng_state()
        self.indices += batch["index"].tolist()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        weights = list(pl_module.parameters())
        moments = [x for entry in trainer.optimizers[0].state.values() for x in entry.values()]
        self.always_finite &= all(bool(x.isfinite().all()) for x in [*weights, *moments])


class Run:
    """A training with rollbacks, and what it left."""

    def __init__(
        self,
        folder: Path,
        model: Faulty,
        options: RollbackOptions,
        ckpt_path: Path | None = None,
        callbacks: Sequence[pl.Callback] = (),
        max_steps: int = LAST_STEP,
        **trainer: Any,
    ) -> None:
        self.folder, self.model, self.record = folder, model, Record()
        self.rollback, self.message = Rollback(folder, options), ""
        saving = RunCheckpoints(folder / "checkpoints", CheckpointOptions(last_every=2, keep_every=2))
        self.trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[DurableCheckpointIO(), *trainer.pop("plugins", [])],
            callbacks=[self.record, saving, self.rollback, *callbacks],
            **trainer,
        )
        try:
            self.trainer.fit(
                model,
                DataLoader(Images(size=100), batch_size=2),
                ckpt_path=str(ckpt_path) if ckpt_path else None,
                weights_only=True,
            )
        except NonFiniteError as error:
            self.message = str(error)

    @property
    def rows(self) -> list[dict[str, str]]:
        """The report."""
        path = self.folder / "rollbacks.csv"
        if not path.is_file():
            return []
        with open(path, newline="") as file:
            return list(csv.DictReader(file))

    def state(self) -> dict[str, Tensor]:
        """Weights, objective, moments and learning rate."""
        return state_of(self.model, self.trainer.optimizers[0])

    def by_hand(self, checkpoint: Path, first: int, last: int = LAST_STEP) -> dict[str, Tensor]:
        """The state after training on the batches of steps `first` to `last - 1` from a checkpoint."""
        contents = torch.load(checkpoint, weights_only=True)
        model = type(self.model)(**{"objective": contents["hyper_parameters"]["objective"]})
        model.load_state_dict(contents["state_dict"])
        found: Any = model.train().configure_optimizers()
        optimizer = found["optimizer"] if isinstance(found, dict) else found
        schedule = found["lr_scheduler"]["scheduler"] if isinstance(found, dict) else None
        optimizer.load_state_dict(contents["optimizer_states"][0])
        if schedule is not None:
            schedule.load_state_dict(contents["lr_schedulers"][0])
        torch.set_rng_state(self.record.generators[first])
        for step in range(first, last):
            images = self.record.batches[step]
            optimizer.zero_grad()
            terms = model.loss_terms(model(images), images)
            model.objective(terms, num_dimensions=images[0].numel()).backward()
            if dist.is_initialized():
                for parameter in model.parameters():
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= dist.get_world_size()
            optimizer.step()
            model.objective.update()
            if schedule is not None:
                schedule.step()
        return state_of(model, optimizer)


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    plain = optimizer.state_dict()
    found = {name: value.clone() for name, value in model.state_dict().items()}
    found["lr"] = torch.tensor(plain["param_groups"][0]["lr"], dtype=torch.float64)
    for index, entry in plain["state"].items():
        found |= {f"optimizer.{index}.{name}": value.clone() for name, value in entry.items()}
    return found


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name, value in first.items() if not torch.equal(value, second[name])}


FAULTS: list[tuple[Fault, str, float]] = [
    (("nll", NAN), "not finite: genesis_v2 nll, loss, gradient", NAN),
    (("nll", 1e6), "diverged: error + KL is ", 1e8),
    (("kl", INF), "not finite: genesis_v2 KL latent, loss", INF),
    (("gradient", NAN), "not finite: gradient", NAN),
    (("beta", NAN), "not finite: genesis_v2 beta, loss, gradient", NAN),
]


@pytest.mark.parametrize(("fault", "cause", "value"), few(FAULTS, FAULTS[0], FAULTS[1], FAULTS[3]))
def test_run_goes_on_as_restored_by_hand(fault: Fault, cause: str, value: float, tmp_path: Path) -> None:
    run = Run(tmp_path, Faulty({BAD_STEP: fault}), RollbackOptions(max_rollbacks=2))
    checkpoint = tmp_path / "checkpoints/step-4.ckpt"
    assert run.message == ""
    assert run.record.always_finite
    assert differing(run.state(), run.by_hand(checkpoint, BAD_STEP + 1)) == set()
    # Another checkpoint, or none, would have been another run.
    assert differing(run.state(), run.by_hand(tmp_path / "checkpoints/step-2.ckpt", BAD_STEP + 1))
    # The step counter went on, over batches that follow each other.
    assert run.trainer.global_step == LAST_STEP
    assert run.record.indices == list(range(2 * LAST_STEP))
    assert run.model.objective.step == 4 + LAST_STEP - BAD_STEP - 1
    (row,) = run.rows
    assert row["step"] == str(BAD_STEP)
    assert row["cause"].startswith(cause)
    assert row["checkpoint"] in (str(checkpoint), str(tmp_path / "checkpoints/last.ckpt"))
    assert row["checkpoint_step"] == "4"
    found = float(row["value"])
    assert found > value if value == 1e8 else str(found) == str(value)


def test_learning_rate_schedule_goes_back_too(tmp_path: Path) -> None:
    run = Run(tmp_path, Scheduled({BAD_STEP: ("nll", NAN)}), RollbackOptions(max_rollbacks=1))
    assert differing(run.state(), run.by_hand(tmp_path / "checkpoints/step-4.ckpt", BAD_STEP + 1)) == set()
    assert float(run.state()["lr"]) == 1e-4 * 0.5 ** (4 + LAST_STEP - BAD_STEP - 1)


def test_warm_up_of_beta_goes_back_too(tmp_path: Path) -> None:
    model = Faulty({BAD_STEP: ("kl", NAN)}, objective=FixedBeta(warmup_steps=10))
    run = Run(tmp_path, model, RollbackOptions(max_rollbacks=1))
    assert differing(run.state(), run.by_hand(tmp_path / "checkpoints/step-4.ckpt", BAD_STEP + 1)) == set()
    assert model.objective.step == 4 + LAST_STEP - BAD_STEP - 1


def test_fault_over_micro_batches(tmp_path: Path) -> None:
    """The first micro-batch after the failed step is trained on from the restored weights, and counted."""
    model = Faulty({BAD_STEP: ("nll", NAN)})
    run = Run(tmp_path, model, RollbackOptions(max_rollbacks=1), accumulate_grad_batches=2)
    assert run.record.always_finite
    assert run.trainer.global_step == LAST_STEP
    assert run.record.indices == list(range(4 * LAST_STEP))
    assert model.objective.step == 4 + LAST_STEP - BAD_STEP - 1


def test_rollbacks_run_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults = {BAD_STEP: ("nll", NAN), BAD_STEP + 2: ("gradient", INF)}
    run = Run(tmp_path, Faulty(faults), RollbackOptions(max_rollbacks=1))
    assert run.message.startswith(f"step {BAD_STEP + 2}: not finite: gradient; the step changed no weight")
    assert "\n" not in run.message
    assert [row["step"] for row in run.rows] == [str(BAD_STEP)]
    assert run.record.always_finite


def test_off_by_default(tmp_path: Path) -> None:
    run = Run(tmp_path, Faulty({BAD_STEP: ("nll", NAN)}), RollbackOptions())
    assert run.message.startswith(f"step {BAD_STEP}: not finite: genesis_v2 nll, loss, gradient")
    assert run.rows == []


def test_bound_of_the_divergence_is_an_option(tmp_path: Path) -> None:
    run = Run(tmp_path, Faulty({BAD_STEP: ("kl", 1e6)}), RollbackOptions(divergence=5e5))
    assert run.message.startswith(f"step {BAD_STEP}: diverged: error + KL is ")
    assert "nats per image, more than 500000; " in run.message


@pytest.mark.parametrize(("soon", "restored"), [(1, ["4", "2"]), (0, ["4", "6"])])
def test_failing_again_soon_goes_further_back(soon: int, restored: list[str], tmp_path: Path) -> None:
    faults = {BAD_STEP: ("nll", NAN), BAD_STEP + 1: ("nll", NAN)}
    run = Run(tmp_path, Faulty(faults), RollbackOptions(max_rollbacks=2, soon=soon))
    assert [row["checkpoint_step"] for row in run.rows] == restored
    # What was saved after 6 steps is what had just been restored.
    name = {"2": "step-2.ckpt", "6": "step-4.ckpt"}[restored[-1]]
    hand = run.by_hand(tmp_path / "checkpoints" / name, BAD_STEP + 2)
    assert differing(run.state(), hand) == set()


def test_no_further_back_than_there_are_checkpoints(tmp_path: Path) -> None:
    faults = dict.fromkeys((3, 4, 5), ("nll", NAN))
    run = Run(tmp_path, Faulty(faults), RollbackOptions(max_rollbacks=3))
    assert [row["checkpoint_step"] for row in run.rows] == ["2", "2", "2"]
    assert run.message == ""


def test_nothing_to_go_back_to(tmp_path: Path) -> None:
    run = Run(tmp_path, Faulty({0: ("nll", NAN)}), RollbackOptions(max_rollbacks=1))
    assert run.message.startswith("step 0: not finite: ")
    assert run.message.endswith("none yet")
    assert run.rows == []


class Damage(pl.Callback):
    """Cuts the newest checkpoints off."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == BAD_STEP:
            folder = Path(next(c.folder for c in trainer.callbacks if isinstance(c, RunCheckpoints)))
            for name in ("last.ckpt", "step-4.ckpt"):
                path = folder / name
                path.write_bytes(path.read_bytes()[:1000])


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    model = Faulty({BAD_STEP: ("nll", NAN)})
    run = Run(tmp_path, model, RollbackOptions(max_rollbacks=1), callbacks=[Damage()])
    assert [row["checkpoint_step"] for row in run.rows] == ["2"]
    assert differing(run.state(), run.by_hand(tmp_path / "checkpoints/step-2.ckpt", BAD_STEP + 1)) == set()


def test_resumed_run_has_as_many_rollbacks_left(tmp_path: Path) -> None:
    options = RollbackOptions(max_rollbacks=2)
    faults = {BAD_STEP: ("nll", NAN), 8: ("nll", NAN), 10: ("nll", NAN)}
    whole = Run(tmp_path / "whole", Faulty(faults), options, max_steps=12)
    assert [row["step"] for row in whole.rows] == [str(BAD_STEP), "8"]
    assert whole.message.startswith("step 10: ")
    stopped = Run(tmp_path / "stopped", Faulty(faults), options, max_steps=7)
    assert stopped.message == ""
    last = tmp_path / "stopped/checkpoints/last.ckpt"
    resumed = Run(tmp_path / "stopped", Faulty(faults), options, ckpt_path=last, max_steps=12)
    assert resumed.rollback.used == 2
    assert [row["step"] for row in resumed.rows] == [str(BAD_STEP), "8"]
    assert resumed.message.split(";")[0] == whole.message.split(";")[0]


def test_later_checkpoints_of_an_abandoned_run_are_passed_over(tmp_path: Path) -> None:
    first = Run(tmp_path, Faulty(), RollbackOptions())
    assert (tmp_path / "checkpoints/step-8.ckpt").is_file()
    rewound = Run(
        tmp_path,
        Faulty({3: ("nll", NAN)}),
        RollbackOptions(max_rollbacks=1),
        ckpt_path=tmp_path / "checkpoints/step-2.ckpt",
        max_steps=4,
    )
    assert first.message == rewound.message == ""
    assert [row["checkpoint_step"] for row in rewound.rows] == ["2"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_rollbacks": -1}, "rollback.max_rollbacks=-1: expected"),
        ({"soon": -3}, "rollback.soon=-3: expected"),
        ({"divergence": 0.0}, "rollback.divergence=0.0: expected"),
        ({"divergence": NAN}, "rollback.divergence=nan: expected"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as raised:
        RollbackOptions(**options)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- two ranks


RANK_FAULTS: dict[int, Fault] = {5: ("nll", NAN), 9: ("kl", 3e8), 13: ("gradient", INF), 17: ("beta", NAN)}


def main(folder: Path) -> None:
    """Trains on two ranks with faults on the second, and again by hand; each rank writes both down."""
    model = Faulty(RANK_FAULTS, rank=1)
    options = RollbackOptions(max_rollbacks=len(RANK_FAULTS), soon=0)
    run = Run(folder, model, options, devices=2, strategy="ddp", max_steps=20)
    state = run.state()
    apart: list[str] = []
    for failed in RANK_FAULTS:  # each goes back to the checkpoint a step before, and on to the next one
        hand = run.by_hand(folder / f"checkpoints/step-{failed - 1}.ckpt", failed + 1, failed + 3)
        kept = read_checkpoint(folder / f"checkpoints/step-{failed + 3}.ckpt")["state_dict"]
        apart += differing(kept, {name: hand[name] for name in kept})
    found = {
        "state": state,
        "apart": apart + sorted(differing(state, hand)),
        "always_finite": run.record.always_finite,
        "message": run.message,
        "indices": run.record.indices,
        "generator": run.record.generators[6],
    }
    torch.save(found, folder / f"rank-{run.trainer.global_rank}.pt")


@pytest.mark.slow  # two processes train alike in `tests/test_ranks.py` meanwhile
def test_faults_on_one_of_two_ranks(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    assert not set(ranks[0]["indices"]) & set(
        ranks[1]["indices"]
    )  # two ranks indeed, with noise of their own
    assert not torch.equal(ranks[0]["generator"], ranks[1]["generator"])
    assert differing(ranks[0]["state"], ranks[1]["state"]) == set()
    for rank in ranks:
        assert rank["message"] == ""
        assert rank["always_finite"]
        assert rank["apart"] == []
    with open(tmp_path / "rollbacks.csv", newline="") as file:
        rows = [(int(row["step"]), int(row["checkpoint_step"])) for row in csv.DictReader(file)]
    assert rows == [(failed, failed - 1) for failed in RANK_FAULTS]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
