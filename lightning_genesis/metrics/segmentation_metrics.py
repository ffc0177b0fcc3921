"""The scores of a segmentation, from one count of the pixels."""

from typing import Any

from torch import Tensor
from torchmetrics import MetricCollection

from lightning_genesis.metrics.adjusted_rand_index import AdjustedRandIndex
from lightning_genesis.metrics.contingency import count_pixels
from lightning_genesis.metrics.conventions import Convention
from lightning_genesis.metrics.matched_iou import MatchedIoU
from lightning_genesis.metrics.segmentation_covering import SegmentationCovering


class SegmentationMetrics(MetricCollection):
    """`ari`, `ari_fg`, `msc`, `msc_fg`, `sc` and `sc_fg` of the same images; also `miou` and its kind.

    The pixels are counted once per batch and the counts handed to all.

    Args:
        num_slots: number of slots `K`.
        num_background: ids below it are background and count as one.
        convention: what to do where a score is 0 / 0, a name in `CONVENTIONS`.
        ignore_index: id of the pixels that are left out.
        prefix: put before the keys, as in "val/".
        postfix: put after the keys, as in "_attention".
        matched: add `miou`, `miou_fg` and `miou_gt`, whose matching waits for the device.
    """

    def __init__(
        self,
        num_slots: int,
        num_background: int = 1,
        convention: Convention = "genesis",
        *,
        ignore_index: int = 255,
        prefix: str | None = None,
        postfix: str | None = None,
        matched: bool = False,
    ) -> None:
        counting: dict[str, int] = {
            "num_slots": num_slots,
            "num_background": num_background,
            "ignore_index": ignore_index,
        }
        options: dict[str, Any] = {**counting, "convention": convention}
        by_matching = {
            "miou": MatchedIoU(**options),
            "miou_fg": MatchedIoU(foreground=True, **options),
            "miou_gt": MatchedIoU(over="objects", **options),
        }
        super().__init__(
            {
                "ari": AdjustedRandIndex(**options),
                "ari_fg": AdjustedRandIndex(foreground=True, **options),
                "msc": SegmentationCovering(**options),
                "msc_fg": SegmentationCovering(foreground=True, **options),
                "sc": SegmentationCovering(weighted=True, **options),
                "sc_fg": SegmentationCovering(weighted=True, foreground=True, **options),
                **(by_matching if matched else {}),
            },
            prefix=prefix,
            postfix=postfix,
            # Torchmetrics forms groups by the values of the first batch: two scores that happen to
            # agree there (both perfect, say) would share their sums from then on.
            compute_groups=False,
        )
        self.counting = counting

    def update(self, prediction: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add some images: slot ids, integers `[B, H, W]`, and instance ids, integers `[B, H', W']`."""
        super().update(count_pixels(prediction, target, **self.counting))

    def forward(self, prediction: Tensor, target: Tensor) -> dict[str, Any]:
        """Add some images and return their own means, by name."""
        return super().forward(count_pixels(prediction, target, **self.counting))


def segmentation_metrics(
    num_slots: int, num_background: int = 1, convention: Convention = "genesis"
) -> MetricCollection:
    """A new collection with the keys `ari`, `ari_fg`, `msc`, `msc_fg`, `sc` and `sc_fg`.

    Clone it per stage and kind of mask: `.clone(prefix="val/", postfix="_attention")`.

    Args:
        num_slots: number of slots `K`.
        num_background: ids below it are background and count as one.
        convention: what to do where a score is 0 / 0, a name in `CONVENTIONS`.
    """
    return SegmentationMetrics(num_slots, num_background, convention)
