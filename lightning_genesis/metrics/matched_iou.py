"""Intersection over union of slots and objects that are matched one to one: mIoU."""

from typing import Any, Literal, get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lightning_genesis.metrics.contingency import Contingency, Ids, count_pixels, like
from lightning_genesis.metrics.conventions import Convention, edge_cases
from lightning_genesis.metrics.segmentation_score import SegmentationScore

Over = Literal["pairs", "objects"]


def matched_iou(
    prediction: Ids,
    target: Ids,
    *,
    num_slots: int | None = None,
    foreground: bool = False,
    over: Over = "pairs",
    num_background: int = 1,
    ignore_index: int = 255,
    convention: Convention = "genesis",
) -> Ids:
    """Mean intersection over union under the best one-to-one matching of slots and objects, of every image.

    With objects `A_i` (the background is one of them) and slots `B_j`, without the ignored pixels,

        `IoU_ij = |A_i and B_j| / |A_i or B_j|`,  `mIoU = max_σ sum_i IoU_{i σ(i)} / n`,

    where σ gives every object a slot of its own. `over` says what `n` is: "pairs", the number of pairs in
    which the object or the slot has a pixel, so that a slot too many costs as much as one too few (mIoU);
    "objects", the number of objects (mIoU_gt). Where objects and slots are left over that share no pixel with
    each other, they are paired among themselves: `n = max(objects, slots with a pixel)`. The benchmark's
    solver pairs them as they come, so that its value may be lower and depends on the order of the slots.

    In 0 to 1, where 1 is a perfect match. Unlike `segmentation_covering`, no slot counts for two objects. The
    matching is solved on the host, which waits for the device.

    Args:
        prediction: slot ids in 0 to `num_slots - 1`, integers `[B, H, W]`; a tensor or a NumPy array.
        target: instance ids in 0 to 255, integers `[B, H', W']`; if larger, the prediction is enlarged.
        num_slots: number of slots `K`; None counts those of the prediction.
        foreground: leave out the background and its slot, as found by the matching of all (mIoU_fg).
        over: "pairs" or "objects".
        num_background: ids below it are background and count as one.
        ignore_index: id of the pixels that are left out.
        convention: value of an image without an object to match, a name in `CONVENTIONS`.

    Returns:
        float64 `[B]`, on the device of `prediction`; of NumPy arrays an array.

    Raises:
        ValueError: if shapes or options do not fit.
        TypeError: if an argument holds no integers.

    Source: Karazija, Laina, Rupprecht: "ClevrTex: A Texture-Rich Benchmark for Unsupervised Multi-Object
    Segmentation", NeurIPS 2021 Datasets and Benchmarks, as its evaluation defines it.
    """
    counts = count_pixels(
        prediction,
        target,
        num_slots=num_slots,
        num_background=num_background,
        ignore_index=ignore_index,
    )
    scores = score_matched_iou(counts, foreground=foreground, over=over, convention=convention)
    return like(scores, prediction)


def score_matched_iou(
    counts: Contingency, *, foreground: bool, over: Over = "pairs", convention: Convention
) -> Tensor:
    """`matched_iou` of images whose pixels are counted already, float64 `[B]`."""
    check_over(over)
    intersection = counts.pairs(False)
    objects, slots = intersection.sum(dim=1), intersection.sum(dim=2)
    union = slots[:, :, None] + objects[:, None] - intersection
    iou = (intersection / union.clamp(min=1)).cpu()  # an empty union has an empty intersection
    total, background = torch.zeros(2, len(iou), dtype=torch.float64)
    for image, table in enumerate(iou):
        chosen, matched = (torch.from_numpy(part) for part in linear_sum_assignment(table, maximize=True))
        values = table[chosen, matched]
        total[image] = values.sum()
        background[image] = values[matched == 0].sum()
    total, background = total.to(objects.device), background.to(objects.device)
    num_objects, num_slots = (objects > 0).sum(dim=1), (slots > 0).sum(dim=1)
    number = num_objects if over == "objects" else torch.maximum(num_objects, num_slots)
    if foreground:
        total, number = total - background, number - (objects[:, 0] > 0).long()
    score = total / number
    return score.masked_fill(number == 0, edge_cases(convention).covering_no_labels)


def check_over(over: str) -> None:
    """Stop with one line if there is no such number to divide by.

    Raises:
        ValueError: if `over` is unknown.
    """
    if over not in get_args(Over):
        raise ValueError(f"over: expected one of {', '.join(get_args(Over))}, got {over!r}")


class MatchedIoU(SegmentationScore):
    """Mean over images of `matched_iou`, with the same options.

    Args:
        num_slots: number of slots `K`.
        over: "pairs" (mIoU, mIoU_fg) or "objects" (mIoU_gt).
        options: those of `SegmentationScore`.
    """

    def __init__(self, num_slots: int, *, over: Over = "pairs", **options: Any) -> None:
        super().__init__(num_slots, **options)
        check_over(over)
        self.over: Over = over

    def score(self, counts: Contingency) -> Tensor:
        """The value of every image, float64 `[B]`."""
        return score_matched_iou(
            counts, foreground=self.foreground, over=self.over, convention=self.convention
        )
