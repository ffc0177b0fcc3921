"""Likelihoods against torch.distributions and plain sums in float64, and on inputs that underflow."""

import math

import pytest
import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import SRI, EfficientMORL, Genesis, GenesisV2, MONet, SceneModel
from lightning_genesis.objectives import gaussian_nll, mixture_nll
from tests.test_sampling import small


def scene(num_slots: int = 3, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, size, size, generator=generator)
    components = torch.rand(2, num_slots, 3, size, size, generator=generator)
    logits = torch.randn(2, num_slots, 1, size, size, generator=generator)
    return images, components, logits.log_softmax(dim=1)


@pytest.mark.parametrize("whole_pixels", [False, True])
@pytest.mark.parametrize("std", [0.7, 0.1])
@pytest.mark.parametrize("num_slots", [1, 3])
def test_mixture(std: float, num_slots: int, whole_pixels: bool) -> None:
    images, components, log_masks = (x.double() for x in scene(num_slots))
    density = torch.distributions.Normal(components, std).log_prob(images.unsqueeze(1)).exp()
    if whole_pixels:
        density = density.prod(dim=2, keepdim=True)
    joint = log_masks.exp() * density
    expected = -joint.sum(dim=1).log().sum(dim=(1, 2, 3))  # exponentiate, sum, logarithm, as published
    for scale in (std, torch.full((num_slots,), std)):  # MONet's is a tensor
        found = mixture_nll(images, components, log_masks, scale, whole_pixels=whole_pixels)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    without = mixture_nll(
        images, components, log_masks, std, normalized=False, whole_pixels=whole_pixels
    ).double()
    constant = images[0].numel() * 0.5 * math.log(2.0 * math.pi)
    torch.testing.assert_close(without + constant, expected, rtol=1e-5, atol=1e-4)


def test_black_and_white_explain_red_channel_by_channel() -> None:
    """Not as a whole pixel, which is either: half a chance per channel is log 2 each, then it is an error."""
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    grey = torch.stack([torch.zeros(3), torch.ones(3)]).reshape(1, 2, 3, 1, 1)
    halves = torch.full((1, 2, 1, 1, 1), math.log(0.5))
    std = 0.1
    found = [
        float(
            mixture_nll(red, grey, halves, std)
            - mixture_nll(red, red[:, None], torch.zeros(1, 1, 1, 1, 1), std)
        ),
        float(
            mixture_nll(red, grey, halves, std, whole_pixels=True)
            - mixture_nll(red, red[:, None], torch.zeros(1, 1, 1, 1, 1), std, whole_pixels=True)
        ),
    ]
    assert found == pytest.approx([3 * math.log(2.0), math.log(2.0) + 0.5 / std**2], rel=1e-4)


@pytest.mark.parametrize("std", [0.7, 0.1])
def test_gaussian(std: float) -> None:
    images, components, log_masks = scene()
    mean = (log_masks.exp() * components).sum(dim=1)
    normal = torch.distributions.Normal(mean.double(), std)
    expected = -normal.log_prob(images.double()).sum(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_nll(images, mean, std).double(), expected, rtol=1e-5, atol=1e-4)
    without = gaussian_nll(images, mean, std, normalized=False).double()
    squared = ((images - mean).double() ** 2).sum(dim=(1, 2, 3)) / (2.0 * std**2)
    expected_without = squared + images[0].numel() * math.log(std)
    torch.testing.assert_close(without, expected_without, rtol=1e-5, atol=1e-4)


def test_perfect_reconstruction_at_the_published_std() -> None:
    """0.562264 nats per dimension at σ = 0.7 (specification §5)."""
    images = torch.rand(1, 3, 8, 8)
    nll = mixture_nll(images, images.unsqueeze(1), torch.zeros(1, 1, 1, 8, 8), 0.7)
    assert nll.item() / images.numel() == pytest.approx(0.562264, abs=1e-6)


