"""Against a plain double loop, and torchmetrics' class with the whole set as its one subset."""

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance as TorchmetricsKID

from lightning_genesis.metrics import kid
from lightning_genesis.metrics.kid import KernelInceptionDistance, kernel_inception_distance
from tests.metrics.test_fid import features


def plain(real: Tensor, fake: Tensor) -> float:
    def mean(x: Tensor, y: Tensor, same: bool) -> float:
        values = [
            (float(a @ b) / len(a) + 1) ** 3
            for i, a in enumerate(x)
            for j, b in enumerate(y)
            if not (same and i == j)
        ]
        return sum(values) / len(values)

    real, fake = real.double(), fake.double()
    return mean(real, real, True) + mean(fake, fake, True) - 2 * mean(real, fake, False)


def table(real: Tensor, fake: Tensor, batch_size: int) -> KernelInceptionDistance:
    metric = KernelInceptionDistance(len(real), real.shape[1])
    for x, is_real in ((real, True), (fake, False)):
        for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(batch_size):
            metric.update(x[rows], rows, real=is_real)
    return metric


def test_equals_a_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = features(23, 0), features(17, 1)
    expected = plain(real, fake)
    for rows in (5, 1000):
        monkeypatch.setattr(kid, "ROWS_AT_ONCE", rows)
        assert float(kernel_inception_distance(real, fake)) == pytest.approx(expected, rel=1e-9)


def test_equals_torchmetrics() -> None:
    real, fake = features(60, 0), features(60, 1)
    given = nn.Flatten()
    given.num_features = real.shape[1]
    other = TorchmetricsKID(feature=given, subsets=1, subset_size=60)
    other.update(real, real=True)
    other.update(fake, real=False)
    expected = float(other.compute()[0])
    assert float(kernel_inception_distance(real, fake)) == pytest.approx(expected, rel=1e-3)


def test_batches_and_their_order_do_not_matter() -> None:
    real, fake = features(31, 0), features(31, 1)
    expected = kernel_inception_distance(real, fake)
    assert torch.equal(table(real, fake, 4).compute(), expected)
    assert torch.equal(table(real, fake, 31).compute(), expected)


def test_is_unbiased() -> None:
    """Two draws of one distribution: zero on average, unlike FID."""
    values = torch.stack(
        [kernel_inception_distance(features(40, 2 * s), features(40, 2 * s + 200)) for s in range(40)]
    )
    assert abs(values.mean()) < 3 * values.std() / 40**0.5
    assert (values < 0).any()


def test_missing_images_are_an_error() -> None:
    metric = KernelInceptionDistance(10, 24)
    metric.update(features(9, 0), torch.arange(9), real=True)
    with pytest.raises(ValueError, match="got 9 real and 0 fake"):
        metric.compute()


def test_one_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="two images or more"):
        kernel_inception_distance(features(1, 0), features(5, 1))
