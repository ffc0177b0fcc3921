"""Gated convolutions, and encoder and decoder made of them (van den Berg et al., 2018)."""

from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.weights import LowPrecision
from lightning_genesis.precision import full_precision

NormName = Literal["batch", "instance", "none"]
STRIDES = {
    32: (1, 2, 1, 2, 1),
    64: (1, 2, 1, 2, 1),
    96: (1, 2, 1, 2, 1),
    128: (2, 2, 2, 1, 1),
    256: (2, 2, 2, 2, 1),
}
"""Strides of the encoder by side of the image; the decoder has them in reverse."""


def gated_strides(image_size: int) -> tuple[tuple[int, ...], int]:
    """Strides for images of a side, and the side they leave, which the innermost kernel covers as a whole.

    32, 64, 128 and 256 are the published sizes. 96 is ours, with the strides of 64 and a kernel of 24.

    Raises:
        ConfigurationError: for another side.
    """
    if image_size not in STRIDES:
        sizes = ", ".join(map(str, STRIDES))
        raise ConfigurationError(f"image_size={image_size} does not fit the gated convolutions: use {sizes}")
    return STRIDES[image_size], image_size // prod(STRIDES[image_size])


def posterior_scale(raw: Tensor) -> Tensor:
    """Scale `softplus(x + 0.5) + 1e-8` of a posterior, which the paper does not give."""
    return F.softplus(raw + 0.5) + 1e-8


def _norm(name: NormName, channels: int) -> nn.Module:
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    if name == "none":
        return nn.Identity()
    raise ConfigurationError(f"norm={name!r} is unknown: use 'batch', 'instance' or 'none'")


class GatedConv(nn.Module):
    """`norm(value) · sigmoid(norm(gate))`, with value and gate from one convolution (GENESIS, Appendix B.1).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; the convolution has twice as many.
        kernel_size: side of the kernel.
        stride: factor by which the side shrinks or, transposed, grows if it is padded by `kernel_size // 2`.
        padding: of the convolution.
        norm: "batch", "instance" or "none"; value and gate have one each.
        transposed: convolve the other way round.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        norm: NormName = "none",
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.conv: nn.Module
        if transposed:
            self.conv = nn.ConvTranspose2d(
                in_channels, 2 * out_channels, kernel_size, stride, padding, output_padding=stride - 1
            )
        else:
            self.conv = nn.Conv2d(in_channels, 2 * out_channels, kernel_size, stride, padding)
        self.value_norm, self.gate_norm = _norm(norm, out_channels), _norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, in_channels, H, W]` to `[N, out_channels, H', W']`."""
        both = self.conv(x)
        if not self.training and isinstance(self.value_norm, nn.BatchNorm2d):
            value, gate = both.chunk(2, dim=1)
            return self.value_norm(value) * self.gate_norm(gate).sigmoid()
        return F.glu(self._normalised(both), dim=1)

    def _normalised(self, both: Tensor) -> Tensor:
        """Value and gate, each with its own normalisation, in one: channels do not see each other."""
        norms: Any = (self.value_norm, self.gate_norm)
        if isinstance(self.value_norm, nn.Identity):
            return both
        weight = torch.cat([norm.weight for norm in norms])
        bias = torch.cat([norm.bias for norm in norms])
        if isinstance(self.value_norm, nn.InstanceNorm2d):
            return F.instance_norm(both, weight=weight, bias=bias, eps=norms[0].eps)
        # `num_batches_tracked` stays: with a fixed momentum nothing reads it
        kept = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
        running = torch.cat([x.detach() for x in kept])
        mean, variance = running.chunk(2)
        both = F.batch_norm(both, mean, variance, weight, bias, True, norms[0].momentum, norms[0].eps)
        with torch.no_grad():
            torch._foreach_copy_(kept, list(running.split(len(norms[0].weight))))
        return both


