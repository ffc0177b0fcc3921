"""What a process writes down about a run; given to the command like any callback of a user."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from lightning_genesis.scene import IndexedNoise, Noise, Scene


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


class Probe(pl.Callback):
    """Writes `probe-COMMAND-RANK.pt` into the run's folder when a stage ends.

    Args:
        indexed_noise: train with noise that belongs to the step and the image, on whatever rank it is.
        double: compute in float64 throughout, with `--trainer.precision 64-true`: models compute some things
            in float32 by calling `float()`, which then does nothing.
    """

    def __init__(self, indexed_noise: bool = True, double: bool = False) -> None:
        self.indexed_noise = indexed_noise
        if double:
            single: Any = Tensor.float
            keep: Any = lambda x: x if x.dtype == torch.float64 else single(x)  # noqa: E731
            Tensor.float = keep  # type: ignore[method-assign]
        self.record: dict[str, Any] = {"seen": [], "noise": [], "gradients": {}}
        self._index: Tensor | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before DDP broadcasts anything."""
        self.record["initial"] = _copy(pl_module.state_dict())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.indexed_noise:
            return
        plain = pl_module.forward

        def forward(images: Tensor, noise: Noise | None = None, **options: Any) -> Scene:
            if pl_module.training and noise is None:
                assert self._index is not None
                noise = IndexedNoise(trainer.global_step, self._index)
            return plain(images.to(pl_module.dtype), noise, **options)

        pl_module.forward = forward  # type: ignore[method-assign]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """What the model would draw first, without drawing it."""
        self._index = batch["index"]
        self.record["seen"].append(batch["index"].tolist())
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())
        self.record["noise"].append(torch.rand(4, generator=generator))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """The gradient that the optimiser sees, of the first and the last step."""
        gradients = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        if trainer.global_step in (0, trainer.max_steps - 1):
            self.record["gradients"][trainer.global_step] = _copy(gradients)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:  # there, what was trained on
            self.record["seen"].append(batch["index"].tolist())

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end

    def _on_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """How many images each metric has counted, here and on all ranks together."""
        stage = "test" if trainer.testing else "val"
        metric: Any = pl_module.scores[stage].means["mse"]
        counts = {"here": int(metric.count)}
        with metric.sync_context():
            counts["everywhere"] = int(metric.count)
        self.record["counts"] = counts

    on_validation_epoch_end = on_test_epoch_end = _on_epoch_end

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert trainer.state.fn is not None
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        record = {**self.record, "final": _copy(pl_module.state_dict()), "global_step": trainer.global_step}
        torch.save(record, folder / f"probe-{trainer.state.fn.value}-{trainer.global_rank}.pt")
