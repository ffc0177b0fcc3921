"""Kernel Inception distance of features that a network has already made of images."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

ROWS_AT_ONCE = 1024


def kernel_inception_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy under the kernel `(x·y / D + 1)³`; lower is better.

    All pairs are used: what the usual mean over random subsets estimates, without their draws. About 0 for
    two sets of one distribution, and as often below 0 as above. Unlike FID's, its expectation does not depend
    on the number of images.

    Source: Bińkowski et al., 2018, Section 4.1 and Equation 4.

    Args:
        real: features of the data, `[N, D]`.
        fake: features of samples, `[M, D]`.

    Returns:
        scalar, float64.

    Raises:
        ValueError: if a set has fewer than two images.
    """
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"real and fake: expected two images or more, got {len(real)} and {len(fake)}")
    real, fake = real.double(), fake.double()
    within = [
        (_kernel_sum(x, x) - _kernel(x.square().sum(dim=1), x.shape[1]).sum()) / (len(x) * (len(x) - 1))
        for x in (real, fake)
    ]
    return within[0] + within[1] - 2 * _kernel_sum(real, fake) / (len(real) * len(fake))


def _kernel(products: Tensor, num_features: int) -> Tensor:
    return (products / num_features + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    """Sum of the kernel over all pairs; a few rows at a time, for 10 000 images make 10^8 pairs."""
    sums = [_kernel(rows @ y.T, x.shape[1]).sum() for rows in x.split(ROWS_AT_ONCE)]
    return torch.stack(sums).sum()


class KernelInceptionDistance(Metric):
    """`kernel_inception_distance` of features that come in batches, on one process or several.

    The kernel needs all pairs, so features are kept, float32: each image has a row of its own in a table that
    is summed over processes. torchmetrics' class draws subsets from torch's own generator, so its result
    changes from call to call and with the rank.

    Args:
        num_images: number N of images of either set.
        num_features: size D of the features.
        kwargs: of `torchmetrics.Metric`.

    States:
        real, fake: features, float32 `[N, D]`, zero where none have come.
        num_real, num_fake: number of rows that have come, int64.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    real: Tensor
    fake: Tensor
    num_real: Tensor
    num_fake: Tensor

    def __init__(self, num_images: int, num_features: int = 2048, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for kind in ("real", "fake"):
            self.add_state(kind, torch.zeros(num_images, num_features), dist_reduce_fx="sum")
            self.add_state(f"num_{kind}", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, features: Tensor, rows: Tensor, real: bool) -> None:
        """Add the features of some images.

        Args:
            features: `[B, D]`.
            rows: which of the N images they belong to, int64 `[B]`; each image comes once.
            real: whether they are of the data, or of samples.
        """
        if real:
            self.real[rows] = features.float()
            self.num_real = self.num_real + len(rows)
        else:
            self.fake[rows] = features.float()
            self.num_fake = self.num_fake + len(rows)

    def compute(self) -> Tensor:
        """The distance, float64.

        Raises:
            ValueError: if images are missing.
        """
        if (self.num_real != len(self.real)) or (self.num_fake != len(self.fake)):
            raise ValueError(
                f"expected {len(self.real)} images of either set, got {int(self.num_real)} real and "
                f"{int(self.num_fake)} fake"
            )
        return kernel_inception_distance(self.real, self.fake)
