"""Divergences against torch.distributions in float64."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from lightning_genesis.objectives import gaussian_kl, mask_kl, sampled_gaussian_kl, sampled_kl_to_standard


def gaussians() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample, mean, prior_mean = (torch.randn(2, 4, 5, generator=generator) for _ in range(3))
    scale, prior_scale = (torch.rand(2, 4, 5, generator=generator) + 0.1 for _ in range(2))
    return sample, mean, scale, prior_mean, prior_scale


def test_sampled() -> None:
    sample, mean, scale, prior_mean, prior_scale = gaussians()
    log_q = Normal(mean.double(), scale.double()).log_prob(sample.double())
    log_p = Normal(prior_mean.double(), prior_scale.double()).log_prob(sample.double())
    found = sampled_gaussian_kl(sample, mean, scale, prior_mean, prior_scale)
    assert found.shape == (2, 4)
    torch.testing.assert_close(found.double(), (log_q - log_p).sum(dim=-1), rtol=1e-4, atol=1e-4)


def test_closed_form() -> None:
    _, mean, scale, prior_mean, prior_scale = gaussians()
    expected = kl_divergence(
        Normal(mean.double(), scale.double()), Normal(prior_mean.double(), prior_scale.double())
    ).sum(dim=-1)
    found = gaussian_kl(mean, scale, prior_mean, prior_scale)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert gaussian_kl(mean, scale, mean, scale).abs().max() < 1e-6


def test_closed_form_by_hand() -> None:
    """KL(N(1, 2) || N(0, 1)) = ½ (4 + 1 - 1 - ln 4)."""
    one, two = torch.ones(1), torch.full((1,), 2.0)
    assert gaussian_kl(one, two, 0 * one, one).item() == pytest.approx(0.5 * (4.0 - 1.3862944))


def test_sampled_to_standard() -> None:
    """Values of the general one, and gradients by finite differences."""
    arguments = [x.double().requires_grad_() for x in gaussians()[:3]]
    mean = arguments[1]
    expected = sampled_gaussian_kl(*arguments, torch.zeros_like(mean), torch.ones_like(mean)).sum(dim=1)
    torch.testing.assert_close(sampled_kl_to_standard(*arguments), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(sampled_kl_to_standard, arguments)


def test_mask_gradients_by_finite_differences() -> None:
    """Some masks are below the cut."""
    generator = torch.Generator().manual_seed(1)
    logits = [4.0 * torch.randn(2, 4, 1, 3, 3, generator=generator).double() for _ in range(2)]
    assert min(float(x.log_softmax(dim=1).min()) for x in logits) < -11.6

    def value(q: Tensor, p: Tensor) -> Tensor:
        return mask_kl(q.log_softmax(dim=1), p.log_softmax(dim=1))

    # mask_kl is computed in float32: a step that is large against its rounding
    leaves = [x.requires_grad_() for x in logits]
    found = torch.autograd.grad(value(*leaves).sum(), leaves)
    for leaf, gradient in zip(leaves, found, strict=True):
        direction = torch.randn(leaf.shape, generator=generator).double()
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                leaf += sign * 1e-2 * direction
                ends.append(float(value(*leaves).double().sum()))
                leaf -= sign * 1e-2 * direction
        expected = (ends[0] - ends[1]) / 2e-2
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("position", range(5))
def test_sampled_gradients_by_finite_differences(position: int) -> None:
    arguments = [x.double() for x in gaussians()]

    def value(x: Tensor) -> Tensor:
        return sampled_gaussian_kl(*(x if i == position else a for i, a in enumerate(arguments))).sum()

    assert torch.autograd.gradcheck(value, arguments[position].clone().requires_grad_())


@pytest.mark.parametrize("sharpness", [0.1, 3.0, 30.0])
def test_masks(sharpness: float) -> None:
    """Cut at 1e-5 and normalised; at the sharpest, most entries are at the cut."""
    generator = torch.Generator().manual_seed(0)
    q, p = (sharpness * torch.randn(2, 5, 1, 6, 6, generator=generator) for _ in range(2))
    log_q, log_p = q.log_softmax(dim=1), p.log_softmax(dim=1)

    def categorical(log_masks: Tensor) -> Categorical:
        masks = log_masks.double().exp().clamp_min(1e-5).squeeze(2).movedim(1, -1)
        return Categorical(probs=masks)  # normalises

    expected = kl_divergence(categorical(log_q), categorical(log_p)).sum(dim=(1, 2))
    torch.testing.assert_close(mask_kl(log_q, log_p).double(), expected, rtol=1e-4, atol=1e-4)
    assert mask_kl(log_q, log_q).abs().max() == 0.0


def test_masks_of_slots_not_in_use_are_finite() -> None:
    log_masks = torch.zeros(1, 3, 1, 2, 2).log_softmax(dim=1)
    masked = log_masks.clone()
    masked[:, 2] = float("-inf")
    masked = masked.requires_grad_()
    value = mask_kl(masked, log_masks)
    value.sum().backward()
    assert value.isfinite().all()
    assert masked.grad is not None
    assert masked.grad.isfinite().all()


def test_mask_gradient_reaches_both_sides() -> None:
    q, p = (torch.randn(1, 3, 1, 4, 4).log_softmax(dim=1).requires_grad_() for _ in range(2))
    mask_kl(q, p).sum().backward()
    for masks in (q, p):
        assert masks.grad is not None
        assert masks.grad.abs().sum() > 0.0


def test_float32_under_autocast() -> None:
    arguments = gaussians()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sampled_gaussian_kl(*arguments), sampled_gaussian_kl(*arguments).float())
        assert gaussian_kl(*arguments[1:]).dtype == torch.float32
        assert (
            mask_kl(torch.zeros(1, 2, 1, 2, 2).bfloat16(), torch.zeros(1, 2, 1, 2, 2)).dtype == torch.float32
        )