class GatedEncoder(LowPrecision):
    """Five gated convolutions and one over all that is left of the map (GENESIS, Appendix B.1).

    Code and paper differ: what the paper calls fully connected is a gated convolution without normalisation,
    whose kernel covers the map.

    Args:
        image_size: side of the images, one of `STRIDES`.
        norm: of all layers but the last.
        in_channels: channels of the images.
        out_channels: size of the features.
        feature_dim: channels c of the first two layers; the next three have `2 c`.

    Raises:
        ConfigurationError: if the size does not fit.
    """

    def __init__(
        self,
        image_size: int,
        norm: NormName = "none",
        in_channels: int = 3,
        out_channels: int = 256,
        feature_dim: int = 32,
    ) -> None:
        super().__init__()
        strides, side = gated_strides(image_size)
        widths = (in_channels, *[feature_dim] * 2, *[2 * feature_dim] * 3)
        layers = [
            GatedConv(widths[i], widths[i + 1], 5, stride, padding=2, norm=norm)
            for i, stride in enumerate(strides)
        ]
        self.layers = nn.Sequential(*layers, GatedConv(widths[-1], out_channels, side))

    def forward(self, images: Tensor) -> Tensor:
        """Maps `[N, in_channels, S, S]` to features `[N, out_channels]`."""
        return self.layers(images).flatten(1)


class GatedDecoder(LowPrecision):
    """The encoder in reverse, from a latent to an image (GENESIS, Appendix B.1).

    Args:
        latent_dim: size of a latent D.
        out_channels: channels O of the output.
        image_size: side S of the output, one of `STRIDES`.
        norm: of all gated layers but the first.
        feature_dim: channels c of the last four gated layers; the first two have `2 c`.

    Raises:
        ConfigurationError: if the size does not fit.
    """

    def __init__(
        self,
        latent_dim: int,
        out_channels: int,
        image_size: int,
        norm: NormName = "none",
        feature_dim: int = 32,
    ) -> None:
        super().__init__()
        strides, side = gated_strides(image_size)
        widths = (*[2 * feature_dim] * 2, *[feature_dim] * 4)
        layers = [
            GatedConv(widths[i], widths[i + 1], 5, stride, padding=2, norm=norm, transposed=True)
            for i, stride in enumerate(reversed(strides))
        ]
        self.layers = nn.Sequential(GatedConv(latent_dim, widths[0], side, transposed=True), *layers)
        self.output = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """Maps latents `[N, D]` to images `[N, O, S, S]`, raw."""
        return self.output(self.layers(latents[:, :, None, None]))


class GatedComponentVAE(nn.Module):
    """The VAE of one slot with encoder and decoder alike; an option of the published code, not in the paper.

    The published one has the strides of 64 px throughout and fails at 128 and 256 px; here they follow the
    size, as those of the mask VAE do.

    Args:
        latent_dim: size of a slot's latent D.
        out_channels: channels O of the decoder.
        image_size: side S of the images, one of `STRIDES`.
        norm: of the gated convolutions; batch normalisation mixes slots and images.
        feature_dim: channels of encoder and decoder, as theirs.

    Raises:
        ConfigurationError: if the size does not fit.
    """

    def __init__(
        self, latent_dim: int, out_channels: int, image_size: int, norm: NormName, feature_dim: int = 32
    ) -> None:
        super().__init__()
        self.encoder = GatedEncoder(image_size, norm, 4, 2 * latent_dim, feature_dim)
        self.decoder = GatedDecoder(latent_dim, out_channels, image_size, norm, feature_dim)

    def encode(self, images: Tensor, log_masks: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale, float32 `[B, K, D]`, of images `[B, 3, S, S]` and log-masks `[B, K, 1, S, S]`."""
        copies = images.unsqueeze(1).expand(-1, log_masks.shape[1], -1, -1, -1)
        raw = self.encoder(torch.cat([log_masks, copies], dim=2).flatten(0, 1))
        with full_precision(raw):
            mean, scale = raw.float().unflatten(0, log_masks.shape[:2]).chunk(2, dim=2)
            return mean, posterior_scale(scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Maps latents `[B, K, D]` to `[B, K, O, S, S]`, raw, float32."""
        return self.decoder(latents.flatten(0, 1)).float().unflatten(0, latents.shape[:2])
