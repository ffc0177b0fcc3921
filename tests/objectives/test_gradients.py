"""Backward passes that are written by hand, against autograd through torch's own distributions in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from lightning_genesis.layers.ic_sbp import _SquaredDistance
from lightning_genesis.objectives import gaussian_kl, mixture_nll, sampled_gaussian_kl


def compare(
    function: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: list[Tensor], tolerance: float
) -> None:
    """Gradients of a weighted sum, so that every output has a weight of its own."""

    def of(which: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        out = which(*leaves)
        weight = torch.linspace(-1.0, 2.0, out.numel(), dtype=dtype).view_as(out)
        return torch.autograd.grad((weight * out).sum(), leaves)

    for ours, expected in zip(of(function, torch.float32), of(exact, torch.float64), strict=True):
        assert expected.any()
        scale = float(expected.abs().max())
        assert float((ours.double() - expected).abs().max()) < tolerance * scale


def random(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("whole_pixels", [False, True])
@pytest.mark.parametrize("std", [0.7, 0.1])
def test_mixture(std: float, whole_pixels: bool) -> None:
    images = random(3, 3, 6, 6, seed=0)
    components, logits = random(3, 4, 3, 6, 6, seed=1), random(3, 4, 1, 6, 6, seed=2, low=-3.0, high=3.0)

    def exact(components: Tensor, log_masks: Tensor) -> Tensor:
        density = Normal(components, std).log_prob(images.unsqueeze(1))
        joint = log_masks + (density.sum(dim=2, keepdim=True) if whole_pixels else density)
        return -joint.logsumexp(dim=1).sum(dim=(1, 2, 3))

    def found(components: Tensor, log_masks: Tensor) -> Tensor:
        return mixture_nll(images, components, log_masks, std, whole_pixels=whole_pixels)

    compare(found, exact, [components, logits.log_softmax(dim=1)], 1e-4)


def gaussians() -> list[Tensor]:
    """Mean and scale of `q`, then of `p`, `[2, 3, 5]`."""
    mean, prior_mean = random(2, 3, 5, seed=3, low=-1.0), random(2, 3, 5, seed=4, low=-1.0)
    return [mean, random(2, 3, 5, seed=5, low=0.2), prior_mean, random(2, 3, 5, seed=6, low=0.2)]


def test_gaussian_kl() -> None:
    compare(
        gaussian_kl,
        lambda m, s, pm, ps: kl_divergence(Normal(m, s), Normal(pm, ps)).sum(-1),
        gaussians(),
        1e-5,
    )


def test_sampled_gaussian_kl() -> None:
    def exact(z: Tensor, m: Tensor, s: Tensor, pm: Tensor, ps: Tensor) -> Tensor:
        return (Normal(m, s).log_prob(z) - Normal(pm, ps).log_prob(z)).sum(-1)

    compare(sampled_gaussian_kl, exact, [random(2, 3, 5, seed=7, low=-1.0), *gaussians()], 1e-5)


def test_standard_normal_prior_is_broadcast() -> None:
    mean, scale, _, _ = gaussians()
    zero, one = torch.zeros(()), torch.ones(())
    compare(
        lambda m, s: gaussian_kl(m, s, zero, one),
        lambda m, s: kl_divergence(Normal(m, s), Normal(zero.double(), one.double())).sum(-1),
        [mean, scale],
        1e-5,
    )


def test_squared_distance() -> None:
    pixels, points = random(2, 4, 1, 9, seed=8), random(2, 4, 3, 1, seed=9)
    compare(_SquaredDistance.apply, lambda a, b: (a - b).square().sum(dim=1), [pixels, points], 1e-5)
