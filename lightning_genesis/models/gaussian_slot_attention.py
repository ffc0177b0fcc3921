"""Slot Attention whose slots are Gaussian: the encoder of SRI-SA* (SRI, Section 5.2), unpublished as code."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.gaussian import softplus_scale
from lightning_genesis.layers.slot_attention import ENCODER_STRIDES, PixelEncoder, SlotAttentionModule
from lightning_genesis.layers.slot_mixture_decoder import Activation, GenesisV2Decoder
from lightning_genesis.models.base import SceneModel
from lightning_genesis.models.contract import check_sizes
from lightning_genesis.models.genesis_v2 import Posterior, check_architecture
from lightning_genesis.objectives import (
    Likelihood,
    check_likelihood,
    sampled_kl_to_standard,
    scene_nll,
)
from lightning_genesis.precision import full_precision
from lightning_genesis.scene import Noise, Scene, Terms, draw_gaussian, draw_normal


class GaussianSlotAttentionNetwork(PixelEncoder):
    """Encoder, Slot Attention, posterior and decoder.

    Args: see `GaussianSlotAttention`.
    """

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        latent_dim: int,
        feature_dim: int,
        mlp_dim: int,
        num_iterations: int,
        encoder_stages: int,
        decoder_stages: int,
        decoder_norm: bool,
        component_activation: Activation,
    ) -> None:
        super().__init__(image_size, feature_dim, encoder_stages, "emorl")
        self.num_iterations = num_iterations
        self.attention = SlotAttentionModule(feature_dim, latent_dim, mlp_dim, epsilon=1e-5)
        self.initial_slots = nn.Parameter(torch.randn(1, num_slots, 2 * latent_dim))
        """Mean and raw scale that each slot starts from."""
        with torch.no_grad():
            self.initial_slots[..., latent_dim:] = 1.0
        self.head = nn.Linear(latent_dim, 2 * latent_dim)
        self.make_decoder = partial(
            GenesisV2Decoder,
            image_size,
            latent_dim,
            feature_dim,
            decoder_stages,
            decoder_norm,
            component_activation,
        )
        self.decoder = self.make_decoder()

    def infer(self, images: Tensor, noise: Noise | None) -> tuple[Posterior, Tensor]:
        """Posterior of every slot and attention log-masks; draws noise `[B, K, D]` twice."""
        mean, raw = self.initial_slots.chunk(2, dim=2)
        shape = (len(images), *mean.shape[1:])
        start = torch.addcmul(mean, softplus_scale(raw), draw_normal(noise, shape, mean))
        slots, log_attention = self.attention(self.pixels(images), start, self.num_iterations)
        with full_precision(slots):
            mean, raw = self.head(slots).chunk(2, dim=2)
            scale = softplus_scale(raw)
            sample = draw_gaussian(noise, mean, scale)
        return Posterior(mean, scale, sample), self.masks(log_attention, images)

    def forward(self, images: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor, Posterior, Tensor]:
        """Inference and decoding in one compilable piece."""
        posterior, attention = self.infer(images, noise)
        return *self.decoder.decode(posterior.sample), posterior, attention


class GaussianSlotAttention(SceneModel):
    """Slot Attention with an initial Gaussian of its own for every slot, and a Gaussian posterior after it.

    Each slot learns where it starts, so its index is its order (SRI, Section 5.2); a linear layer maps what
    it ends with to mean and scale. The paper says no more. Chosen here: convolutions, positions and number of
    iterations of Slot Attention as in EfficientMORL's repository, inputs normalised; the scale of SRI's other
    Gaussians; GENESIS-V2's decoder, as "all else" is that of SRI-MoG; a standard normal prior for each slot
    where it is trained with a loss of its own.

    Args:
        num_slots: number of slots K; part of the weights.
        image_size: side of the images.
        latent_dim: size of a slot D.
        feature_dim: width of encoder and decoder, a multiple of 8.
        mlp_dim: width of the residual MLP of the slots.
        num_iterations: of the attention.
        encoder_stages: times the encoder halves the image, 0 to 3.
        decoder_stages: see `GenesisV2`.
        decoder_norm: see `GenesisV2`.
        component_activation: see `GenesisV2`.
        likelihood: see `GenesisV2`.
        std: see `GenesisV2`.
        normalized_likelihood: see `GenesisV2`.
        common: the arguments of every model, of `SceneModel`.

    Raises:
        ConfigurationError: if a size or option does not fit the architecture.
    """

    branches = ("gaussian_slot_attention",)
    network: GaussianSlotAttentionNetwork

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        latent_dim: int = 64,
        feature_dim: int = 64,
        mlp_dim: int = 128,
        num_iterations: int = 3,
        encoder_stages: int = 0,
        decoder_stages: int = 4,
        decoder_norm: bool = True,
        component_activation: Activation = "sigmoid",
        likelihood: Likelihood = "mixture",
        std: float = 0.7,
        normalized_likelihood: bool = True,
        **common: Any,
    ) -> None:
        check_architecture(num_slots, image_size, latent_dim, feature_dim, decoder_stages)
        check_likelihood(likelihood, std)
        if encoder_stages not in ENCODER_STRIDES:
            known = ", ".join(map(str, ENCODER_STRIDES))
            raise ConfigurationError(f"encoder_stages={encoder_stages!r} is unknown: use one of {known}")
        check_sizes(num_iterations=num_iterations)
        super().__init__(num_slots=num_slots, image_size=image_size, **common)
        self.network = GaussianSlotAttentionNetwork(
            num_slots,
            image_size,
            latent_dim,
            feature_dim,
            mlp_dim,
            num_iterations,
            encoder_stages,
            decoder_stages,
            decoder_norm,
            component_activation,
        )
        self.latent_dim, self.likelihood, self.std = latent_dim, likelihood, std
        self.normalized_likelihood = normalized_likelihood

    def forward(self, images: Tensor, noise: Noise | None = None) -> Scene:
        """Infers and decodes the slots of `images` `[B, 3, H, W]`.

        Draws standard normal noise `[B, K, D]` of the initial slots, then as much of the posterior's. The
        latents of the Scene are `mean`, `scale` and `sample`, each `[B, K, D]`.
        """
        run = self.network if noise is None else self.network.forward  # a compiled network knows no noise
        components, log_masks, posterior, attention = run(images, noise)
        return Scene(
            components=components,
            log_masks=log_masks,
            attention_log_masks=attention,
            latents=posterior._asdict(),
        )

    def encode(self, images: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """Posterior `mean`, `scale` and `sample` of every slot, each `[B, K, D]`."""
        return self.network.infer(images, noise)[0]._asdict()

    def decode(self, latents: Tensor) -> Scene:
        """Scene of latents `[B, K, D]`; any number of slots."""
        components, log_masks = self.network.decoder.decode(latents)
        return Scene(components=components, log_masks=log_masks, latents={"sample": latents})

    def make_decoder(self) -> GenesisV2Decoder:
        """A new decoder like the model's own, freshly initialised, for SRI."""
        return self.network.make_decoder()

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        """One branch: the likelihood and the KL of the slots from standard normals."""
        nll = scene_nll(images, scene, self.likelihood, self.std, self.normalized_likelihood)
        return {self.branches[0]: Terms(nll, {"latent": self._kl(scene)})}

    def elbo(self, scene: Scene, images: Tensor) -> Tensor:
        """Evidence lower bound, normalised likelihood minus the KL, nats per image `[B]`."""
        return -scene_nll(images, scene, self.likelihood, self.std, normalized=True) - self._kl(scene)

    def _kl(self, scene: Scene) -> Tensor:
        mean, scale, sample = (scene.latents[name] for name in ("mean", "scale", "sample"))
        return sampled_kl_to_standard(sample, mean, scale)
