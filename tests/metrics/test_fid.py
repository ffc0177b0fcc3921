"""Against pytorch-fid's own distance, which takes a matrix root with SciPy."""

import warnings

import numpy as np
import pytest
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import Tensor

from lightning_genesis.metrics.fid import FrechetInceptionDistance

SIZE = 24


def features(count: int, seed: int, size: int = SIZE) -> Tensor:
    """Correlated, not centred, like those of a network after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(99 + seed % 2))
    return (torch.randn(count, size, generator=generator) @ mixing / 4 + 0.5).relu()


def score(real: Tensor, fake: Tensor, batch_size: int = 1000) -> float:
    metric = FrechetInceptionDistance(real.shape[1])
    for x, is_real in ((real, True), (fake, False)):
        for batch in x.split(batch_size):
            metric.update(batch, real=is_real)
    value = metric.compute()
    assert value.dtype == torch.float64
    return float(value)


def published(real: Tensor, fake: Tensor) -> float:
    statistics = [
        (np.mean(x, axis=0), np.cov(x, rowvar=False)) for x in (real.double().numpy(), fake.double().numpy())
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it gives SciPy's root an argument of old
        return float(calculate_frechet_distance(*statistics[0], *statistics[1]))


def exact(real: Tensor, fake: Tensor) -> float:
    """Without a root of a singular matrix: its trace is that of the singular values of `X₁ᵀ X₂`, centred."""
    means = [x.double().mean(dim=0) for x in (real, fake)]
    centred = [(x.double() - mean) / (len(x) - 1) ** 0.5 for x, mean in zip((real, fake), means, strict=True)]
    covariances = sum(float(x.square().sum()) for x in centred)
    root = float(torch.linalg.svdvals(centred[0] @ centred[1].T).sum())
    return float((means[0] - means[1]).square().sum()) + covariances - 2 * root


@pytest.mark.parametrize(("num_real", "num_fake"), [(500, 400), (2, 300), (20, 23)])
def test_equals_pytorch_fid(num_real: int, num_fake: int) -> None:
    """Also with fewer images than features, where the covariances are singular."""
    real, fake = features(num_real, 0), features(num_fake, 1)
    found = score(real, fake)
    assert found == pytest.approx(exact(real, fake), rel=1e-7)
    # where SciPy finds no root, as 1.14 of a singular matrix, pytorch-fid adds 1e-6 to the diagonals first
    singular = min(num_real, num_fake) <= SIZE
    assert found == pytest.approx(published(real, fake), rel=2e-3 if singular else 1e-9)
    assert found > 0.1


def test_wide_features_with_few_images() -> None:
    real, fake = features(50, 0, 256), features(60, 1, 256)
    assert score(real, fake) == pytest.approx(published(real, fake), abs=0.05)


def inception_like(count: int, seed: int) -> Tensor:
    """As many features as Inception's, about as large, in [0, ∞)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(99)) / 2048**0.5
    return (0.6 * torch.randn(count, 2048, generator=generator) @ mixing + 0.3 + 0.1 * seed).relu()


@pytest.mark.slow
def test_few_images_at_the_published_width() -> None:
    """Covariances of rank 99 and 89 of 2048, as in a test on few images."""
    real, fake = inception_like(100, 0), inception_like(90, 1)
    found, expected = score(real, fake), published(real, fake)
    assert expected > 10
    assert found == pytest.approx(expected, rel=1e-5)
    assert found == pytest.approx(exact(real, fake), rel=1e-5)


@pytest.mark.slow
def test_few_images_against_themselves_at_the_published_width() -> None:
    real = inception_like(100, 0)
    assert abs(score(real, real.flip(0))) < 1e-3
    assert abs(published(real, real.flip(0))) < 1e-3


def test_batches_do_not_matter_and_the_last_one_counts() -> None:
    real, fake = features(101, 0), features(103, 1)
    assert score(real, fake, 7) == pytest.approx(score(real, fake, 103), abs=1e-10)
    assert score(real, fake, 100) != pytest.approx(score(real[:100], fake[:100], 100), abs=1e-4)


@pytest.mark.parametrize("count", [10, 1000])
def test_a_set_against_itself_is_zero(count: int) -> None:
    real = features(count, 0)
    assert abs(score(real, real.flip(0))) < 1e-4


def test_equals_the_formula_for_shifted_sets() -> None:
    real = features(200, 0)
    assert score(real, real + 0.5) == pytest.approx(SIZE * 0.25, abs=1e-4)


def test_large_offsets_do_not_cancel() -> None:
    real, fake = features(300, 0).double() + 1000, features(300, 1).double() + 1000
    assert score(real, fake) == pytest.approx(published(real, fake), rel=1e-4)
