"""Means of values per image, squared error and bits per dimension."""

from math import inf, log

import pytest
import torch

from lightning_genesis.metrics import MeanSquaredError, PerImageMean, bits_per_dimension, mean_squared_error


def test_every_image_weighs_the_same() -> None:
    metric = PerImageMean()
    metric.update(torch.tensor([1.0, 2.0, 3.0]))
    metric.update(torch.tensor([10]))
    assert metric.compute().item() == 4
    assert metric.compute().dtype == torch.float64
    assert metric.count.item() == 4
    assert metric.count.dtype == torch.int64


def test_sums_are_float64() -> None:
    metric = PerImageMean()
    metric.update(torch.tensor([2.0**25]))
    for _ in range(3):
        metric.update(torch.ones(1))
    assert metric.total.item() == 2**25 + 3


def test_a_cast_model_does_not_cast_the_sums() -> None:
    metric = PerImageMean().to(torch.bfloat16)
    metric.update(torch.tensor([1000.0, 1.0]))
    metric.update(torch.tensor([1.0]))
    assert metric.total.dtype == torch.float64
    assert metric.total.item() == 1002


@pytest.mark.parametrize("bad", [float("nan"), inf, -inf])
def test_non_finite_values_show(bad: float) -> None:
    metric = PerImageMean()
    metric.update(torch.tensor([1.0, bad]))
    metric.update(torch.tensor([1.0]))
    assert not metric.compute().isfinite()


def test_gradients_are_not_kept() -> None:
    metric = PerImageMean()
    metric.update(torch.ones(2, requires_grad=True) * 2)
    assert not metric.compute().requires_grad


@pytest.mark.parametrize("values", [torch.tensor(1.0), torch.ones(2, 1)])
def test_one_value_per_image_is_expected(values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"values: expected one per image, \[B\], got"):
        PerImageMean().update(values)


def test_bits_per_dimension() -> None:
    elbo = torch.tensor([-12 * log(2), 0.0, 6 * log(2)], dtype=torch.float64)
    torch.testing.assert_close(bits_per_dimension(elbo, 12), torch.tensor([1.0, 0.0, -0.5]).double())
    with pytest.raises(ValueError, match="num_dimensions: expected at least 1, got 0"):
        bits_per_dimension(elbo, 0)


@pytest.mark.parametrize(("elbo", "bits"), [(-7060.9, "0.829"), (-7019.0, "0.8241"), (-7082.0, "0.8315")])
def test_published_bits_per_dimension(elbo: float, bits: str) -> None:
    """Of SRI-G, GENESIS-V2 and GENESIS at 64 x 64.

    Source: specs/sri-emorl-slot-attention.md, Section 4.5.
    """
    found = bits_per_dimension(torch.tensor([elbo], dtype=torch.float64), 3 * 64**2).item()
    digits = len(bits.partition(".")[2])
    assert f"{found:.{digits}f}" == bits
    # and back: a unit of the last digit is some nats
    assert float(bits) * 3 * 64**2 * log(2) == pytest.approx(
        -elbo, abs=0.5 * 10**-digits * 3 * 64**2 * log(2)
    )


def test_squared_error_by_hand() -> None:
    image = torch.zeros(2, 3, 2, 2)
    reconstruction = image.clone()
    reconstruction[0] = 0.5
    reconstruction[1, 0, 0, 0] = 1
    error = mean_squared_error(reconstruction, image)
    assert error.tolist() == pytest.approx([0.25, 1 / 12])
    assert error.dtype == torch.float64
    metric = MeanSquaredError()
    metric.update(reconstruction[:1], image[:1])
    metric.update(reconstruction[1:], image[1:])
    assert metric.compute().item() == pytest.approx((0.25 + 1 / 12) / 2)
    assert metric.higher_is_better is False


def test_squared_error_refuses_other_shapes_and_bytes() -> None:
    with pytest.raises(ValueError, match=r"expected the same \[B, C, H, W\], got \[2, 3, 4, 4\] and \[1, 3"):
        mean_squared_error(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    with pytest.raises(TypeError, match=r"image: expected floating-point values, got torch.uint8"):
        mean_squared_error(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
