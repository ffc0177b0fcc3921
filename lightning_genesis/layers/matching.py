"""Alignment of a set of slots to a sequence of slots (SRI, Section 4.2 and Algorithm 1)."""

from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.precision import full_precision

Matching = Literal["greedy", "hungarian"]


def greedy_order(cost: Tensor) -> Tensor:
    """The cheapest free column for every row, row after row, the first one on ties (Algorithm 1).

    All images at once; the loop is over K. Nothing waits for the device.

    Args:
        cost: `[B, K, K]`, no entry infinite.

    Returns:
        column of every row, a permutation of 0 to K - 1, int64 `[B, K]`.
    """
    order: list[Tensor] = []
    for row in range(cost.shape[1]):
        order.append(cost[:, row].argmin(dim=1, keepdim=True))
        if row + 1 < cost.shape[1]:  # that column is taken, for all rows
            cost = cost.scatter(2, order[-1].unsqueeze(1).expand(-1, cost.shape[1], -1), torch.inf)
    return torch.cat(order, dim=1)


def hungarian_order(cost: Tensor) -> Tensor:
    """The columns of least total cost; see `greedy_order`. Waits for the device, and solves on the host."""
    assignments = [linear_sum_assignment(matrix)[1] for matrix in cost.cpu().numpy()]
    return torch.stack([torch.from_numpy(columns) for columns in assignments]).to(cost.device)


@torch.no_grad()
def slot_order(sequence: Tensor, slots: Tensor, matching: Matching = "greedy") -> Tensor:
    """Which of the `slots` belongs to each position of `sequence`, by Euclidean distance.

    Args:
        sequence: means of the imagined slots in their order, `[B, K, D]`.
        slots: means of the segregated slots in any order, `[B, K, D]`.
        matching: "greedy", or "hungarian" for the least sum of distances.

    Returns:
        index into `slots` for every position, int64 `[B, K]`.

    Raises:
        ConfigurationError: if there is no such matching.
    """
    if matching not in ("greedy", "hungarian"):
        raise ConfigurationError(f"matching={matching!r} is unknown: use 'greedy' or 'hungarian'")
    with full_precision(slots):
        # without the shortcut by a matrix product, which is inexact where slots are close
        cost = torch.cdist(sequence, slots, compute_mode="donot_use_mm_for_euclid_dist")
    return greedy_order(cost) if matching == "greedy" else hungarian_order(cost)


def reorder(values: Tensor, order: Tensor) -> Tensor:
    """`values[b, order[b, k]]` at position `k`, `[B, K, ...]`."""
    index = order.reshape(*order.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)
