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


@pytest.mark.parametrize(("num_real", "num_fake"), [(500, 400), (2, 300), (20, 23)])
def test_equals_pytorch_fid(num_real: int, num_fake: int) -> None:
    """Also with fewer images than features, where the covariances are singular."""
    real, fake = features(num_real, 0), features(num_fake, 1)
    expected = published(real, fake)
    assert score(real, fake) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert expected > 0.1


def test_wide_features_with_few_images() -> None:
    real, fake = features(50, 0, 256), features(60, 1, 256)
    assert score(real, fake) == pytest.approx(published(real, fake), abs=0.05)


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
