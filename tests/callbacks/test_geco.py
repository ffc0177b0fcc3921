"""The callback moves the objective once per optimiser step, and never while evaluating."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_genesis.models import GenesisV2
from lightning_genesis.objectives import GECO
from lightning_genesis.scene import Scene, Terms


class Images(Dataset[dict[str, Tensor]]):
    """Random pictures."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return {"image": image, "index": torch.tensor(index)}


class Spy(GenesisV2):
    """Keeps the mean error of every training batch and of how many it was."""

    def __init__(self, **options: Any) -> None:
        super().__init__(2, 32, latent_dim=8, feature_dim=8, **options)
        self.errors: list[float] = []

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        terms = super().loss_terms(scene, images)
        if self.training:
            self.errors.append(terms["genesis_v2"].nll.mean().item())
        return terms


class States(pl.Callback):
    """State of GECO at the start and the end of every batch."""

    def __init__(self) -> None:
        self.after: list[tuple[float, float, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        objective = pl_module.objective
        assert isinstance(objective, GECO)
        self.after.append((objective.beta.item(), objective.average.item(), objective.step.item()))


def fit(model: GenesisV2, *callbacks: pl.Callback, **trainer: Any) -> pl.Trainer:
    runner = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **trainer,
    )
    loader = DataLoader(Images(), batch_size=2)
    runner.fit(model, loader, loader)
    return runner


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_once_per_optimiser_step(accumulate: int) -> None:
    torch.manual_seed(0)
    model, states = Spy(), States()
    fit(model, states, accumulate_grad_batches=accumulate, max_steps=3, limit_val_batches=0)
    assert len(states.after) == len(model.errors) == 3 * accumulate
    beta, average, dimensions = 1.0, 0.0, 3 * 32 * 32
    for step in range(3):
        for held in states.after[step * accumulate : (step + 1) * accumulate - 1]:
            assert held == (pytest.approx(beta), pytest.approx(average), step)  # mid-way nothing moves
        micro = model.errors[step * accumulate : (step + 1) * accumulate]
        error = sum(micro) / accumulate
        average = error if step == 0 else 0.99 * average + 0.01 * error
        constraint = 0.5655 * dimensions - average
        rate = 1e-5 * 4 * (10.0 if constraint > 0.0 else 1.0)
        beta *= float(torch.tensor(rate * constraint, dtype=torch.float64).exp())
        assert states.after[(step + 1) * accumulate - 1] == (
            pytest.approx(beta, rel=1e-5),
            pytest.approx(average, rel=1e-5),
            step + 1,
        )
    assert beta != 1.0


def test_validation_does_not_move_it() -> None:
    torch.manual_seed(0)
    model = Spy()
    fit(model, max_steps=2, limit_val_batches=0)
    objective = model.objective
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    runner = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    runner.validate(model, DataLoader(Images(), batch_size=2), verbose=False)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert objective.step == 2
    assert "val/elbo" in runner.callback_metrics


def test_state_is_in_the_checkpoint_of_the_model(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = GenesisV2(2, 32, latent_dim=8, feature_dim=8)
    runner = fit(model, max_steps=3, limit_val_batches=0)
    path = tmp_path / "model.ckpt"
    runner.save_checkpoint(path)
    again = GenesisV2.load_from_checkpoint(path, weights_only=True)
    assert isinstance(model.objective, GECO)
    assert isinstance(again.objective, GECO)
    assert torch.equal(again.objective.beta.cpu(), model.objective.beta)
    assert again.objective.step == 3
    assert again.objective.beta != 1.0
