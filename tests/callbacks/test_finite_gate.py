"""A step that is not finite or diverges changes nothing; the run stops one step later and says why."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_genesis.callbacks.checkpoints import CheckpointOptions, RunCheckpoints
from lightning_genesis.callbacks.finite_gate import MINIMUM_SCALE, FiniteGate
from lightning_genesis.errors import NonFiniteError
from lightning_genesis.objectives import FixedBeta, Objective
from lightning_genesis.scene import Terms
from lightning_genesis.storage.checkpoint import DurableCheckpointIO
from tests.callbacks.faulty import Fault, Faulty, Images
from tests.quick import few

BAD_STEP = 3
"""Counted from 0, as in the message."""


class IgnoresKL(FixedBeta):
    """An objective that only logs the KL."""

    def forward(self, terms: dict[str, Terms], num_dimensions: int) -> Tensor:
        return torch.stack([term.nll.mean() for term in terms.values()]).sum()


def snapshot(trainer: pl.Trainer, model: pl.LightningModule) -> dict[str, Tensor]:
    """Weights, state of the objective and state of the optimiser, copied."""
    found = {name: value.clone() for name, value in model.state_dict().items()}
    for index, entry in trainer.optimizers[0].state_dict()["state"].items():
        found |= {f"optimizer.{index}.{name}": value.clone() for name, value in entry.items()}
    return found


class Record(pl.Callback):
    """State of everything after each optimiser step."""

    def __init__(self, divergence: float | None) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.message = ""
        self.divergence = divergence

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        gate = next(callback for callback in trainer.callbacks if isinstance(callback, FiniteGate))
        gate.divergence = self.divergence

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.states):
            self.states.append(snapshot(trainer, pl_module))


def fit(
    fault: Fault | None,
    tmp_path: Path,
    bad_index: int | None = None,
    optimizer: str = "Adam",
    max_steps: int = 8,
    objective: Objective | None = None,
    lasting: bool = False,
    divergence: float | None = 1e8,
    learning_rate: float = 1e-4,
    **trainer: Any,
) -> Record:
    steps = range(BAD_STEP, max_steps if lasting else BAD_STEP + 1)
    model = Faulty(
        dict.fromkeys(steps, fault) if fault else None,
        optimizer=optimizer,
        objective=objective,
        learning_rate=learning_rate,
    )
    record = Record(divergence)
    runner = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[DurableCheckpointIO(), *trainer.pop("plugins", [])],
        callbacks=[record, RunCheckpoints(tmp_path, CheckpointOptions(last_every=2, keep_every=None))],
        **trainer,
    )
    try:
        runner.fit(model, DataLoader(Images(bad_index), batch_size=2))
    except NonFiniteError as error:
        record.message = str(error)
    return record


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize(
    ("fault", "bad_index", "named"),
    [
        (("nll", float("nan")), None, "genesis_v2 nll, loss, gradient"),
        (("nll", float("inf")), None, "genesis_v2 nll, loss, gradient"),
        (("kl", float("nan")), None, "genesis_v2 KL latent, loss"),
        (("gradient", float("nan")), None, "gradient"),
        (("gradient", float("inf")), None, "gradient"),
        (("beta", float("nan")), None, "genesis_v2 beta, loss, gradient"),
        (("beta", float("inf")), None, "genesis_v2 beta, loss, gradient"),
        (None, 2 * BAD_STEP + 1, "genesis_v2 nll, genesis_v2 KL latent, loss, gradient"),
    ],
)
@pytest.mark.parametrize("optimizer", few(["Adam", "RMSprop"], "Adam"))
def test_step_changes_nothing(
    fault: Fault | None, bad_index: int | None, named: str, optimizer: str, tmp_path: Path
) -> None:
    record = fit(fault, tmp_path, bad_index, optimizer)
    assert len(record.states) == BAD_STEP + 1  # the bad one is the last
    last = changed(record.states[BAD_STEP - 1], record.states[BAD_STEP])
    if optimizer == "RMSprop":  # no fused form: its average of squares decays
        last = {name for name in last if not name.startswith("optimizer.")}
    assert last == ({"objective.beta"} if fault and fault[0] == "beta" else set())
    before = changed(record.states[BAD_STEP - 2], record.states[BAD_STEP - 1])
    moving = {"network.posterior_head.1.weight", "objective.beta", "objective.average", "optimizer.0.step"}
    assert moving <= before
    state = record.states[BAD_STEP]
    assert all(value.isfinite().all() for name, value in state.items() if name not in last)
    assert record.message.startswith(f"step {BAD_STEP}: not finite: {named}; the step changed no weight")
    assert str(tmp_path / "last.ckpt") in record.message
    assert "\n" not in record.message


def test_same_run_without_a_fault_goes_on(tmp_path: Path) -> None:
    record = fit(None, tmp_path)
    assert record.message == ""
    assert len(record.states) == 8
    assert all(changed(a, b) for a, b in zip(record.states, record.states[1:], strict=False))


def test_one_bad_micro_batch_gates_the_whole_step(tmp_path: Path) -> None:
    """Images 12 and 13 are the first of the two micro-batches of step 3."""
    record = fit(None, tmp_path, bad_index=12, accumulate_grad_batches=2)
    assert len(record.states) == BAD_STEP + 1
    assert changed(record.states[BAD_STEP - 1], record.states[BAD_STEP]) == set()
    assert f"step {BAD_STEP}: not finite: genesis_v2 nll, genesis_v2 KL latent" in record.message


def test_gate_holds_with_clipping(tmp_path: Path) -> None:
    record = fit(("gradient", float("nan")), tmp_path, gradient_clip_val=1.0)
    assert changed(record.states[BAD_STEP - 1], record.states[BAD_STEP]) == set()
    assert f"step {BAD_STEP}: not finite: gradient" in record.message


def test_fault_in_the_very_last_step_is_reported(tmp_path: Path) -> None:
    record = fit(("nll", float("nan")), tmp_path, max_steps=BAD_STEP + 1)
    assert f"step {BAD_STEP}: not finite: genesis_v2 nll" in record.message


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    record = fit(None, tmp_path, bad_index=0)
    assert record.message.endswith("Last good checkpoint: none yet")
    assert record.message.startswith("step 0: ")


def test_last_checkpoint_holds_what_the_message_promises(tmp_path: Path) -> None:
    record = fit(("nll", float("nan")), tmp_path)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    good = record.states[1]  # saved every two steps
    assert all(torch.equal(value, good[name]) for name, value in saved.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_kl_counts_though_the_loss_is_finite(value: float, tmp_path: Path) -> None:
    record = fit(("kl", value), tmp_path, objective=IgnoresKL())
    assert record.message.startswith(f"step {BAD_STEP}: not finite: genesis_v2 KL latent; the step changed")
    assert changed(record.states[BAD_STEP - 1], record.states[BAD_STEP]) == set()


def test_state_of_the_objective_counts_though_the_loss_is_finite(tmp_path: Path) -> None:
    record = fit(("average", float("nan")), tmp_path)
    assert record.message.startswith(f"step {BAD_STEP}: not finite: genesis_v2 average; the step changed")
    assert changed(record.states[BAD_STEP - 1], record.states[BAD_STEP]) == {"objective.average"}


# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize(("place", "factor"), [("nll", 1e6), ("kl", 2e8)])
def test_divergence(place: str, factor: float, tmp_path: Path) -> None:
    """More than 1e8 nats, by the error or by the KL, all of it finite."""
    record = fit((place, factor), tmp_path)
    assert len(record.states) == BAD_STEP + 1
    assert changed(record.states[BAD_STEP - 1], record.states[BAD_STEP]) == set()
    assert record.message.startswith(f"step {BAD_STEP}: diverged: error + KL is ")
    assert "nats per image, more than 1e+08; the step changed no weight" in record.message
    assert "\n" not in record.message


@pytest.mark.parametrize(("divergence", "stops"), [(None, False), (3e8, False), (1.5e8, True)])
def test_bound_of_the_divergence(divergence: float | None, stops: bool, tmp_path: Path) -> None:
    record = fit(("kl", 2e8), tmp_path, divergence=divergence)
    assert bool(record.message) == stops
    moved = changed(record.states[BAD_STEP - 1], record.states[BAD_STEP])
    assert ("network.posterior_head.1.weight" in moved) != stops


@pytest.mark.parametrize("divergence", [1.5e8, 2.5e8])
def test_divergence_is_of_the_mean_over_micro_batches(divergence: float, tmp_path: Path) -> None:
    """Every micro-batch of the step has 2e8 nats: their sum is 4e8, their mean 2e8."""
    record = fit(("kl", 2e8), tmp_path, divergence=divergence, accumulate_grad_batches=2, max_steps=5)
    assert bool(record.message) == (divergence < 2e8)


# ---------------------------------------------------------------- request to stop


class Request(pl.Callback):
    """Asks to stop during one step and notes after which step all ranks know."""

    def __init__(self, step: int) -> None:
        self.step, self.agreed_after = step, -1

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            pl_module.stop_requested = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if pl_module.stop_agreed and self.agreed_after < 0:
            self.agreed_after = trainer.global_step


def test_request_to_stop_is_no_fault(tmp_path: Path) -> None:
    request = Request(2)
    model = Faulty()
    pl.Trainer(
        accelerator="cpu",
        max_steps=5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[request],
    ).fit(model, DataLoader(Images(), batch_size=2))
    assert request.agreed_after == 4  # made in step 2, read when step 3 starts, seen when that ends
    assert model.objective.step == 5


# ---------------------------------------------------------------- float16


class Float16(MixedPrecision):
    """Lightning's float16 with its scaler, on the CPU, where the Trainer does not offer it."""

    def __init__(self, scale: float = 2.0**4) -> None:
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