@pytest.mark.parametrize("std", [0.005, 0.05])
def test_mixture_where_densities_underflow(std: float) -> None:
    """Plain logsumexp in float64, pixel by pixel; the published form gives infinity here."""
    images = torch.zeros(1, 3, 2, 2)
    components = torch.ones(1, 2, 3, 2, 2).cumsum(dim=1) / 2.0  # errors 0.5 and 1
    log_masks = torch.tensor([-100.0, -math.exp(-100.0)]).reshape(1, 2, 1, 1, 1).expand(1, 2, 1, 2, 2)
    joint = [float(log_masks[0, k, 0, 0, 0]) - 0.5 * (0.5 * (k + 1) / std) ** 2 for k in range(2)]
    high = max(joint)
    log_density = high + math.log(sum(math.exp(value - high) for value in joint))
    constant = math.log(std) + 0.5 * math.log(2.0 * math.pi)
    found = mixture_nll(images, components, log_masks, std)
    assert found.item() == pytest.approx(12 * (constant - log_density), rel=1e-6)
    naive = (
        log_masks.exp() * torch.distributions.Normal(components, std).log_prob(0 * components).exp()
    ).sum(1)
    assert naive.log().isinf().any()


def test_slot_without_a_mask_changes_nothing() -> None:
    images, components, log_masks = scene(2)
    more = torch.cat([components, torch.rand(2, 1, 3, 4, 4)], dim=1).requires_grad_()
    log_more = torch.cat([log_masks, torch.full((2, 1, 1, 4, 4), float("-inf"))], dim=1)
    nll = mixture_nll(images, more, log_more, 0.7)
    torch.testing.assert_close(nll, mixture_nll(images, components, log_masks, 0.7))
    nll.sum().backward()
    assert more.grad is not None
    assert more.grad.isfinite().all()
    assert (more.grad[:, 2] == 0.0).all()


@pytest.mark.parametrize("kind", ["mixture", "gaussian"])
def test_gradient_by_finite_differences(kind: str) -> None:
    """In steps of 1e-3 on float32 values; what is summed is small, so the differences are exact enough."""
    images, components, log_masks = scene(2, 2)

    def value(x: Tensor) -> Tensor:
        if kind == "mixture":
            return mixture_nll(images, x, log_masks, 0.7, normalized=False).sum()
        return gaussian_nll(images, (log_masks.exp() * x).sum(dim=1), 0.7, normalized=False).sum()

    x = components.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    for position in range(0, components.numel(), 5):
        step = torch.zeros(components.numel())
        step[position] = 1e-2
        step = step.reshape(components.shape)
        slope = (value(components + step) - value(components - step)).double() / 2e-2
        assert gradient.flatten()[position].item() == pytest.approx(slope.item(), rel=1e-2, abs=2e-3)


def test_float32_under_autocast() -> None:
    images, components, log_masks = scene()
    expected = mixture_nll(images, components, log_masks, 0.7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixture_nll(images, components, log_masks, 0.7)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert mixture_nll(images.bfloat16(), components.bfloat16(), log_masks, 0.7).dtype == torch.float32
    assert gaussian_nll(images.bfloat16(), components[:, 0].bfloat16(), 0.7).dtype == torch.float32


@pytest.mark.parametrize("kind", [Genesis, GenesisV2, MONet, SRI, EfficientMORL])
def test_every_mixture_model_can_take_whole_pixels(kind: type[SceneModel]) -> None:
    """The last branch's error is that of the scene that the model returns, pixel by pixel."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    options = {"likelihood": "pixel_mixture", "std": 0.3}
    model = small(kind, **options)
    with torch.no_grad():
        scene = model(images)
        terms = model.loss_terms(scene, images)
    normal = torch.distributions.Normal(scene.components.double(), 0.3)
    joint = scene.log_masks[:, :, 0] + normal.log_prob(images.double().unsqueeze(1)).sum(dim=2)
    expected = -joint.logsumexp(dim=1).sum(dim=(1, 2))
    if kind is EfficientMORL:  # whose default is not normalised
        expected -= images[0].numel() * 0.5 * math.log(2.0 * math.pi)
    torch.testing.assert_close(list(terms.values())[-1].nll.double(), expected, rtol=1e-5, atol=1e-2)
    with pytest.raises(ConfigurationError, match="likelihood='pixels' is unknown"):
        small(kind, likelihood="pixels")
