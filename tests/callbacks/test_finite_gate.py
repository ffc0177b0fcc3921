"""A step that is not finite changes nothing, and the run stops one step later and says why."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_genesis.callbacks.checkpoints import LastCheckpoint
from lightning_genesis.errors import NonFiniteError
from lightning_genesis.models import GenesisV2
from lightning_genesis.scene import Scene, Terms

BAD_STEP = 3
"""Counted from 0, as in the message."""


class Images(Dataset[dict[str, Tensor]]):
    """Random pictures; the one at `bad_index` has a NaN."""

    def __init__(self, bad_index: int | None = None) -> None:
        self.bad_index = bad_index

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        if index == self.bad_index:
            image[1, 2, 3] = float("nan")
        return {"image": image, "index": torch.tensor(index)}


class Faulty(GenesisV2):
    """Breaks at one optimiser step, in one place."""

    fault: tuple[str, float] | None = None

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        terms = super().loss_terms(scene, images)["genesis_v2"]
        if self.fault and self.global_step == BAD_STEP:
            place, value = self.fault
            if place == "nll":
                terms = Terms(terms.nll * value, terms.kl)
            elif place == "kl":
                terms = Terms(terms.nll, {"latent": terms.kl["latent"] + value})
        return {"genesis_v2": terms}

    def on_after_backward(self) -> None:
        if self.fault and self.fault[0] == "gradient" and self.global_step == BAD_STEP:
            gradient = self.network.posterior_head[1].weight.grad
            assert isinstance(gradient, Tensor)
            gradient[0, 0] = self.fault[1]


def snapshot(trainer: pl.Trainer, model: pl.LightningModule) -> dict[str, Tensor]:
    """Weights, state of the objective and state of the optimiser, copied."""
    found = {name: value.clone() for name, value in model.state_dict().items()}
    for index, entry in trainer.optimizers[0].state_dict()["state"].items():
        found |= {f"optimizer.{index}.{name}": value.clone() for name, value in entry.items()}
    return found


class Record(pl.Callback):
    """State of everything after each optimiser step."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.message = ""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.states):
            self.states.append(snapshot(trainer, pl_module))


def fit(
    fault: tuple[str, float] | None,
    tmp_path: Path,
    bad_index: int | None = None,
    optimizer: str = "Adam",
    max_steps: int = 8,
    **trainer: Any,
) -> Record:
    torch.manual_seed(0)
    model = Faulty(2, 32, latent_dim=8, feature_dim=8, optimizer=optimizer)
    model.fault = fault
    record = Record()
    runner = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record, LastCheckpoint(tmp_path, every=2)],
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
        (None, 2 * BAD_STEP + 1, "genesis_v2 nll, genesis_v2 KL latent, loss, gradient"),
    ],
)
@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "RMSprop"])
def test_step_changes_nothing(
    fault: tuple[str, float] | None, bad_index: int | None, named: str, optimizer: str, tmp_path: Path
) -> None:
    record = fit(fault, tmp_path, bad_index, optimizer)
    assert len(record.states) == BAD_STEP + 1  # the bad one is the last
    last = changed(record.states[BAD_STEP - 1], record.states[BAD_STEP])
    if optimizer == "RMSprop":  # no fused form: its average of squares decays
        last = {name for name in last if not name.startswith("optimizer.")}
    assert last == set()
    before = changed(record.states[BAD_STEP - 2], record.states[BAD_STEP - 1])
    moving = {"network.posterior_head.1.weight", "objective.beta", "objective.average", "optimizer.0.step"}
    assert moving <= before
    assert all(value.isfinite().all() for value in record.states[BAD_STEP].values())
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
    good = record.states[BAD_STEP - 1]
    assert all(torch.equal(value, good[name]) for name, value in saved.items())
