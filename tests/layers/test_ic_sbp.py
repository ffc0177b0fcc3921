"""The IC-SBP against a plain reference that goes step by step, as the specification (§4) says it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers import InstanceColouringSBP, coordinate_grid
from lightning_genesis.layers.ic_sbp import clamp_straight_through, initial_kernel_width

KERNELS = ("gaussian", "laplacian", "epanechnikov")
SIZE = 12
THRESHOLDS = (1.5, 4.0, 8.0, 12.0, 30.0, 1e6)


def clamped(x: Tensor, low: float, high: float) -> Tensor:
    """Value of the clamp, gradient of the identity."""
    return x + (torch.clamp(x, low, high) - x).detach()


def reference(
    embeddings: Tensor,
    scores: Tensor,
    log_sigma: Tensor,
    kernel: str,
    num_slots: int,
    min_pixels: float = 0.0,
) -> list[Tensor]:
    """Log-masks of one image's embeddings `[E, S, S]` and scores `[S, S]`, one step after the other."""
    size = embeddings.shape[-1]
    log_scope, masks, sigma = torch.zeros_like(scores), [], log_sigma.exp()
    for _ in range(num_slots - 1):
        index = int((scores * log_scope.exp()).flatten().argmax())
        seed = embeddings[:, index // size, index % size]
        squared = ((embeddings - seed[:, None, None]) ** 2).sum(dim=0)
        if kernel == "gaussian":
            alpha = torch.exp(-squared / sigma)
        elif kernel == "laplacian":
            alpha = torch.exp(-torch.sqrt(clamped(squared, 1e-10, 1e10)) / sigma)
        else:
            alpha = torch.relu(1.0 - squared / sigma)
        alpha = clamped(alpha, 0.01, 0.99)
        log_mask = log_scope + torch.log(alpha)
        if log_mask.exp().sum() < min_pixels:
            break
        masks.append(log_mask)
        log_scope = log_scope + torch.log(1.0 - alpha)
    return [*masks, log_scope]


def make(kernel: str = "gaussian", num_slots: int = 5, **options: Any) -> InstanceColouringSBP:
    torch.manual_seed(0)
    layer = InstanceColouringSBP(4, num_slots, SIZE, kernel, **options)  # type: ignore[arg-type]
    if layer.gate is not None:
        torch.nn.init.constant_(layer.gate, 0.7)
    return layer.double()


def inputs(batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(batch, 4, SIZE, SIZE, generator=generator, dtype=torch.float64)
    scores = torch.rand(batch, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return features.requires_grad_(), scores


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("width", [0.3, 3.0, 30.0])
def test_masks_and_gradients(kernel: str, width: float) -> None:
    layer, (features, scores) = make(kernel), inputs()
    layer.log_sigma.data.fill_(width).log_()
    embeddings = layer.embed(features).detach().requires_grad_()
    layer.embed = lambda _: embeddings  # type: ignore[method-assign]
    found = layer(features, scores, 5).log_masks
    expected = torch.stack(
        [
            torch.stack(reference(e, s[0], layer.log_sigma, kernel, 5))
            for e, s in zip(embeddings, scores, strict=True)
        ]
    ).unsqueeze(2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(found)
    at = (embeddings, layer.log_sigma)
    found_gradients = torch.autograd.grad((weight * found).sum(), at)
    expected_gradients = torch.autograd.grad((weight * expected).sum(), at)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        assert other.abs().sum() > 0.0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("min_pixels", THRESHOLDS)
@torch.no_grad()
def test_stopping_early(kernel: str, min_pixels: float) -> None:
    layer, (features, scores) = make(kernel, 7), inputs(6)
    layer.log_sigma.fill_(0.5)
    embeddings = layer.embed(features)
    found = layer(features, scores, 7, min_pixels)
    for image in range(6):
        expected = reference(
            embeddings[image], scores[image, 0], layer.log_sigma, kernel, 7, min_pixels=min_pixels
        )
        assert found.num_active[image] == len(expected)
        torch.testing.assert_close(
            found.log_masks[image, : len(expected), 0], torch.stack(expected), rtol=1e-5, atol=1e-6
        )
        assert (found.log_masks[image, len(expected) :] == float("-inf")).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_thresholds_above_stop_at_different_steps(kernel: str) -> None:
    layer, (features, scores) = make(kernel, 7), inputs(6)
    layer.log_sigma.data.fill_(0.5)
    counts = [layer(features, scores, 7, threshold).num_active.tolist() for threshold in THRESHOLDS]
    assert len({count for row in counts for count in row}) > 3


@pytest.mark.parametrize("kernel", KERNELS)
def test_seed_pixel_and_leakage(kernel: str) -> None:
    """A seed's own pixel gets 0.99 of the scope, no pixel less than 0.01."""
    layer, (features, scores) = make(kernel), inputs()
    first = layer(features, scores, 5).log_masks[:, 0].flatten(1).exp()
    at_seed = first.gather(1, scores.flatten(1).argmax(dim=1, keepdim=True))
    torch.testing.assert_close(at_seed, torch.full_like(at_seed, 0.99), rtol=1e-4, atol=0.0)
    assert first.min() >= 0.01 * (1.0 - 1e-5)


def test_one_slot_is_everything() -> None:
    layer, (features, scores) = make(num_slots=1), inputs()
    assert torch.equal(layer(features, scores, 1).log_masks, torch.zeros(3, 1, 1, SIZE, SIZE).double())


def test_embeddings_start_as_coordinates() -> None:
    layer = InstanceColouringSBP(4, 5, SIZE)
    embeddings = layer.embed(torch.randn(2, 4, SIZE, SIZE))
    assert torch.equal(embeddings[:, :6], torch.zeros(2, 6, SIZE, SIZE))
    assert torch.equal(embeddings[1, 6:], coordinate_grid(SIZE))
    plain = InstanceColouringSBP(4, 5, SIZE, semi_convolutional=False)
    assert plain.gate is None
    features = torch.randn(2, 4, SIZE, SIZE)
    assert torch.equal(plain.embed(features), plain.embedding(features))


def test_only_learned_values_are_saved() -> None:
    assert set(InstanceColouringSBP(4, 5, SIZE).state_dict()) == {
        "log_sigma",
        "gate",
        "embedding.weight",
        "embedding.bias",
    }


def test_straight_through_clamp() -> None:
    x = torch.tensor([-2.0, 0.5, 3.0], requires_grad=True)
    y = clamp_straight_through(x, 0.0, 1.0)
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert y.tolist() == [0.0, 0.5, 1.0]
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("kernel", "log_width"), [("gaussian", -1.57940), ("laplacian", -0.60644), ("epanechnikov", -1.25276)]
)
def test_initial_width(kernel: str, log_width: float) -> None:
    width = initial_kernel_width(kernel, 7)  # type: ignore[arg-type]
    assert torch.tensor(width).log().item() == pytest.approx(log_width, abs=1e-4)


def test_unknown_kernel() -> None:
    with pytest.raises(ConfigurationError, match=r"kernel='cauchy'.*gaussian, laplacian, epanechnikov"):
        initial_kernel_width("cauchy", 7)  # type: ignore[arg-type]
