"""Kullback-Leibler divergences between Gaussians and between masks, float32, in nats."""

import torch
from torch import Tensor

from lightning_genesis.precision import full_precision


def _at_least_float32(*tensors: Tensor) -> list[Tensor]:
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


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
        sample, mean, scale = _at_least_float32(sample, mean, scale)
        prior_mean, prior_scale = _at_least_float32(prior_mean, prior_scale)
        posterior = ((sample - mean) / scale).square() * 0.5 + scale.log()
        prior = ((sample - prior_mean) / prior_scale).square() * 0.5 + prior_scale.log()
        return (prior - posterior).sum(dim=-1)


def gaussian_kl(mean: Tensor, scale: Tensor, prior_mean: Tensor, prior_scale: Tensor) -> Tensor:
    """`KL(q || p)` of diagonal Gaussians in closed form, summed over the last axis; see above for shapes."""
    with full_precision(mean):
        mean, scale, prior_mean, prior_scale = _at_least_float32(mean, scale, prior_mean, prior_scale)
        ratio = (scale / prior_scale).square()
        shift = ((mean - prior_mean) / prior_scale).square()
        return 0.5 * (ratio + shift - 1.0 - ratio.log()).sum(dim=-1)


def mask_kl(attention_log_masks: Tensor, log_masks: Tensor) -> Tensor:
    """KL from decoded to attention masks, summed over pixels: MONet's mask term, GENESIS-V2's consistency.

    Both are cut at 1e-5 and normalised again before, as in the published code.

    Args:
        attention_log_masks: masks `q` of the inference network, `[B, K, 1, H, W]`.
        log_masks: decoded masks `p`, `[B, K, 1, H, W]`.

    Returns:
        nats per image, `[B]`.
    """

    def probabilities(log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
        masks = log_probabilities.float().exp().clamp_min(1e-5)
        masks = masks / masks.sum(dim=1, keepdim=True)
        epsilon = torch.finfo(masks.dtype).eps
        return masks, masks.clamp(epsilon, 1.0 - epsilon).log()

    with full_precision(log_masks):
        q, log_q = probabilities(attention_log_masks)
        _, log_p = probabilities(log_masks)
        return (q * (log_q - log_p)).sum(dim=(1, 2, 3, 4))
