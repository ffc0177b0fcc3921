"""Keeps numbers that are not finite, or have run away, out of the weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from lightning_genesis.callbacks.checkpoints import last_good
from lightning_genesis.errors import NonFiniteError

DIVERGENCE = 1e8
"""Error plus KL, nats per image, above which the published GENESIS code ends a run."""
MINIMUM_SCALE = 1e-4
"""Loss scale of float16 below which a gradient that is still not finite counts as such: 30 halvings."""


class Failure(NamedTuple):
    """A step that changed nothing because something about it was wrong."""

    step: int
    """Counted from 0."""
    cause: str
    """What was wrong."""
    value: float
    """NaN, infinity, or what was too large."""


class FiniteGate(pl.Callback):
    """Skips an optimiser step that is not finite or has diverged, on all ranks, and stops the run.

    Looked at are every term, the state of the objective (β among it), the loss and the gradient's norm; and
    error plus KL, which the published code bounds by 1e8 nats (NaN passes there: a comparison with it is
    false). That is their mean over a rank's batch and their sum over branches; the largest rank's counts.

    The decision stays on the device: one vector is reduced over ranks, and a flag made of it is handed to the
    optimiser, which then changes no weight, nor a moment if it is fused (Adam, AdamW, SGD). The host reads
    the vector a step later, from pinned memory, so it never waits for the device. A rank's request to stop
    travels with it.

    In float16 a scaled gradient that overflows is ordinary: the scaler skips that step and halves its scale,
    and the objective does not move either. It counts only with a scale below `MINIMUM_SCALE`.

    Args:
        divergence: bound of error plus KL, nats per image; none if None.

    Raises:
        NonFiniteError: one step later, naming the step, what was wrong, and the last checkpoint.
    """

    def __init__(self, divergence: float | None = DIVERGENCE) -> None:
        self.divergence = divergence
        self.recover: Callable[[pl.Trainer, pl.LightningModule, Failure], bool] | None = None
        """Tried before the run is stopped; it goes on where this says True. All ranks call it."""
        self._loss: Tensor | None = None
        self._micro_batches = 0
        self._stop: tuple[Tensor, Tensor] | None = None
        self._names: tuple[str, ...] = ()
        self._report: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self._step = -1

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Reads what the previous step left."""
        self._read(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads what the last step left."""
        self._read(trainer, pl_module)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Remembers the loss; over micro-batches, their sum."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        self._micro_batches += 1

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Sets the flag and gates the optimiser."""
        module: Any = pl_module
        assert self._loss is not None
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        term_names, terms = module.watched
        state = dict(module.objective.named_buffers())
        self._names = (*term_names, *_state_names(state, module.objective.branches), "loss", "gradient")
        values = torch.cat([terms, *(x.flatten() for x in state.values()), torch.stack([self._loss, norm])])
        # 2 for NaN, 1 for infinity, so that the largest of the ranks says what to report.
        bad = torch.isnan(values).float() + (~torch.isfinite(values)).float()
        total = (terms.sum(dim=0, keepdim=True) / self._micro_batches).nan_to_num(0.0, 0.0, 0.0)
        if self._stop is None:  # on the device from now on: choosing between them copies nothing
            self._stop = (torch.zeros_like(total), torch.ones_like(total))
        report = torch.cat([bad, total, self._stop[int(module.stop_requested)]])
        self._loss, self._micro_batches, module.watched = None, 0, None
        self._step = trainer.global_step
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(report, op=dist.ReduceOp.MAX)
        found = report[: len(bad)].max() > 0.0
        if self.divergence is not None:
            found = found | (report[-2] > self.divergence)
        module.finite = ~found
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            report[len(bad) - 1] *= (scaler.scale(self._stop[1]) < MINIMUM_SCALE)[0]
        _skip(optimizer, gradients, found.float(), scaler)
        self._remember(report)

    def _remember(self, report: Tensor) -> None:
        if self._report is None:
            self._report = torch.zeros(len(report), pin_memory=report.is_cuda)
        self._report.copy_(report, non_blocking=True)
        if report.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _read(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._report is None:
            return
        if self._copied is not None:
            self._copied.synchronize()  # the copy was enqueued a step ago
        report = self._report.numpy()  # shares memory: no operation on a device
        module: Any = pl_module
        if report[-1]:
            module.stop_agreed = True
        failure = self._failure(report[:-2], float(report[-2]))
        if failure is None:
            return
        self._report = None
        if self.recover is None or not self.recover(trainer, pl_module, failure):
            raise NonFiniteError(
                f"step {failure.step}: {failure.cause}; the step changed no weight and the run stops. "
                f"Last good checkpoint: {last_good(trainer)}"
            )

    def _failure(self, bad: np.ndarray, total: float) -> Failure | None:
        if bad.any():
            found = [name for name, code in zip(self._names, bad, strict=True) if code]
            value = float("nan") if bad.max() > 1 else float("inf")
            return Failure(self._step, f"not finite: {', '.join(found)}", value)
        if self.divergence is not None and total > self.divergence:
            cause = f"diverged: error + KL is {total:.4g} nats per image, more than {self.divergence:g}"
            return Failure(self._step, cause, total)
        return None


def _state_names(state: dict[str, Tensor], branches: tuple[str, ...]) -> list[str]:
    """A name for every number in the objective's buffers, by branch where there is one for each."""
    return [
        f"{owner} {name}"
        for name, value in state.items()
        for owner in (branches if value.dim() else ("objective",))
    ]


def _skip(optimizer: Optimizer, gradients: list[Tensor], found: Tensor, scaler: Any) -> None:
    """Makes the next step of the optimiser change no weight where `found` is 1."""
    raw: Any = getattr(optimizer, "optimizer", optimizer)
    if not raw.defaults.get("fused"):
        # An optimiser without a fused form gets no gradient instead; its moments still decay.
        for gradient in gradients:
            gradient.copy_(torch.where(found > 0, torch.zeros_like(gradient), gradient))
    elif scaler is None:
        raw.grad_scale, raw.found_inf = None, found
    else:
        # The scaler overwrites both: it has to find the fault itself, and only looks at gradients. Unscaled
        # here instead of in the optimiser, they can be clipped.
        smallest = min(gradients, key=Tensor.numel)
        smallest.add_(torch.where(found > 0, torch.nan, 0.0))
        scaler.unscale_(raw)
