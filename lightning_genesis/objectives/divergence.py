"""Kullback-Leibler divergences between Gaussians and between masks, float32, in nats."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_genesis.precision import full_precision


def _at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float32 or better, all of one shape."""
    return torch.broadcast_tensors(*(x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors))


def sampled_gaussian_kl(
    sample: Tensor, mean: Tensor, scale: Tensor, prior_mean: Tensor, prior_scale: Tensor
) -> Tensor:
    """`log q(z) - log p(z)` at one sample of `q`, summed over the last axis.

    An unbiased estimate of the KL that all three papers train with; it can be negative.

    Args:
        sample: draw `z` from `q`, `[..., D]`.
        mean: mean of `q`, `[..., D]`.
        scale: standard deviation of `q`, `[..., D]`.
        prior_mean: mean of `p`, `[..., D]`.
        prior_scale: standard deviation of `p`, `[..., D]`.
    """
    with full_precision(sample):
        values = _at_least_float32(sample, mean, scale, prior_mean, prior_scale)
        return _SampledKL.apply(*values)  # type: ignore[no-untyped-call]


class _SampledKL(torch.autograd.Function):
    """See above. Prior and posterior lie side by side, as half the kernels do for both."""

    @staticmethod
    def forward(
        ctx: Any, sample: Tensor, mean: Tensor, scale: Tensor, prior_mean: Tensor, prior_scale: Tensor
    ) -> Tensor:
        scales = torch.stack([prior_scale, scale])
        error = (sample - torch.stack([prior_mean, mean])) / scales
        ctx.save_for_backward(error, scales)
        prior, posterior = torch.addcmul(scales.log(), error, error, value=0.5).unbind()
        return (prior - posterior).sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        error, scales = ctx.saved_tensors
        gradient = gradients[0].unsqueeze(-1)
        per_scale = torch.stack([gradient, -gradient]) / scales
        of_error = per_scale * error
        of_prior_scale, of_scale = torch.addcmul(per_scale, of_error, error, value=-1.0).unbind()
        of_prior_mean, of_mean = (-of_error).unbind()
        return of_error.sum(dim=0), of_mean, of_scale, of_prior_mean, of_prior_scale


def sampled_kl_to_standard(sample: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """`sampled_gaussian_kl` to a standard normal, summed over slots too, `[B]` of `[B, K, D]` each."""
    with full_precision(sample):
        return _StandardKL.apply(*_at_least_float32(sample, mean, scale))  # type: ignore[no-untyped-call]


class _StandardKL(torch.autograd.Function):
    """See above."""

    @staticmethod
    def forward(ctx: Any, sample: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        error = (sample - mean) / scale
        ctx.save_for_backward(sample, error, scale)
        negative = torch.addcmul(scale.log(), error, error, value=0.5)
        return torch.addcmul(negative, sample, sample, value=-0.5).sum(dim=(1, 2)).neg()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        sample, error, scale = ctx.saved_tensors
        gradient = gradients[0][:, None, None]
        per_scale = gradient.neg() / scale
        against_mean = per_scale * error
        of_scale = torch.addcmul(per_scale, against_mean, error, value=-1.0)
        return torch.addcmul(against_mean, gradient, sample), against_mean.neg(), of_scale


def gaussian_kl(mean: Tensor, scale: Tensor, prior_mean: Tensor, prior_scale: Tensor) -> Tensor:
    """`KL(q || p)` of diagonal Gaussians in closed form, summed over the last axis; see above for shapes."""
    with full_precision(mean):
        values = _at_least_float32(mean, scale, prior_mean, prior_scale)
        return _GaussianKL.apply(*values)  # type: ignore[no-untyped-call]


class _GaussianKL(torch.autograd.Function):
    """See above. The two quotients lie side by side, as half the kernels do for both."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, scale: Tensor, prior_mean: Tensor, prior_scale: Tensor) -> Tensor:
        quotients = torch.stack([scale, mean - prior_mean]) / prior_scale
        ctx.save_for_backward(quotients, scale, prior_scale)
        excess = quotients.square().sum(dim=0) - 1.0
        return torch.add(-0.5 * excess, quotients[0].log()).sum(dim=-1).neg()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        quotients, scale, prior_scale = ctx.saved_tensors
        gradient = gradients[0].unsqueeze(-1)
        per_scale = gradient / prior_scale
        of_scale, of_mean = (quotients * per_scale).unbind()
        of_prior_scale = per_scale * (1.0 - quotients.square().sum(dim=0))
        return of_mean, of_scale - gradient / scale, -of_mean, of_prior_scale


def mask_kl(attention_log_masks: Tensor, log_masks: Tensor) -> Tensor:
    """KL from decoded to attention masks, summed over pixels: MONet's mask term, GENESIS-V2's consistency.

    Both are cut at 1e-5 and normalised again before, as in the published code.

    Args:
        attention_log_masks: masks `q` of the inference network, `[B, K, 1, H, W]`.
        log_masks: decoded masks `p`, `[B, K, 1, H, W]`.

    Returns:
        nats per image, `[B]`.
    """
    with full_precision(log_masks):
        both = torch.stack([attention_log_masks.float(), log_masks.float()])
        return _MaskKL.apply(both)  # type: ignore[no-untyped-call]


class _MaskKL(torch.autograd.Function):
    """See above. Backward by hand, as autograd takes half as many kernels again, on large tensors."""

    LEAST = 1e-5

    @staticmethod
    def forward(ctx: Any, log_masks: Tensor) -> Tensor:
        before = log_masks.exp()
        cut = F.hardtanh(before, _MaskKL.LEAST, torch.inf)
        total = cut.sum(dim=2, keepdim=True)
        masks = cut / total
        epsilon = torch.finfo(masks.dtype).eps
        logs = F.hardtanh(masks, epsilon, 1.0 - epsilon).log()
        difference = logs[0] - logs[1]
        ctx.save_for_backward(before, masks, difference)
        return (masks[0] * difference).sum(dim=(1, 2, 3, 4))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        before, masks, difference = ctx.saved_tensors
        epsilon = torch.finfo(masks.dtype).eps
        # with the masks within the second cut, outside of which the gradient is 0, the cut mask is the mask
        ratio = torch.ops.aten.hardtanh_backward(masks[0] / masks, masks, epsilon, 1.0 - epsilon)
        ratio[0].add_(difference)
        ratio[1].neg_()
        weighted = ratio * masks
        # as of a softmax: before over total is the mask, but where it was cut, and there the gradient is 0
        of_log = torch.addcmul(weighted, masks, weighted.sum(dim=2, keepdim=True), value=-1.0)
        of_log.mul_(gradients[0][:, None, None, None, None])
        return torch.ops.aten.hardtanh_backward(of_log, before, _MaskKL.LEAST, torch.inf)
