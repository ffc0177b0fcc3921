"""Terms of what a network says in low precision, against float64 of the same numbers, where it is hard."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_genesis.layers.stick_breaking import stick_breaking
from lightning_genesis.objectives import (
    GECO,
    gaussian_kl,
    gaussian_nll,
    mask_kl,
    mixture_nll,
    sampled_gaussian_kl,
)
from lightning_genesis.scene import Terms

BOUND = 2e-6
"""Largest relative error of a term; sums over thousands of pixels come with about 1e-6 in float32."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]
INF = float("inf")


def in_autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype if dtype in HALVES else torch.bfloat16)


def check(
    function: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype
) -> None:
    """Compares values with float64 of the same rounded inputs, and asks that gradients are finite.

    Gradients are taken of the rounded inputs in float32, in which models hold posteriors and masks: those of
    a float16 tensor end at 65504, which is what a loss scale is for.
    """
    inputs = [x.to(dtype) for x in inputs]
    leaves = [x.detach().float().requires_grad_() for x in inputs]
    with in_autocast(dtype):
        found, single = function(*inputs), function(*leaves)
    assert found.dtype == torch.float32
    assert torch.equal(found, single)
    expected = exact(*(x.double() for x in inputs))
    assert expected.isfinite().all()
    # against the size of the tensor: one number near zero can be no more exact than the others
    assert float((found - expected).abs().max() / expected.abs().max()) <= BOUND
    single.sum().backward()
    for leaf in leaves:
        if leaf.grad is not None:
            assert leaf.grad.isfinite().all()


def pictures(num_slots: int, far: float, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images, and components up to `far` away from them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, size, size, generator=generator)
    distance = far * torch.rand(2, num_slots, 3, size, size, generator=generator)
    return images, images.unsqueeze(1) + distance


