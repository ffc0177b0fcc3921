"""Stick breaking: every slot takes its share of what the slots before it left (MONet, Section 2.1)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_genesis.precision import full_precision


def break_off(logits: Tensor, log_scope: Tensor) -> tuple[Tensor, Tensor]:
    """One step: the mask that a slot takes out of the scope, and the scope that it leaves.

    Args:
        logits: of the share that is taken, `[B, 1, H, W]`.
        log_scope: logarithm of what is left, `[B, 1, H, W]`.

    Returns:
        log-mask and new log-scope, float32, each `[B, 1, H, W]`.
    """
    with full_precision(logits):
        return _BreakOff.apply(logits.float(), log_scope)  # type: ignore[no-untyped-call]


class _BreakOff(torch.autograd.Function):
    """See above. Backward by hand, as the gradients of both results meet in every step of a recurrence."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_scope: Tensor) -> tuple[Tensor, Tensor]:
        taken, buffer = torch.ops.aten.log_sigmoid_forward(logits)
        ctx.save_for_backward(logits, buffer)
        log_mask = log_scope + taken
        return log_mask, log_mask - logits  # log sigmoid(-x) = log sigmoid(x) - x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        of_mask, of_scope = gradients
        total = of_mask + of_scope
        return torch.ops.aten.log_sigmoid_backward(total, *ctx.saved_tensors) - of_scope, total


def stick_breaking(logits: Tensor) -> Tensor:
    """Log-masks of all slots at once, where the logits do not depend on the scope.

    The last slot takes what is left, so its logit changes nothing (GENESIS, Equation 4; the published
    code runs one step more and replaces the last mask, which is the same).

    Args:
        logits: of the share each slot takes, `[B, K, 1, H, W]`.

    Returns:
        log-masks, normalised over slots, float32, `[B, K, 1, H, W]`.
    """
    with full_precision(logits):
        logits = logits[:, :-1].float()
        taken = F.logsigmoid(logits)
        left = taken - logits  # log sigmoid(-x) = log sigmoid(x) - x
        log_scope = F.pad(left.cumsum(dim=1), (0, 0, 0, 0, 0, 0, 1, 0))
        return log_scope + F.pad(taken, (0, 0, 0, 0, 0, 0, 0, 1))