class ScaledFloat32(Float16):
    """The scaler alone."""

    def autocast_context_manager(self) -> Any:
        return nullcontext()


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("Adam", {}),
        ("AdamW", {"gradient_clip_val": 0.5}),
        ("SGD", {"accumulate_grad_batches": 2}),
        ("RMSprop", {"gradient_clip_val": 0.5}),
    ],
)
def test_scaling_by_a_power_of_two_changes_nothing(
    optimizer: str, options: dict[str, Any], tmp_path: Path
) -> None:
    plain = fit(None, tmp_path / "plain", optimizer=optimizer, max_steps=3, **options)
    scaled = fit(
        None, tmp_path / "scaled", optimizer=optimizer, max_steps=3, plugins=[ScaledFloat32()], **options
    )
    assert len(plain.states) == 3
    assert changed(plain.states[-1], scaled.states[-1]) == set()


@pytest.mark.parametrize("optimizer", ["Adam", "RMSprop"])
@pytest.mark.parametrize("value", few([float("nan"), float("inf")], float("inf")))
def test_scaled_gradient_that_overflows_is_ordinary(optimizer: str, value: float, tmp_path: Path) -> None:
    plugin = Float16()
    record = fit(("gradient", value), tmp_path, optimizer=optimizer, plugins=[plugin])
    assert record.message == ""
    assert len(record.states) == 8
    # Neither weights nor moments nor the objective move in that step.
    assert changed(record.states[BAD_STEP - 1], record.states[BAD_STEP]) == set()
    assert "network.posterior_head.1.weight" in changed(record.states[BAD_STEP], record.states[BAD_STEP + 1])
    assert record.states[-1]["objective.step"] == 7
    assert plugin.scaler.get_scale() == 2.0**3  # halved, once


