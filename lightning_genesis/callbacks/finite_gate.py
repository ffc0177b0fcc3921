"""Keeps non-finite numbers out of the weights."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from lightning_genesis.callbacks.checkpoints import last_good
from lightning_genesis.errors import NonFiniteError


class FiniteGate(pl.Callback):
    """Skips an optimiser step whose loss or gradient is not finite, on all ranks, and stops the run.

    The decision stays on the device: a flag is reduced over ranks and handed to the fused optimiser, which
    then changes neither weights nor moments. The host reads the flag a step later, from pinned memory, so it
    never waits for the device.

    Raises:
        NonFiniteError: one step later, naming the step, what was not finite, and the last checkpoint.
    """

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._names: tuple[str, ...] = ()
        self._report: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self._step = -1

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Reads the previous step's flag."""
        self._raise_if_not_finite(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads the last step's flag."""
        self._raise_if_not_finite(trainer)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Remembers the loss; over micro-batches, their sum."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Sets the flag and gates the optimiser."""
        module: Any = pl_module
        assert self._loss is not None
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        names, terms = module.watched
        self._names = (*names, "loss", "gradient")
        finite = torch.isfinite(torch.stack([self._loss.float(), norm.float()]))
        bad = (~torch.cat([terms, finite])).float()
        self._loss, module.watched, self._step = None, None, trainer.global_step
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        found = bad.max()
        module.finite = found == 0
        _skip(optimizer, gradients, found)
        self._remember(bad)

    def _remember(self, bad: Tensor) -> None:
        if self._report is None:
            self._report = torch.zeros(len(bad), pin_memory=bad.is_cuda)
        self._report.copy_(bad, non_blocking=True)
        if bad.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _raise_if_not_finite(self, trainer: pl.Trainer) -> None:
        if self._report is None:
            return
        if self._copied is not None:
            self._copied.synchronize()  # the copy was enqueued a step ago
        flags = self._report.numpy()  # shares memory: no operation on a device
        if flags.any():
            found = [name for name, bad in zip(self._names, flags, strict=True) if bad]
            self._report = None
            raise NonFiniteError(
                f"step {self._step}: not finite: {', '.join(found)}; the step changed no weight and the run "
                f"stops. Last good checkpoint: {last_good(trainer)}"
            )


def _skip(optimizer: Optimizer, gradients: list[Tensor], found: Tensor) -> None:
    """Makes the next step of the optimiser change no weight where `found` is 1."""
    raw: Any = getattr(optimizer, "optimizer", optimizer)
    if raw.defaults.get("fused"):
        raw.grad_scale, raw.found_inf = None, found
        return
    # An optimiser without a fused form gets no gradient instead; its moments still decay.
    for gradient in gradients:
        gradient.copy_(torch.where(found > 0, torch.zeros_like(gradient), gradient))
