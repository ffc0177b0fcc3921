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
from lightning_genesis.callbacks.host_copy import HostCopy
from lightning_genesis.errors import NonFiniteError

DIVERGENCE = 1e8
"""Error plus KL, nats per image, above which the published GENESIS code ends a run."""
NAN, INFINITY = float(np.float32(3.4e38)), float(np.float32(3.3e38))
"""What stands for NaN and for an infinity of either sign in the report."""
_FINITE = float(np.float32(3.2e38))
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
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

    The decision stays on the device: one vector is gathered from all ranks, and a flag made of it is handed
    to the optimiser, which then changes no weight, nor a moment if it is fused (Adam, AdamW, SGD). A rank's
    request to stop travels with it, and so does the error that moves the objective.

    The host reads the vector before the next step's backward. A whole forward is queued behind it by then, so
    a host that has to wait there leaves no gap on the device. With rollbacks it has to be read before that
    forward, as the weights may change; the device then idles until Python has come to its first kernels.

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
        self._bounds: tuple[Any, Tensor] | None = None
        self._names: tuple[str, ...] = ()
        self._report = HostCopy()
        self._unread = False
        self._step, self._of = -1, 1

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Reads what the previous step left, where it may change the weights."""
        if self.recover is not None:
            self._read(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads what the last step left."""
        self._read(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Reads what the previous step left: what a bad step may have done to the state is never saved."""
        self._read(trainer, pl_module)

    def on_before_zero_grad(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Reads what the previous step left; Lightning comes here between forward and backward."""
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
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        names, terms = module.watched
        state = module.objective.state()
        if self._stop is None:  # on the device from now on: choosing between them copies nothing
            self._stop = (torch.zeros_like(norm), torch.ones_like(norm))
        parts = [
            terms,
            *state.values(),
            self._loss,
            norm,
            terms.sum(),
            self._stop[int(module.stop_requested)],
        ]
        values = torch.cat([x.reshape(-1) for x in parts])
        self._names = (*names, *_state_names(state, module.objective.branches), "loss", "gradient")
        # Above all that is finite, so that the largest of the ranks says what to report.
        report = values.nan_to_num(NAN, INFINITY, INFINITY)
        if dist.is_available() and dist.is_initialized():
            ranks = report.new_empty(dist.get_world_size() * len(report))
            dist.all_gather_into_tensor(ranks, report)
            ranks = ranks.view(-1, len(report))
            module.objective.share(ranks[:, : len(module.objective.branches)].mean(dim=0))
            report = ranks.amax(dim=0)
        module.finite = (report <= self._limits(report)).all()
        # fused optimisers take it in float32 alone, whatever their gradients are in
        found = torch.logical_not(module.finite, out=torch.empty_like(norm, dtype=torch.float32))
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            report[len(self._names) - 1] *= scaler.scale(self._stop[1]) < MINIMUM_SCALE
        _skip(optimizer, gradients, found, scaler)
        self._report.send(report)
        self._step, self._of, self._unread = trainer.global_step, self._micro_batches, True
        self._loss, self._micro_batches, module.watched = None, 0, None

    def _limits(self, report: Tensor) -> Tensor:
        """What no number of the report may exceed."""
        key = (len(report), self._micro_batches, self.divergence, report.device)
        if self._bounds is None or self._bounds[0] != key:
            bound = INFINITY if self.divergence is None else self.divergence * self._micro_batches
            limits = [_FINITE] * (len(report) - 2) + [min(bound, _FINITE), INFINITY]
            self._bounds = (key, torch.tensor(limits, device=report.device))
        return self._bounds[1]

    def _read(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._unread:
            return
        self._unread = False
        report = self._report.read()
        module: Any = pl_module
        if report[-1]:
            module.stop_agreed = True
        failure = self._failure(report[:-2], float(report[-2]))
        if failure is None:
            return
        if self.recover is None or not self.recover(trainer, pl_module, failure):
            raise NonFiniteError(
                f"step {failure.step}: {failure.cause}; the step changed no weight and the run stops. "
                f"Last good checkpoint: {last_good(trainer)}"
            )

    def _failure(self, values: np.ndarray, total: float) -> Failure | None:
        bad = values > _FINITE
        if bad.any():
            found = [name for name, is_bad in zip(self._names, bad, strict=True) if is_bad]
            value = float("nan") if values.max() >= NAN else float("inf")
            return Failure(self._step, f"not finite: {', '.join(found)}", value)
        total /= self._of
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
        # Their bits times 0 or 1: a product of the numbers would keep a NaN.
        bits = [gradient.view(_INTEGERS[gradient.element_size()]) for gradient in gradients]
        torch._foreach_mul_(bits, (1.0 - found).to(bits[0].dtype))
    elif scaler is None:
        raw.grad_scale, raw.found_inf = None, found
    else:
        # The scaler overwrites both: it has to find the fault itself, and only looks at gradients. Unscaled
        # here instead of in the optimiser, they can be clipped.
        smallest = min(gradients, key=Tensor.numel)
        smallest.add_(torch.where(found > 0, torch.nan, 0.0))
        scaler.unscale_(raw)