@pytest.mark.parametrize("optimizer", few(["Adam", "RMSprop"], "RMSprop"))
@pytest.mark.parametrize(
    ("fault", "objective", "named"),
    [
        (("nll", float("nan")), None, "not finite: genesis_v2 nll, loss"),
        (("kl", float("inf")), IgnoresKL(), "not finite: genesis_v2 KL latent"),
        (("beta", float("nan")), None, "not finite: genesis_v2 beta, loss"),
        (("kl", 2e8), IgnoresKL(), "diverged: error + KL is 2e+08 nats per image, more than 1e+08"),
    ],
)
def test_the_rest_is_not_ordinary_in_float16(
    optimizer: str, fault: Fault, objective: Objective | None, named: str, tmp_path: Path
) -> None:
    """Although, ignoring the KL, there is nothing in the gradients for the scaler to find."""
    record = fit(fault, tmp_path, optimizer=optimizer, objective=objective, plugins=[Float16()])
    assert record.message.startswith(f"step {BAD_STEP}: {named}; the step changed no weight")
    last = changed(record.states[BAD_STEP - 1], record.states[BAD_STEP])
    if optimizer == "RMSprop":
        last = {name for name in last if not name.startswith("optimizer.")}
    assert last == ({"objective.beta"} if fault[0] == "beta" else set())


def test_gradient_that_is_never_finite_ends_a_float16_run(tmp_path: Path) -> None:
    plugin = Float16(2.0**-10)
    record = fit(("gradient", float("inf")), tmp_path, plugins=[plugin], lasting=True, max_steps=20)
    # 2^-10 ... 2^-13 are above the minimum; 2^-14 is the first that is not.
    step = BAD_STEP + 4
    assert 2.0**-14 < MINIMUM_SCALE < 2.0**-13
    assert record.message.startswith(f"step {step}: not finite: gradient; the step changed no weight")
    assert len(record.states) == step + 1
    assert changed(record.states[BAD_STEP - 1], record.states[-1]) == set()


def test_clipping_in_float16_is_of_unscaled_gradients(tmp_path: Path) -> None:
    """SGD with a learning rate of 1 moves by the clipped gradient."""
    record = fit(
        None, tmp_path, optimizer="SGD", learning_rate=1.0, plugins=[Float16()], gradient_clip_val=1e-3
    )
    before, after = record.states[0], record.states[1]
    names = [name for name in before if not name.startswith(("objective.", "optimizer."))]
    moved = torch.cat([(after[name] - before[name]).flatten() for name in names])
    assert moved.norm() == pytest.approx(1e-3, rel=1e-2)
