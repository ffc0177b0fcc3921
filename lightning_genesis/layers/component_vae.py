"""The VAE of one slot that MONet and GENESIS share (MONet, Burgess et al., 2019, Appendix B.1)."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.broadcast import Activation, BroadcastDecoder
from lightning_genesis.layers.weights import LowPrecisionSequential
from lightning_genesis.precision import full_precision


class ComponentEncoder(LowPrecisionSequential):
    """Layers over `(log m_k, x)` of every slot, the first of them a convolution.

    The first convolution is that of the log-mask plus that of the image, which is computed once per image
    instead of once per slot.
    """

    def forward(self, images: Tensor, log_masks: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Maps images `[B, 3, H, W]` and log-masks `[B, K, 1, H, W]`, or both as `[B, 4, H, W]`."""
        if log_masks is None:
            return super().forward(images)
        first, *rest = self
        assert isinstance(first, nn.Conv2d)
        of_mask, of_image = first.weight.split((1, 3), dim=1)
        maps = F.conv2d(log_masks.flatten(0, 1), of_mask, stride=2, padding=1)
        maps = maps.unflatten(0, log_masks.shape[:2])
        x = maps + F.conv2d(images, of_image, first.bias, stride=2, padding=1).unsqueeze(1)
        x = x.flatten(0, 1)
        for layer in rest:
            x = layer(x)
        return x


class ComponentVAE(nn.Module):
    """Encodes an image and a slot's log-mask to a Gaussian, and decodes latents with a broadcast decoder.

    Where code and paper differ, the code is followed: the scale is `softplus(x + 0.5) + 1e-8`, and the
    log-mask goes in as it is, neither exponentiated nor clamped nor detached.

    Args:
        latent_dim: size of a slot's latent D.
        out_channels: channels O of the decoder: 3, and one more for a mask logit (MONet).
        image_size: side of the images S, a multiple of 16.
        activation: class of all activations: ELU in GENESIS, ReLU in MONet.
        feature_dim: channels c of the encoder's first two layers; its last two have `2 c`.
        decoder_dim: channels of the decoder; c if None.

    Raises:
        ConfigurationError: if a size does not fit.
    """

    def __init__(
        self,
        latent_dim: int,
        out_channels: int,
        image_size: int,
        activation: Activation = nn.ELU,
        feature_dim: int = 32,
        decoder_dim: int | None = None,
    ) -> None:
        super().__init__()
        if image_size < 16 or image_size % 16:
            raise ConfigurationError(
                f"image_size={image_size} does not fit the component VAE, which halves the side four times: "
                f"use a multiple of 16"
            )
        if latent_dim < 1:
            raise ConfigurationError(f"latent_dim={latent_dim} is too small: use at least 1")
        widths = (4, feature_dim, feature_dim, 2 * feature_dim, 2 * feature_dim)
        layers: list[nn.Module] = []
        for channels_in, channels_out in pairwise(widths):
            layers += [nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1), activation(inplace=True)]
        hidden_dim = max(256, 2 * latent_dim)
        self.encoder = ComponentEncoder(
            *layers,
            nn.Flatten(),
            nn.Linear(widths[-1] * (image_size // 16) ** 2, hidden_dim),
            activation(inplace=True),
            nn.Linear(hidden_dim, 2 * latent_dim),
        )
        self.decoder = BroadcastDecoder(
            latent_dim, out_channels, image_size, decoder_dim or feature_dim, activation=activation
        )

    def encode(self, images: Tensor, log_masks: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of every slot.

        Args:
            images: `[B, 3, H, W]`.
            log_masks: `[B, K, 1, H, W]`.

        Returns:
            mean and scale, float32, each `[B, K, D]`.
        """
        raw = self.encoder(images, log_masks).float().unflatten(0, log_masks.shape[:2])
        with full_precision(raw):
            mean, scale = raw.chunk(2, dim=2)
            return mean, F.softplus(scale + 0.5) + 1e-8

    def decode(self, latents: Tensor) -> Tensor:
        """Maps latents `[B, K, D]` to `[B, K, O, H, W]`, raw, float32."""
        return self.decoder(latents.flatten(0, 1)).float().unflatten(0, latents.shape[:2])