def log_masks_of(kind: str, num_slots: int, size: int = 16) -> Tensor:
    """Log-masks `[2, K, 1, S, S]`, normalised but for what rounding to float16 leaves."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, num_slots, 1, size, size, generator=generator)
    if kind == "sharp":  # down to -1e4
        logits = 1e4 * torch.rand(2, num_slots, 1, size, size, generator=generator)
    elif kind == "unused":
        logits[:, -2:] = -INF
    return logits.log_softmax(dim=1)


# ---------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["soft", "sharp", "unused"])
@pytest.mark.parametrize("std", [0.7, 0.1])
@pytest.mark.parametrize("far", [1.0, 5.0, 100.0])
def test_mixture(dtype: torch.dtype, kind: str, std: float, far: float) -> None:
    """Far apart, at σ = 0.1, the terms of the log-sum-exp go down to -5e5; no density survives `exp`."""
    images, components = pictures(5, far)

    def exact(images: Tensor, components: Tensor, log_masks: Tensor) -> Tensor:
        normal = torch.distributions.Normal(components, std)
        joint = log_masks + normal.log_prob(images.unsqueeze(1))
        return -joint.logsumexp(dim=1).sum(dim=(1, 2, 3))

    inputs = [images, components, log_masks_of(kind, 5)]
    check(lambda x, c, m: mixture_nll(x, c, m, std), exact, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("std", [0.7, 0.1])
@pytest.mark.parametrize("far", [1.0, 100.0])
def test_gaussian(dtype: torch.dtype, std: float, far: float) -> None:
    images, components = pictures(1, far)

    def exact(images: Tensor, mean: Tensor) -> Tensor:
        return -torch.distributions.Normal(mean, std).log_prob(images).sum(dim=(1, 2, 3))

    check(lambda x, mean: gaussian_nll(x, mean, std), exact, [images, components[:, 0]], dtype)


# ---------------------------------------------------------------- divergences


def gaussians(scale: tuple[float, float], prior_scale: tuple[float, float]) -> list[Tensor]:
    """Means and scales of `q` and `p`, `[4, 64]`; scales are uniform in their logarithm."""
    generator = torch.Generator().manual_seed(2)

    def between(low: float, high: float) -> Tensor:
        return low * (high / low) ** torch.rand(4, 64, generator=generator)

    mean, prior_mean = torch.randn(2, 4, 64, generator=generator)
    return [mean, between(*scale), prior_mean, between(*prior_scale)]


SCALES = [
    ((0.1, 1.0), (0.5, 1.0)),
    ((1e-6, 1e-4), (0.5, 1.0)),  # the posterior's scale is at least 1e-8, the prior's 1e-4
    ((1e2, 1e4), (0.5, 1.0)),
    ((1e-3, 1e-2), (1e-4, 1e-3)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "prior_scale"), SCALES)
def test_gaussian_kl(
    dtype: torch.dtype, scale: tuple[float, float], prior_scale: tuple[float, float]
) -> None:
    def exact(mean: Tensor, scale: Tensor, prior_mean: Tensor, prior_scale: Tensor) -> Tensor:
        normal = torch.distributions.Normal
        return torch.distributions.kl_divergence(normal(mean, scale), normal(prior_mean, prior_scale)).sum(-1)

    check(gaussian_kl, exact, gaussians(scale, prior_scale), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "prior_scale"), SCALES)
def test_sampled_gaussian_kl(
    dtype: torch.dtype, scale: tuple[float, float], prior_scale: tuple[float, float]
) -> None:
    """At samples five scales away, so that the difference of the two log-densities does not cancel."""
    mean, q_scale, prior_mean, p_scale = gaussians(scale, prior_scale)
    sample = mean + 5.0 * q_scale

    def exact(sample: Tensor, mean: Tensor, scale: Tensor, prior_mean: Tensor, prior_scale: Tensor) -> Tensor:
        normal = torch.distributions.Normal
        log_q = normal(mean, scale).log_prob(sample)
        return (log_q - normal(prior_mean, prior_scale).log_prob(sample)).sum(-1)

    check(sampled_gaussian_kl, exact, [sample, mean, q_scale, prior_mean, p_scale], dtype)


def test_kl_of_equal_gaussians_is_zero() -> None:
    mean, scale, _, _ = gaussians((1e-6, 1e4), (1.0, 1.0))
    assert gaussian_kl(mean, scale, mean, scale).abs().max() == 0.0
    assert sampled_gaussian_kl(mean + scale, mean, scale, mean, scale).abs().max() == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kinds", [("soft", "sharp"), ("sharp", "soft"), ("unused", "soft"), ("soft", "unused")]
)
def test_mask_kl(dtype: torch.dtype, kinds: tuple[str, str]) -> None:
    def exact(attention: Tensor, decoded: Tensor) -> Tensor:
        q, p = (x.exp().clamp_min(1e-5) for x in (attention, decoded))
        q, p = q / q.sum(1, keepdim=True), p / p.sum(1, keepdim=True)
        return (q * (q / p).log()).sum(dim=(1, 2, 3, 4))

    check(mask_kl, exact, [log_masks_of(kind, 5) for kind in kinds], dtype)


# ---------------------------------------------------------------- stick breaking


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1.0, 50.0, 2000.0])
def test_stick_breaking(dtype: torch.dtype, size: float) -> None:
    """Shares from almost all to almost none; log-masks go down to -1e4 and stay normalised."""
    logits = size * torch.randn(2, 6, 1, 8, 8, generator=torch.Generator().manual_seed(3))

    def exact(logits: Tensor) -> Tensor:
        # log sigmoid(x) = -log(1 + e^-x), by logaddexp, slot after slot
        zero, log_scope, masks = torch.zeros_like(logits[:, 0]), torch.zeros_like(logits[:, 0]), []
        for k in range(logits.shape[1] - 1):
            masks.append(log_scope - torch.logaddexp(zero, -logits[:, k]))
            log_scope = log_scope - torch.logaddexp(zero, logits[:, k])
        return torch.stack([*masks, log_scope], dim=1)

    rounded = logits.to(dtype).requires_grad_()
    with in_autocast(dtype):
        found = stick_breaking(rounded)
    expected = exact(rounded.detach().double())
    assert found.dtype == torch.float32
    # Absolute for small ones: a log-mask of -1e-20 is a mask of 1.
    assert float(((found - expected).abs() / expected.abs().clamp_min(1.0)).max()) <= BOUND
    assert float((found.exp().sum(dim=1) - 1.0).abs().max()) <= BOUND
    found.logsumexp(dim=1).sum().backward()
    assert rounded.grad is not None
    assert rounded.grad.isfinite().all()


# ---------------------------------------------------------------- objective


@pytest.mark.parametrize("dtype", DTYPES)
def test_geco(dtype: torch.dtype) -> None:
    """A thousand updates at the papers' settings against plain numbers: β to 1e-3, the average to 1e-5.

    β is a product of a thousand factors near 1, each rounded to float32.
    """
    objective = GECO()
    objective.bind(("branch",))
    beta, average, goal = 1.0, 0.0, 0.5655 * 12288
    errors = 6900.0 + 400.0 * torch.rand(1000, generator=torch.Generator().manual_seed(4))
    for step, error in enumerate(errors):
        terms = {"branch": Terms(error.repeat(2), {"latent": torch.tensor([300.0, 100.0])})}
        with in_autocast(dtype):
            loss = objective(terms, num_dimensions=12288)
            objective.update()
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(error) + beta * 200.0, rel=BOUND)
        average = float(error) if step == 0 else 0.99 * average + 0.01 * float(error)
        constraint = goal - average
        beta *= torch.tensor(1e-5 * constraint * (10.0 if constraint > 0 else 1.0)).double().exp().item()
    assert float(objective.average) == pytest.approx(average, rel=BOUND)
    assert float(objective.beta) == pytest.approx(beta, rel=1e-3)
    assert beta != pytest.approx(1.0, rel=0.1)
    assert {x.dtype for x in objective.buffers()} == {torch.float32}


@pytest.mark.parametrize("error", [1e38, INF, float("nan")])
@pytest.mark.parametrize("beta", [1e-10, 1.0, 1e10])
def test_state_of_geco_stays_finite(error: float, beta: float) -> None:
    objective = GECO(beta=beta)
    objective.bind(("branch",))
    for value in (7000.0, error, 7000.0):
        objective({"branch": Terms(torch.tensor([value]), {})}, num_dimensions=12288)
        objective.update()
    assert all(x.isfinite().all() for x in objective.buffers())
    assert objective.step == (3 if error == 1e38 else 2)


def test_the_comparison_can_fail() -> None:
    """The same in the low precision throughout would be far outside of the bound."""
    images, components = pictures(5, 5.0)
    inputs: list[Any] = [x.bfloat16() for x in (images, components, log_masks_of("soft", 5))]
    error = inputs[0].unsqueeze(1) - inputs[1]
    plain = -(inputs[2] - error.square() * 50.0).logsumexp(dim=1).sum(dim=(1, 2, 3))
    exact = (
        mixture_nll(*(x.float() for x in inputs), std=0.1, normalized=False) - images[0].numel() * -2.302585
    )
    assert float(((plain - exact) / exact).abs().max()) > 10.0 * BOUND
