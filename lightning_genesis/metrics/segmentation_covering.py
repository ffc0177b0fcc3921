"""Segmentation covering of every image: SC, mSC, and both over the objects only (-FG)."""

from typing import Any

from torch import Tensor

from lightning_genesis.metrics.contingency import Contingency, Ids, count_pixels, like
from lightning_genesis.metrics.conventions import Convention, edge_cases
from lightning_genesis.metrics.segmentation_score import SegmentationScore


def segmentation_covering(
    prediction: Ids,
    target: Ids,
    *,
    num_slots: int | None = None,
    foreground: bool,
    weighted: bool,
    num_background: int = 1,
    ignore_index: int = 255,
    convention: Convention = "genesis",
) -> Ids:
    """How well the best slot of every object covers it, on average over the objects of each image.

    With objects `A_i` present in the image and slots `B_j`, without the ignored pixels:

        `best_i = max_j |A_i and B_j| / |A_i or B_j|`
        `mSC = mean_i best_i`,  `SC = sum_i |A_i| best_i / sum_i |A_i|`

    In 0 to 1, where 1 is a perfect match. Unlike ARI-FG, the -FG variants charge a slot for the
    background that it takes: those pixels stay in `B_j`; only the background as an `A_i` is left out. A
    slot may be the best one of several objects.

    Args:
        prediction: slot ids in 0 to `num_slots - 1`, integers `[B, H, W]`; a tensor or a NumPy array.
        target: instance ids in 0 to 255, integers `[B, H', W']`; if larger, the prediction is enlarged.
        num_slots: number of slots `K`; None counts those of the prediction.
        foreground: cover only the objects with `target >= num_background`.
        weighted: by area (SC), not all objects alike (mSC).
        num_background: ids below it are background and count as one.
        ignore_index: id of the pixels that are left out.
        convention: value of an image without an object to cover, a name in `CONVENTIONS`.

    Returns:
        float64 `[B]`; of NumPy arrays an array.

    Raises:
        ValueError: if shapes or options do not fit.
        TypeError: if an argument holds no integers.

    Source: Arbelaez et al., "Contour detection and hierarchical image segmentation", 2011; as evaluated
    in the GENESIS (SC and mSC) and GENESIS-V2 (mSC-FG, there MSC-FG) papers.
    """
    counts = count_pixels(
        prediction,
        target,
        num_slots=num_slots,
        num_background=num_background,
        ignore_index=ignore_index,
    )
    scores = score_segmentation_covering(
        counts, foreground=foreground, weighted=weighted, convention=convention
    )
    return like(scores, prediction)


def score_segmentation_covering(
    counts: Contingency, *, foreground: bool, weighted: bool, convention: Convention
) -> Tensor:
    """`segmentation_covering` of images whose pixels are counted already, float64 `[B]`."""
    intersection = counts.pairs(foreground)
    objects = intersection.sum(dim=1)
    slots = counts.background + counts.foreground.sum(dim=2)
    union = slots[:, :, None] + objects[:, None] - intersection
    # Where the union is empty so is the intersection: an unused slot and an absent id.
    best = (intersection / union.clamp(min=1)).amax(dim=1)
    weights = objects if weighted else (objects > 0).double()
    total_weight = weights.sum(dim=1)
    score = (weights * best).sum(dim=1) / total_weight
    return score.masked_fill(total_weight == 0, edge_cases(convention).covering_no_labels)


class SegmentationCovering(SegmentationScore):
    """Mean over images of `segmentation_covering`, with the same options.

    Args:
        num_slots: number of slots `K`.
        weighted: by area (SC), not all objects alike (mSC).
        options: those of `SegmentationScore`.
    """

    def __init__(self, num_slots: int, *, weighted: bool = False, **options: Any) -> None:
        super().__init__(num_slots, **options)
        self.weighted = weighted

    def score(self, counts: Contingency) -> Tensor:
        """The covering of every image, float64 `[B]`."""
        return score_segmentation_covering(
            counts, foreground=self.foreground, weighted=self.weighted, convention=self.convention
        )
