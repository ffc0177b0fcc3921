"""What the metrics of a segmentation have in common."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lightning_genesis.metrics.contingency import Contingency, check_options, count_pixels
from lightning_genesis.metrics.conventions import Convention, edge_cases
from lightning_genesis.metrics.per_image import PerImageMean


class SegmentationScore(PerImageMean, ABC):
    """Mean over images of a score of slot ids against instance ids.

    Images for which the convention says NaN are left out of the mean.

    Args:
        num_slots: number of slots `K`.
        num_background: ids below it are background and count as one.
        foreground: score the objects only.
        ignore_index: id of the pixels that are left out.
        convention: what to do where the score is 0 / 0, a name in `CONVENTIONS`.

    States:
        total: sum of the scores, float64.
        count: number of images in the mean, int64.
        num_without_foreground: number of images seen that have no foreground pixel, int64.

    Raises:
        ValueError: if an option is out of range.
    """

    higher_is_better = True

    num_without_foreground: Tensor

    def __init__(
        self,
        num_slots: int,
        *,
        num_background: int = 1,
        foreground: bool = False,
        ignore_index: int = 255,
        convention: Convention = "genesis",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_options(num_slots, num_background, ignore_index)
        edge_cases(convention)
        self.num_slots = num_slots
        self.num_background = num_background
        self.foreground = foreground
        self.ignore_index = ignore_index
        self.convention: Convention = convention
        self.add_state("num_without_foreground", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, counts: Contingency) -> Tensor:
        """The score of every image, float64 `[B]`."""

    def update(self, prediction: Tensor | Contingency, target: Tensor | None = None) -> None:
        """Add some images.

        Args:
            prediction: slot ids in 0 to `num_slots - 1`, integers `[B, H, W]`; or the counts of both
                label maps, where several scores share them (`count_pixels`).
            target: instance ids in 0 to 255, integers `[B, H', W']`.

        Raises:
            TypeError: if there is no target.
        """
        if isinstance(prediction, Contingency):
            counts = prediction
        elif target is None:
            raise TypeError("target: expected instance ids, [B, H, W], got None")
        else:
            counts = count_pixels(
                prediction,
                target,
                num_slots=self.num_slots,
                num_background=self.num_background,
                ignore_index=self.ignore_index,
            )
        values = self.score(counts)
        self.total = self.total + values.nansum()
        self.count = self.count + (~values.isnan()).sum()
        self.num_without_foreground = self.num_without_foreground + counts.without_foreground.sum()

    def image_counts(self) -> dict[str, Tensor]:
        """Number of images behind the mean, over all processes (all of them must call it).

        Returns:
            `counted`: images in the mean; `without_foreground`: images seen without foreground; int64.
        """
        with self.sync_context():
            return {
                "counted": self.count.clone(),
                "without_foreground": self.num_without_foreground.clone(),
            }
