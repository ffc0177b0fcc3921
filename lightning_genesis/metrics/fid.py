"""Fréchet Inception distance of features that a network has already made of images."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image import fid


class _Given(nn.Module):
    """Stands where torchmetrics expects a network: the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetInceptionDistance(fid.FrechetInceptionDistance):
    """`|μ₁ - μ₂|² + Tr(C₁ + C₂ - 2 (C₁ C₂)^½)` of two sets of features, sample covariances; lower is better.

    torchmetrics' metric without its network: sums of features and of their products in float64, added over
    processes, so neither batches nor ranks matter. Its network is another package's, with another scaling of
    the pixels and no choice of rounding; ours is `inception.InceptionFeatures`. The result stays float64, and
    a process that has seen no image takes part.

    Source: Heusel et al., 2017, Equation 6.

    Args:
        num_features: size D of the features.
        kwargs: of `torchmetrics.Metric`.
    """

    higher_is_better = False

    def __init__(self, num_features: int = 2048, **kwargs: Any) -> None:
        super().__init__(feature=_Given(num_features), **kwargs)
        self.orig_dtype = torch.float64

    def update(self, features: Tensor, real: bool) -> None:
        """Add the features of some images, `[B, D]`: of the data if `real`, else of samples."""
        super().update(features.double(), real)
