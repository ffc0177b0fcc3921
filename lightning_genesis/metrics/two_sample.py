"""Two-sample tests of sets of images that need no downloaded weights.

None of them is FID or KID, or comparable with published values of these.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_genesis.metrics.kid import kernel_inception_distance
from lightning_genesis.metrics.structural_accuracy import wilson_interval

IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class ClassifierRecipe:
    """How the classifier of `two_sample_accuracy` is trained: a part of the measure."""

    width: int = 16
    """Channels of the first of three strided convolutions; the others have twice as many."""
    steps: int = 300
    batch_size: int = 64
    """Half of them of either set."""
    learning_rate: float = 1e-3
    """Of Adam; it falls to 0 by a cosine."""


class TwoSampleAccuracy(NamedTuple):
    """What a classifier reached."""

    accuracy: float
    """Mean over seeds; 0.5 if it cannot tell the sets apart, 1 if it always can."""
    low: float
    high: float
    """Wilson's 95 % interval of that share of one seed's test images, the spread over seeds left out."""
    by_seed: tuple[float, ...]
    num_test: int
    """Test images of one seed."""


def two_sample_accuracy(
    first: Tensor, second: Tensor, seeds: tuple[int, ...] = (0, 1, 2), recipe: ClassifierRecipe | None = None
) -> TwoSampleAccuracy:
    """Accuracy of a small convolutional network that has to tell two sets of images apart.

    For each seed half of either set trains it and the other half tests it; the sets are cut to the size of
    the smaller one. Lower is better for samples.

    Source: Lopez-Paz, Oquab: "Revisiting classifier two-sample tests", ICLR 2017, Section 3; the recipe is
        ours.

    Args:
        first: images in [0, 1], `[N, 3, H, W]`.
        second: likewise, `[M, 3, H, W]`.
        seeds: each gives other halves, other initial values and other batches.
        recipe: of the classifier.

    Raises:
        ValueError: if a set has fewer than four images, or the sizes of the images differ.
    """
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"images of shapes {list(first.shape[1:])} and {list(second.shape[1:])}, expected the same"
        )
    count = min(len(first), len(second)) // 2 * 2
    if count < 4:
        raise ValueError(f"expected four images or more of either set, got {len(first)} and {len(second)}")
    recipe = recipe or ClassifierRecipe()
    found = tuple(_accuracy(first, second, count, seed, recipe) for seed in seeds)
    mean = sum(found) / len(found)
    low, high = wilson_interval(round(mean * count), count)
    return TwoSampleAccuracy(mean, low, high, found, count)


def _accuracy(first: Tensor, second: Tensor, count: int, seed: int, recipe: ClassifierRecipe) -> float:
    generator = torch.Generator().manual_seed(seed)
    halves = []
    for images in (first, second):
        order = torch.randperm(len(images), generator=generator)[:count].to(images.device)
        halves.append(images[order].split(count // 2))
    (train_first, test_first), (train_second, test_second) = halves
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = classifier(recipe.width).to(first.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    size = min(recipe.batch_size // 2, count // 2)
    truth = torch.tensor([0.0, 1.0], device=first.device).repeat_interleave(size)
    with torch.enable_grad():
        for _ in range(recipe.steps):
            some = [
                images[torch.randint(len(images), (size,), generator=generator).to(images.device)]
                for images in (train_first, train_second)
            ]
            loss = nn.functional.binary_cross_entropy_with_logits(network(torch.cat(some))[:, 0], truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    right = sum(
        int(((network(images)[:, 0] > 0) == label).sum())
        for label, half in ((False, test_first), (True, test_second))
        for images in half.split(IMAGES_AT_ONCE)
    )
    return right / count


def classifier(width: int) -> nn.Module:
    """Three strided convolutions, group-normalised, and one linear layer on a 4x4 grid of means."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.GroupNorm(8, 2 * width),
        nn.ReLU(inplace=True),
        nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
        nn.GroupNorm(8, 2 * width),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * width, 1),
    )


class RandomFeatures(nn.Module):
    """Features of images by convolutions that were never trained: means and deviations of every map.

    Always the same ones: initial values depend on `seed` alone.

    Args:
        seed: of the weights.
        width: channels of the first layer; each of the four doubles it.
    """

    def __init__(self, seed: int = 0, width: int = 32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        channels = [3, *(width * 2**layer for layer in range(4))]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(channels)
        )
        for layer in self.layers:
            assert isinstance(layer, nn.Conv2d)
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.uniform_(layer.bias, -0.1, 0.1, generator=generator)  # type: ignore[arg-type]
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features `[B, F]` of images in [0, 1], `[B, 3, H, W]`."""
        x, found = 2.0 * images - 1.0, []
        for layer in self.layers:
            x = layer(x).relu()
            found += [x.mean(dim=(2, 3)), x.std(dim=(2, 3), correction=0)]
        return torch.cat(found, dim=1)


@torch.no_grad()
def random_net_mmd(reference: Tensor, images: Tensor, seed: int = 0) -> float:
    """Unbiased squared maximum mean discrepancy of random features; lower is better, 0 on average if equal.

    The kernel is KID's, `(x·y / F + 1)³`, the network is `RandomFeatures` in the place of Inception, and
    features are brought to mean 0 and deviation 1 over `reference`. Values are not comparable with KID's.

    Args:
        reference: images in [0, 1], `[N, 3, H, W]`.
        images: likewise, `[M, 3, H, W]`.
        seed: of the network.
    """
    network = RandomFeatures(seed).to(reference.device)
    first, second = (
        torch.cat([network(some) for some in x.split(IMAGES_AT_ONCE)]).double() for x in (reference, images)
    )
    mean, deviation = first.mean(dim=0), first.std(dim=0)
    deviation = deviation.clamp_min(0.1 * deviation.mean() + 1e-12)  # a map that the reference leaves dark
    return float(kernel_inception_distance((first - mean) / deviation, (second - mean) / deviation))


@torch.no_grad()
def component_frechet(reference: Tensor, images: Tensor, num_components: int = 40) -> float:
    """Fréchet distance between Gaussians in the principal components of the reference's pixels.

    Lower is better. Pixels are in [0, 1] and components are not scaled, so the distance is a squared error
    summed over the image. It sees means and covariances alone, and it is biased upwards by small sets.

    Args:
        reference: images in [0, 1], `[N, 3, H, W]`.
        images: likewise, `[M, 3, H, W]`.
        num_components: of most variance.
    """
    first, second = reference.flatten(1).double(), images.flatten(1).double()
    mean = first.mean(dim=0)
    count = min(num_components, len(first) - 1, first.shape[1])
    basis = torch.linalg.svd(first - mean, full_matrices=False).Vh[:count].T
    return frechet_distance((first - mean) @ basis, (second - mean) @ basis)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """`|μ₁ - μ₂|² + Tr(C₁ + C₂ - 2 (C₁^½ C₂ C₁^½)^½)` of two sets of vectors `[N, D]`, `[M, D]`, float64."""
    covariances = [torch.cov(x.double().T).reshape(x.shape[1], x.shape[1]) for x in (first, second)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp_min(0.0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0.0).sqrt().sum()
    shift = (first.double().mean(dim=0) - second.double().mean(dim=0)).square().sum()
    return float(shift + covariances[0].trace() + covariances[1].trace() - 2.0 * cross)
