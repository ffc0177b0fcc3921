"""Consistency of the order in which objects are inferred or generated: what a slot says about its content.

Nothing published measures this; SRI (Section 5.1) shows it by colours, "slot 1 for the background and slots
4-9 for blocks".
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_genesis.metrics.contingency import Contingency


def order_consistency(counts: Tensor) -> Tensor:
    """Share of what there is to know about the class of an object that its slot tells, corrected for chance.

    With entropy H and mutual information I of slot and class over all counted objects, `(I - E) / (H(class)
    - E)`. Without E that is the homogeneity of Rosenberg and Hirschberg (2007), 1 minus the mean entropy of
    the classes in a slot over the entropy of all; `E = (K' - 1)(C' - 1) / 2N` is about what I has by chance
    for N objects in K' used slots and C' classes that have nothing to do with each other.

    How to read it: 1 means that each slot holds objects of one class alone, always; about 0 (it may be below)
    means that the order of the slots says nothing, as for objects in random order. A class may have several
    slots, so three blocks in slots 4 to 6 and the background in slot 1 are 1. It depends on the classes:
    compare models by the same ones (shape, colour, background or not, place), on many images, and look at
    `counts` for which slot is whose. A model that puts the background into its last slot and orders nothing
    else is above 0 where background is a class; leave that out to see.

    Args:
        counts: how often slot k held an object of class c, `[K, C]`.

    Returns:
        float64 scalar; NaN if there is nothing to tell: no objects, or one class.
    """
    counts = counts.double()
    total = counts.sum()
    slots, classes = counts.sum(dim=1), counts.sum(dim=0)

    def entropy(sizes: Tensor) -> Tensor:
        return -torch.special.xlogy(sizes / total, sizes / total).sum()

    of_class = entropy(classes)
    information = of_class + entropy(slots) - entropy(counts.flatten())
    chance = ((slots > 0).sum() - 1) * ((classes > 0).sum() - 1) / (2.0 * total)
    nothing = (classes > 0).sum() < 2
    return ((information - chance) / (of_class - chance)).masked_fill(nothing, torch.nan)


def count_classes(slots: Tensor, classes: Tensor, num_slots: int, num_classes: int) -> Tensor:
    """How often each slot holds an object of each class, int64 `[K, C]`; negative entries are left out.

    Args:
        slots: slot of every object, integers of any shape.
        classes: class of every object, integers of the same shape.
        num_slots: number of slots K.
        num_classes: number of classes C.

    Raises:
        ValueError: if the shapes differ.
    """
    if slots.shape != classes.shape:
        raise ValueError(
            f"slots and classes: expected the same shape, got {list(slots.shape)} and {list(classes.shape)}"
        )
    counted = (slots >= 0) & (classes >= 0)
    cell = (slots * num_classes + classes).masked_fill(~counted, 0).flatten()
    table = torch.zeros(num_slots * num_classes, dtype=torch.int64, device=slots.device)
    return table.scatter_add_(0, cell, counted.flatten().long()).view(num_slots, num_classes)


def object_slots(counts: Contingency) -> Tensor:
    """Slot that has the most pixels of the background and of every object, the first one on ties.

    Args:
        counts: from `count_pixels`.

    Returns:
        int64 `[B, 1 + N]`, the background first, then the ids of the foreground; -1 where there is none.
    """
    pixels = counts.pairs(foreground=False)  # [B, K, 1 + N]
    return pixels.argmax(dim=1).masked_fill(pixels.sum(dim=1) == 0, -1)


def slot_places(segmentation: Tensor, num_slots: int, grid: int = 3) -> Tensor:
    """Class of every slot by where it is: the cell of a grid in which the centre of its pixels lies.

    Needs no ground truth, so it serves for generated scenes, with `torch.arange(K)` as the slots.

    Args:
        segmentation: slot ids in 0 to `num_slots - 1`, int64 `[B, H, W]`.
        num_slots: number of slots K.
        grid: cells on each side; there are `grid²` classes, row by row.

    Returns:
        int64 `[B, K]`; -1 for a slot without a pixel.
    """
    masks = torch.nn.functional.one_hot(segmentation, num_slots)  # [B, H, W, K]
    area = masks.sum(dim=(1, 2))
    cells = []
    for axis in (1, 2):  # in integers, so that a centre on an edge has one answer
        size = segmentation.shape[axis]
        twice_position = 2 * torch.arange(size, device=segmentation.device) + 1
        total = (masks.sum(dim=3 - axis) * twice_position[:, None]).sum(dim=1)
        cells.append(total * grid // (2 * size * area.clamp_min(1)))
    return (cells[0] * grid + cells[1]).masked_fill(area == 0, -1)


class OrderConsistency(Metric):
    """`order_consistency` over all objects of all images.

    Args:
        num_slots: number of slots K.
        num_classes: number of classes C.

    States:
        counts: objects by slot and class, int64 `[K, C]`.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    counts: Tensor

    def __init__(self, num_slots: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(num_slots, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, slots: Tensor, classes: Tensor) -> None:
        """Add objects: slot and class of each, integers of the same shape; negative ones are left out."""
        self.counts = self.counts + count_classes(slots, classes, *self.counts.shape)

    def compute(self) -> Tensor:
        """The consistency, float64."""
        return order_consistency(self.counts)
