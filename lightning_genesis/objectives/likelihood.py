"""Likelihoods of an image under a scene, float32 whatever the autocast, in nats per image."""

from math import log, pi
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.precision import full_precision
from lightning_genesis.scene import Scene

Likelihood = Literal["mixture", "pixel_mixture", "gaussian"]


def _log_normaliser(std: float, normalized: bool) -> float:
    """`log σ`, plus `log √2π` for a density that integrates to one."""
    return log(std) + (0.5 * log(2.0 * pi) if normalized else 0.0)


def mixture_nll(
    images: Tensor,
    components: Tensor,
    log_masks: Tensor,
    std: float | Tensor,
    normalized: bool = True,
    whole_pixels: bool = False,
) -> Tensor:
    """Negative log-likelihood of a pixel-wise Gaussian mixture (GENESIS-V2, Equation 1), `[B]`.

    Each colour channel of a pixel is a mixture of its own; the channels share the mask. The published code
    exponentiates, sums and takes the logarithm, which underflows for small `std`; the log-sum-exp here is
    the same number without that.

    With `whole_pixels` all channels of a pixel come from the same slot, as MONet's and IODINE's equations
    read and as GENESIS's Equation 3 can be read. The published code of no model here has it. With one mixture
    per channel a black and a white slot together explain every saturated colour, at log 2 nats per channel.

    Args:
        images: `[B, 3, H, W]`.
        components: means of the slots, `[B, K, 3, H, W]`.
        log_masks: mixing log-probabilities, `[B, K, 1, H, W]`.
        std: standard deviation σ of every component, or of each slot's `[K]` (MONet).
        normalized: include the `log √2π` of the normal density; goals below `log σ + 0.919` per dimension
            can only be reached without it (SRI, Appendix A.4.2).
        whole_pixels: one mixture per pixel instead of one per pixel and channel.
    """
    constant = _log_normaliser(1.0 if isinstance(std, Tensor) else std, normalized) * images[0].numel()
    with full_precision(images):
        images, components, log_masks = images.float().unsqueeze(1), components.float(), log_masks.float()
        if isinstance(std, Tensor):
            std = std[:, None, None, None]
            log_density = -std.log() - (images - components).square() * (0.5 / std**2)
            if whole_pixels:
                log_density = log_density.sum(dim=2, keepdim=True)
            return constant - (log_masks + log_density).logsumexp(dim=1).sum(dim=(1, 2, 3))
        nll: Tensor = _MixtureNLL.apply(  # type: ignore[no-untyped-call]
            images, components, log_masks, std, constant, whole_pixels
        )
        return nll


class _MixtureNLL(torch.autograd.Function):
    """`constant - Σ log Σ_k exp(log m_k - (x - c_k)² / 2σ²)`; nothing flows to the images.

    Backward by hand: the largest tensors of a model are here, and autograd would go over them twice as often.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        components: Tensor,
        log_masks: Tensor,
        std: float,
        constant: float,
        whole_pixels: bool,
    ) -> Tensor:
        error = components - images
        ctx.save_for_backward(error, log_masks)
        ctx.precision, ctx.whole_pixels = 1.0 / std**2, whole_pixels
        log_joint = _log_joint(error, log_masks, ctx.precision, whole_pixels)
        return constant - log_joint.logsumexp(dim=1).sum(dim=(1, 2, 3))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        error, log_masks = ctx.saved_tensors
        weight = ctx.precision * gradients[0][:, None, None, None, None]
        log_joint = _log_joint(error, log_masks, ctx.precision, ctx.whole_pixels)
        responsibility = log_joint.softmax(dim=1).mul_(weight)
        of_masks = responsibility.sum(dim=2, keepdim=True).mul_(-1.0 / ctx.precision)
        # One responsibility per channel has the size of the error, whose place the result can take.
        of_components = responsibility * error if ctx.whole_pixels else responsibility.mul_(error)
        return None, of_components, of_masks, None, None, None


def _log_joint(error: Tensor, log_masks: Tensor, precision: float, whole_pixels: bool) -> Tensor:
    """Of slot and colour: `[B, K, 3, H, W]`, or `[B, K, 1, H, W]` of whole pixels."""
    if whole_pixels:
        squared = error.square().sum(dim=2, keepdim=True)
        return torch.add(log_masks, squared, alpha=-0.5 * precision)
    return torch.addcmul(log_masks, error, error, value=-0.5 * precision)


def gaussian_nll(images: Tensor, reconstruction: Tensor, std: float, normalized: bool = True) -> Tensor:
    """Negative log-likelihood of one Gaussian around the reconstruction (SRI, Section 3, Equation 3), `[B]`.

    Args:
        images: `[B, 3, H, W]`.
        reconstruction: mean of the mixture, `[B, 3, H, W]`.
        std: standard deviation σ.
        normalized: include the `log √2π` of the normal density.
    """
    with full_precision(images):
        squared = (images.float() - reconstruction.float()).square().sum(dim=(1, 2, 3))
        return squared * (0.5 / std**2) + _log_normaliser(std, normalized) * images[0].numel()


def check_likelihood(likelihood: str, std: float) -> None:
    """Refuses what `scene_nll` does not know.

    Raises:
        ConfigurationError: if there is no such likelihood, or `std` is not positive.
    """
    if likelihood not in get_args(Likelihood):
        known = ", ".join(map(repr, get_args(Likelihood)))
        raise ConfigurationError(f"likelihood={likelihood!r} is unknown: use one of {known}")
    if not std > 0.0:
        raise ConfigurationError(f"std={std} is no standard deviation: use a positive number")


def scene_nll(images: Tensor, scene: Scene, likelihood: Likelihood, std: float, normalized: bool) -> Tensor:
    """`mixture_nll` of a scene's slots, or `gaussian_nll` of its reconstruction; see there, `[B]`."""
    if likelihood == "gaussian":
        return gaussian_nll(images, scene.reconstruction, std, normalized)
    whole_pixels = likelihood == "pixel_mixture"
    return mixture_nll(images, scene.components, scene.log_masks, std, normalized, whole_pixels)
