"""Means over images of values that a model or another function has already computed."""

from math import log
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def bits_per_dimension(elbo: Tensor, num_dimensions: int) -> Tensor:
    """Negative ELBO in bits per dimension, of densities over pixels in [0, 1].

    `-elbo / (num_dimensions * log 2)`; may be negative, as densities may exceed one. Adding 8 gives the
    scale of 8-bit pixels, on which likelihoods of quantised images are stated.

    Args:
        elbo: nats per image, `[B]`.
        num_dimensions: `3 * H * W`.

    Returns:
        `[B]`, in the type of `elbo`.

    Raises:
        ValueError: if `num_dimensions` is not positive.
    """
    if num_dimensions < 1:
        raise ValueError(f"num_dimensions: expected at least 1, got {num_dimensions}")
    return -elbo / (num_dimensions * log(2))


class PerImageMean(Metric):
    """Mean over images of a value per image: ELBO, NLL, KL, bits per dimension, number of slots in use.

    Every image weighs the same, whatever the batches; sums are float64. A value that is not finite is
    not hidden: it makes the mean infinite or NaN.

    States:
        total: sum of the values, float64.
        count: number of images, int64.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better: bool | None = None

    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add the values of some images, numbers `[B]`.

        Raises:
            ValueError: if `values` is not one number per image.
        """
        if values.dim() != 1:
            raise ValueError(f"values: expected one per image, [B], got {list(values.shape)}")
        # Not in place: a model cast to half precision casts its metrics' sums, and this undoes it.
        self.total = self.total + values.detach().double().sum()
        self.count = self.count + len(values)

    def compute(self) -> Tensor:
        """The mean, float64; NaN if there were no images."""
        return self.total / self.count
