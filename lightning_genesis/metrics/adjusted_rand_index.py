"""Adjusted Rand index of every image, over all pixels (ARI) or the objects only (ARI-FG)."""

from torch import Tensor

from lightning_genesis.metrics.contingency import Contingency, Ids, count_pixels, like
from lightning_genesis.metrics.conventions import Convention, edge_cases
from lightning_genesis.metrics.segmentation_score import SegmentationScore


def adjusted_rand_index(
    prediction: Ids,
    target: Ids,
    *,
    num_slots: int | None = None,
    num_background: int = 1,
    foreground: bool = False,
    ignore_index: int = 255,
    convention: Convention = "genesis",
) -> Ids:
    """Agreement of two partitions of the pixels, corrected for chance, of every image.

    Over pairs of pixels, with `tp` pairs together in both, `tn` apart in both, `fp` together in the
    prediction only and `fn` together in the target only:

        `2 (tp tn - fn fp) / ((tp + fn)(fn + tn) + (tp + fp)(fp + tn))`

    In -0.5 to 1; 1 is a perfect match and 0 what chance gives. ARI-FG drops every pixel whose target is
    background, so a slot may take objects and background alike at no cost.

    Args:
        prediction: slot ids in 0 to `num_slots - 1`, integers `[B, H, W]`; a tensor or a NumPy array.
        target: instance ids in 0 to 255, integers `[B, H', W']`; if larger, the prediction is enlarged.
        num_slots: number of slots `K`; None counts those of the prediction.
        num_background: ids below it are background and count as one.
        foreground: keep only the pixels with `target >= num_background`.
        ignore_index: id of the pixels that are left out.
        convention: value where the quotient is 0 / 0, a name in `CONVENTIONS`.

    Returns:
        float64 `[B]`; of NumPy arrays an array.

    Raises:
        ValueError: if shapes or options do not fit.
        TypeError: if an argument holds no integers.

    Source: Hubert and Arabie, "Comparing partitions", 1985; as evaluated in the GENESIS (ARI) and
    GENESIS-V2 (ARI-FG) papers.
    """
    counts = count_pixels(
        prediction,
        target,
        num_slots=num_slots,
        num_background=num_background,
        ignore_index=ignore_index,
    )
    scores = score_adjusted_rand_index(counts, foreground=foreground, convention=convention)
    return like(scores, prediction)


def score_adjusted_rand_index(counts: Contingency, *, foreground: bool, convention: Convention) -> Tensor:
    """`adjusted_rand_index` of images whose pixels are counted already, float64 `[B]`."""
    rules = edge_cases(convention)
    pairs = counts.pairs(foreground)
    slots, objects = pairs.sum(dim=2), pairs.sum(dim=1)
    num_pixels = slots.sum(dim=1)
    # Ordered pairs of pixels, from sums of squares; integers below 2^53, hence exact.
    together = pairs.square().sum(dim=(1, 2))
    false_positive = slots.square().sum(dim=1) - together
    false_negative = objects.square().sum(dim=1) - together
    true_positive = together - num_pixels
    true_negative = num_pixels.square() - together - false_positive - false_negative
    numerator = 2 * (true_positive * true_negative - false_negative * false_positive)
    denominator = (true_positive + false_negative) * (false_negative + true_negative) + (
        true_positive + false_positive
    ) * (false_positive + true_negative)
    score = numerator / denominator
    # The denominator is zero only where both partitions are the same trivial one.
    undefined = denominator == 0
    score = score.masked_fill(undefined, rules.ari_singletons)
    score = score.masked_fill(undefined & (together == num_pixels.square()), rules.ari_one_cluster)
    return score.masked_fill(num_pixels == 0, rules.ari_no_pixels)


class AdjustedRandIndex(SegmentationScore):
    """Mean over images of `adjusted_rand_index`, with the same options."""

    def score(self, counts: Contingency) -> Tensor:
        """The index of every image, float64 `[B]`."""
        return score_adjusted_rand_index(counts, foreground=self.foreground, convention=self.convention)
