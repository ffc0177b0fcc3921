"""The VAEs that GENESIS is compared with: one latent for the whole image (GENESIS, Appendix B.3)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers import BroadcastDecoder, GatedDecoder, GatedEncoder
from lightning_genesis.layers.gated_conv import posterior_scale
from lightning_genesis.layers.weights import LowPrecision
from lightning_genesis.models.base import SceneModel
from lightning_genesis.models.contract import check_choice, check_sizes
from lightning_genesis.objectives import gaussian_kl, gaussian_nll, sampled_gaussian_kl
from lightning_genesis.precision import full_precision
from lightning_genesis.scene import Noise, Scene, Terms, draw_gaussian, draw_normal

DecoderName = Literal["broadcast", "deconv"]
Activation = Literal["sigmoid", "linear"]


class WideBroadcastDecoder(LowPrecision):
    """The broadcast decoder of GENESIS with twice the filters.

    Code and paper differ: it also has an ELU and a 1x1 convolution more than that of GENESIS.

    Args:
        latent_dim: size of the latent D.
        image_size: side S of the image.
    """

    def __init__(self, latent_dim: int, image_size: int) -> None:
        super().__init__()
        self.broadcast = BroadcastDecoder(latent_dim, 64, image_size, hidden_dim=64)
        self.output = nn.Conv2d(64, 3, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """Maps latents `[B, D]` to images `[B, 3, S, S]`, raw."""
        return self.output(nn.functional.elu(self.broadcast(latents)))


class VAENetwork(nn.Module):
    """Gated-convolution encoder without normalisation, and one of two decoders.

    Args: see `VAE`.
    """

    def __init__(
        self, image_size: int, decoder: DecoderName, latent_dim: int, component_activation: Activation
    ) -> None:
        super().__init__()
        self.component_activation = component_activation
        self.encoder = GatedEncoder(image_size)
        self.mean_head = nn.Linear(256, latent_dim)
        self.scale_head = nn.Linear(256, latent_dim)
        self.decoder: nn.Module
        if decoder == "deconv":
            self.decoder = GatedDecoder(latent_dim, 3, image_size)
        else:
            self.decoder = WideBroadcastDecoder(latent_dim, image_size)

    def infer(self, images: Tensor, noise: Noise | None) -> dict[str, Tensor]:
        """Posterior `mean`, `scale` and `sample`, each `[B, 1, D]`; draws noise `[B, 1, D]`."""
        features = self.encoder(images).float().unsqueeze(1)
        with full_precision(features):
            mean, scale = self.mean_head(features), posterior_scale(self.scale_head(features))
            return {"mean": mean, "scale": scale, "sample": draw_gaussian(noise, mean, scale)}

    def decode(self, latents: Tensor) -> Tensor:
        """Maps latents `[B, 1, D]` to images `[B, 1, 3, H, W]`."""
        raw = self.decoder(latents.squeeze(1)).float().unsqueeze(1)
        with full_precision(raw):
            return raw.sigmoid() if self.component_activation == "sigmoid" else raw

    def forward(self, images: Tensor, noise: Noise | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Inference and decoding in one compilable piece."""
        latents = self.infer(images, noise)
        return self.decode(latents["sample"]), latents


