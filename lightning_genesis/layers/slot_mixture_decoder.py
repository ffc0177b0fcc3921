"""The decoder of GENESIS-V2 and of the models that build on it: every slot on its own, masks by a softmax."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.broadcast import TransposedConvDecoder
from lightning_genesis.precision import full_precision

Activation = Literal["sigmoid", "linear"]


class GenesisV2Decoder(TransposedConvDecoder):
    """Decodes every slot on its own into components and masks.

    Args: see `GenesisV2`.
    """

    def __init__(
        self,
        image_size: int,
        latent_dim: int,
        feature_dim: int,
        decoder_stages: int,
        decoder_norm: bool,
        component_activation: Activation,
        decoder_dims: Sequence[int] | None = None,
    ) -> None:
        if component_activation not in ("sigmoid", "linear"):
            raise ConfigurationError(
                f"component_activation={component_activation!r} is unknown: use 'sigmoid' or 'linear'"
            )
        super().__init__(latent_dim, 4, image_size, decoder_dims or feature_dim, decoder_stages, decoder_norm)
        self.component_activation = component_activation

    def decode(self, latents: Tensor, num_active: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Components `[B, K, 3, H, W]` and log-masks `[B, K, 1, H, W]` of latents `[B, K, D]`.

        Slots not in use get no mask, so an image's result does not depend on its neighbours in the batch.
        """
        decoded = self(latents.flatten(0, 1)).float().unflatten(0, latents.shape[:2])
        with full_precision(decoded):
            components, logits = decoded.split((3, 1), dim=2)
            if self.component_activation == "sigmoid":
                components = components.sigmoid()
            if num_active is not None:
                logits = logits.masked_fill(
                    ~used_slots(num_active, latents)[..., None, None, None], -torch.inf
                )
            return components, logits.log_softmax(dim=1)


def used_slots(num_active: Tensor, latents: Tensor) -> Tensor:
    """Which of the slots of `latents` `[B, K, D]` are in use, bool `[B, K]`."""
    return torch.arange(latents.shape[1], device=latents.device) < num_active.unsqueeze(1)
