"""MONet.

Burgess et al.: "MONet: Unsupervised Scene Decomposition and Representation", arXiv 1901.11390, 2019; and
MONet-G, the same model trained with GECO (Engelcke et al., "GENESIS-V2", NeurIPS 2021).
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers import ComponentVAE, UNet
from lightning_genesis.layers.stick_breaking import break_off, stick_breaking
from lightning_genesis.layers.unet import num_unet_blocks
from lightning_genesis.layers.weights import LowPrecisionConv2d, repeated
from lightning_genesis.models.base import SceneModel
from lightning_genesis.models.contract import check_choice, check_sizes
from lightning_genesis.objectives import (
    gaussian_kl,
    mask_kl,
    mixture_nll,
    sampled_kl_to_standard,
)
from lightning_genesis.precision import full_precision
from lightning_genesis.scene import Noise, Scene, Terms, draw_gaussian, draw_normal

Activation = Literal["sigmoid", "linear"]
MaskPrior = Literal["softmax", "scope"]


class RecurrentAttention(nn.Module):
    """Masks one after the other: a UNet sees the image and what is left of it (MONet, Section 2.2).

    Args:
        image_size: side of the images.
        width: channels of the UNet's outer blocks.
    """

    def __init__(self, image_size: int, width: int = 32) -> None:
        super().__init__()
        # A group per channel is instance normalisation; torch's own of that name takes twice the kernels.
        self.unet = UNet(4, width, image_size, lambda channels: nn.GroupNorm(channels, channels))
        self.logit = LowPrecisionConv2d(width, 1, 1)

    def forward(self, images: Tensor, num_slots: int) -> Tensor:
        """Log-masks of images `[B, 3, S, S]`, float32 `[B, K, 1, S, S]`.

        Every step needs the scope that the step before it left, so `K - 1` passes follow each other.
        """
        seen = F.pad(images.float(), (0, 0, 0, 0, 0, 1))  # all is left at first: the log-scope is 0
        log_scope = seen[:, -1:]
        log_masks: list[Tensor] = []
        weights = repeated(self)
        for _ in range(num_slots - 1):
            if log_masks:
                seen = torch.cat([images, log_scope], dim=1)
            with weights():
                logits = self.logit(self.unet(seen))
            log_mask, log_scope = break_off(logits, log_scope)
            log_masks.append(log_mask)
        return torch.stack([*log_masks, log_scope], dim=1)


class MONetNetwork(nn.Module):
    """Attention, then the component VAE of every slot, with the slots folded into the batch.

    Args: see `MONet`.
    """

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        latent_dim: int,
        mask_prior: MaskPrior,
        component_activation: Activation,
        feature_dim: int,
        encoder_dim: int | None,
        decoder_dim: int | None,
    ) -> None:
        super().__init__()
        self.mask_prior, self.component_activation = mask_prior, component_activation
        self.attention = RecurrentAttention(image_size, feature_dim) if num_slots > 1 else None
        self.component_vae = ComponentVAE(
            latent_dim, 4, image_size, nn.ReLU, encoder_dim or feature_dim, decoder_dim or feature_dim
        )

    def infer(self, images: Tensor, noise: Noise | None, num_slots: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Attention masks `[B, K, 1, H, W]` and posterior of every slot; draws noise `[B, K, D]`."""
        if self.attention is None:
            log_masks = torch.zeros_like(images[:, None, :1], dtype=torch.float32)
        else:
            log_masks = self.attention(images, num_slots)
        mean, scale = self.component_vae.encode(images, log_masks)
        with full_precision(mean):
            sample = draw_gaussian(noise, mean, scale)
        return log_masks, {"mean": mean, "scale": scale, "sample": sample}

    def decode(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Components `[B, K, 3, H, W]` and decoded log-masks `[B, K, 1, H, W]` of latents `[B, K, D]`."""
        decoded = self.component_vae.decode(latents)
        with full_precision(decoded):
            components, logits = decoded.split((3, 1), dim=2)
            if self.component_activation == "sigmoid":
                components = components.sigmoid()
            log_masks = stick_breaking(logits) if self.mask_prior == "scope" else logits.log_softmax(dim=1)
            return components, log_masks

    def forward(
        self, images: Tensor, noise: Noise | None, num_slots: int
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Inference and decoding in one compilable piece."""
        attention_log_masks, latents = self.infer(images, noise, num_slots)
        components, decoded_log_masks = self.decode(latents["sample"])
        return components, decoded_log_masks, attention_log_masks, latents


class MONet(SceneModel):
    """MONet: a recurrent attention network cuts the image up, a VAE explains every piece and its shape.

    The defaults are MONet-G. The original MONet is `objective: FixedBeta(beta=0.5)`, `std: 0.11`,
    `background_std: 0.09`, `optimizer: RMSprop`; a fixed β weighs the latents' and the masks' KL alike, so
    β = γ. Where code and paper differ, the code of GENESIS-V2 made the published numbers and is followed:
    the KL of the latents is one sample's estimate, components go through a sigmoid, and decoded masks are
    normalised by a softmax; see `docs/models/monet.md`.

    The model has two sets of masks. The likelihood and the reconstruction mix components by the attention
    masks, which are the Scene's `log_masks` and its `attention_log_masks`; its `decoded_log_masks` are what
    the VAE makes of them. Samples, the ELBO and `log_weight` use the decoded ones: they alone are part of the
    generative model.

    Args:
        num_slots: number of slots K; the attention network runs K - 1 times.
        image_size: side of the images; 32, 48, 64, 80, 96, 112, 128, ...
        latent_dim: size of a slot's latent D.
        likelihood: "mixture", or "pixel_mixture" of whole pixels; see `GenesisV2`.
        std: standard deviation σ of the likelihood.
        background_std: that of the first slot, if it has one of its own.
        mask_prior: how decoded mask logits become masks: "softmax" over slots, or "scope" for stick breaking.
        analytic_kl: closed form of each slot's KL instead of one sample's estimate.
        component_activation: "sigmoid", or "linear" for components that may leave [0, 1].
        feature_dim: channels of the outer convolutions, the inner ones have twice as many; 32 in the paper,
            the quickstart has fewer.
        encoder_dim: those of the component VAE's encoder, if it has others.
        decoder_dim: those of its decoder, if it has others.
        common: the arguments of every model, of `SceneModel`.

    Raises:
        ConfigurationError: if a size or option does not fit the architecture.
    """

    branches = ("monet",)
    network: MONetNetwork
    slot_std: Tensor | None

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        latent_dim: int = 16,
        likelihood: Literal["mixture", "pixel_mixture"] = "mixture",
        std: float = 0.7,
        background_std: float | None = None,
        mask_prior: MaskPrior = "softmax",
        analytic_kl: bool = False,
        component_activation: Activation = "sigmoid",
        feature_dim: int = 32,
        encoder_dim: int | None = None,
        decoder_dim: int | None = None,
        **common: Any,
    ) -> None:
        check_sizes(
            num_slots=num_slots,
            feature_dim=feature_dim,
            encoder_dim=encoder_dim,
            decoder_dim=decoder_dim,
        )
        _check_options(image_size, std, background_std, mask_prior, component_activation)
        check_choice("likelihood", likelihood, ("mixture", "pixel_mixture"))
        super().__init__(num_slots=num_slots, image_size=image_size, **common)
        self.network = MONetNetwork(
            num_slots,
            image_size,
            latent_dim,
            mask_prior,
            component_activation,
            feature_dim,
            encoder_dim,
            decoder_dim,
        )
        self.latent_dim, self.analytic_kl = latent_dim, analytic_kl
        self.likelihood, self.std = likelihood, std
        self.slots_in_order = mask_prior == "scope" or background_std is not None
        slot_std = None
        if background_std is not None:
            slot_std = torch.tensor([background_std] + [std] * (num_slots - 1))
        # Not part of a checkpoint: it follows from the options.
        self.register_buffer("slot_std", slot_std, persistent=False)

    def forward(self, images: Tensor, noise: Noise | None = None) -> Scene:
        """Infers and decodes the slots of `images` `[B, 3, H, W]`.

        Draws standard normal noise `[B, K, D]`. The latents of the Scene are `mean`, `scale` and `sample`,
        each `[B, K, D]`.
        """
        run = self.network if noise is None else self.network.forward  # a compiled network knows no noise
        components, decoded, attention, latents = run(images, noise, self.num_slots)
        return Scene(
            components=components,
            log_masks=attention,
            attention_log_masks=attention,
            decoded_log_masks=decoded,
            latents=latents,
        )

    def encode(self, images: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """Posterior `mean`, `scale` and `sample` of every slot, each `[B, K, D]`."""
        return self.network.infer(images, noise, self.num_slots)[1]

    def decode(self, latents: Tensor) -> Scene:
        """Scene of latents `[B, K, D]`, mixed by the decoded masks; any number of slots."""
        components, log_masks = self.network.decode(latents)
        return Scene(components=components, log_masks=log_masks, latents={"sample": latents})

    def prior(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of the prior at latents `[B, K, D]`, each `[B, K, D]`: a standard normal."""
        return torch.zeros_like(latents), torch.ones_like(latents)

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        """One branch: the likelihood under the attention masks, the latents' KL and the masks' KL.

        The masks' KL, from decoded to attention masks, trains both (MONet, Equation 3).
        """
        kl = {
            "latent": self._latent_kl(scene, self.analytic_kl),
            "mask": mask_kl(scene.log_masks, scene.log_masks_of("decoded")),
        }
        return {"monet": Terms(self._nll(scene.components, scene.log_masks, images), kl)}

    def elbo(self, scene: Scene, images: Tensor) -> Tensor:
        """Evidence lower bound, nats per image `[B]`: with the decoded masks and without their KL.

        So GENESIS-V2's footnote 2 computes it for its Table 3, since the attention masks know the image. What
        is trained, `nll + KLs` of `loss_terms`, is logged beside it.
        """
        return self._log_likelihood(scene, images) - self._latent_kl(scene, self.analytic_kl)

    def log_weight(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """`log p(x, z) - log q(z | x)` at one sample, with the decoded masks, nats per image `[B]`."""
        scene = self(images, noise)
        return self._log_likelihood(scene, images) - self._latent_kl(scene, analytic=False)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
    ) -> Scene:
        """Scenes drawn from the prior, mixed by the decoded masks.

        Args:
            num_images: how many.
            num_slots: slots of each; may differ from the number trained with.
            temperature: factor on the scale of every latent.
            noise: draws `[num_images, K, D]` from here.
        """
        like = self.network.component_vae.decoder.grid
        shape = (num_images, num_slots or self.num_slots, self.latent_dim)
        return self.decode(temperature * draw_normal(noise, shape, like))

    def _nll(self, components: Tensor, log_masks: Tensor, images: Tensor) -> Tensor:
        std = self.std if self.slot_std is None else self.slot_std
        return mixture_nll(
            images, components, log_masks, std, whole_pixels=self.likelihood == "pixel_mixture"
        )

    def _log_likelihood(self, scene: Scene, images: Tensor) -> Tensor:
        """Under the generative model, whose masks are the decoded ones."""
        return -self._nll(scene.components, scene.log_masks_of("decoded"), images)

    def _latent_kl(self, scene: Scene, analytic: bool) -> Tensor:
        mean, scale, sample = (scene.latents[name] for name in ("mean", "scale", "sample"))
        if analytic:
            return gaussian_kl(mean, scale, *self.prior(mean)).sum(dim=1)
        return sampled_kl_to_standard(sample, mean, scale)


def _check_options(
    image_size: int,
    std: float,
    background_std: float | None,
    mask_prior: str,
    component_activation: str,
) -> None:
    num_unet_blocks(image_size)
    for name, scale in (("std", std), ("background_std", background_std)):
        if scale is not None and not scale > 0.0:
            raise ConfigurationError(f"{name}={scale} is no standard deviation: use a positive number")
    if mask_prior not in ("softmax", "scope"):
        raise ConfigurationError(f"mask_prior={mask_prior!r} is unknown: use 'softmax' or 'scope'")
    check_choice("component_activation", component_activation, ("sigmoid", "linear"))