class VAE(SceneModel):
    """BD-VAE (`decoder="broadcast"`) or DC-VAE (`decoder="deconv"`): a scene of one slot, which has no mask.

    Where code and paper differ, the code made the published numbers and is followed: the BD-VAE's decoder has
    a 1x1 convolution and an ELU more than that of GENESIS, and the KL is one sample's estimate.

    Args:
        num_slots: of the data; taken because every model is built with it, and not used. The model has one
            slot, so segmentations are not scored.
        image_size: side of the images; 32, 64, 128 or 256 as published, or 96, which is ours.
        decoder: "broadcast" or "deconv".
        latent_dim: size of the latent D.
        component_activation: "sigmoid", or "linear" for images that may leave [0, 1].
        std: standard deviation σ of the likelihood.
        analytic_kl: closed form of the KL instead of one sample's estimate.
        common: the arguments of every model, of `SceneModel`.

    Raises:
        ConfigurationError: if a size or option does not fit the architecture.
    """

    branches = ("vae",)
    network: VAENetwork

    def __init__(
        self,
        num_slots: int = 1,
        image_size: int = 64,
        decoder: DecoderName = "broadcast",
        latent_dim: int = 64,
        component_activation: Activation = "sigmoid",
        std: float = 0.7,
        analytic_kl: bool = False,
        **common: Any,
    ) -> None:
        check_choice("decoder", decoder, ("broadcast", "deconv"))
        check_sizes(latent_dim=latent_dim)
        check_choice("component_activation", component_activation, ("sigmoid", "linear"))
        if not std > 0.0:
            raise ConfigurationError(f"std={std} is no standard deviation: use a positive number")
        # A checkpoint fits data of any number of slots.
        super().__init__(num_slots=1, image_size=image_size, **common)
        self.network = VAENetwork(image_size, decoder, latent_dim, component_activation)
        self.latent_dim, self.std, self.analytic_kl = latent_dim, std, analytic_kl

    def forward(self, images: Tensor, noise: Noise | None = None) -> Scene:
        """Encodes and decodes `images` `[B, 3, H, W]`.

        Draws standard normal noise `[B, 1, D]`. The latents of the Scene are `mean`, `scale` and `sample`,
        each `[B, 1, D]`.
        """
        run = self.network if noise is None else self.network.forward  # a compiled network knows no noise
        components, latents = run(images, noise)
        return _one_slot(components, latents)

    def encode(self, images: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """Posterior `mean`, `scale` and `sample`, each `[B, 1, D]`."""
        return self.network.infer(images, noise)

    def decode(self, latents: Tensor) -> Scene:
        """Scene of latents `[B, 1, D]`."""
        return _one_slot(self.network.decode(latents), {"sample": latents})

    def prior(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of the prior, a standard normal, each `[B, 1, D]`."""
        return torch.zeros_like(latents), torch.ones_like(latents)

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        """One branch: the Gaussian likelihood and the latent's KL."""
        return {"vae": Terms(self._nll(scene, images), {"latent": self._latent_kl(scene, self.analytic_kl)})}

    def elbo(self, scene: Scene, images: Tensor) -> Tensor:
        """Evidence lower bound, likelihood minus KL, nats per image `[B]`."""
        return -self._nll(scene, images) - self._latent_kl(scene, self.analytic_kl)

    def log_weight(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """`log p(x, z) - log q(z | x)` at one sample, nats per image `[B]`."""
        scene = self(images, noise)
        return -self._nll(scene, images) - self._latent_kl(scene, analytic=False)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
    ) -> Scene:
        """Images drawn from the prior.

        Args:
            num_images: how many.
            num_slots: 1 or None.
            temperature: factor on the scale of the latent.
            noise: draws `[num_images, 1, D]` from here.

        Raises:
            ConfigurationError: if it is asked for more than one slot.
        """
        if num_slots not in (None, 1):
            raise ConfigurationError(f"num_slots={num_slots}: a VAE has no masks; use 1")
        draws = draw_normal(noise, (num_images, 1, self.latent_dim), next(self.network.parameters()))
        return self.decode(temperature * draws)

    def _nll(self, scene: Scene, images: Tensor) -> Tensor:
        return gaussian_nll(images, scene.reconstruction, self.std)

    def _latent_kl(self, scene: Scene, analytic: bool) -> Tensor:
        mean, scale, sample = (scene.latents[name] for name in ("mean", "scale", "sample"))
        prior = self.prior(sample)
        if analytic:
            return gaussian_kl(mean, scale, *prior).sum(dim=1)
        return sampled_gaussian_kl(sample, mean, scale, *prior).sum(dim=1)


def _one_slot(components: Tensor, latents: dict[str, Tensor]) -> Scene:
    return Scene(components=components, log_masks=torch.zeros_like(components[:, :, :1]), latents=latents)
