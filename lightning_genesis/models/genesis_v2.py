"""GENESIS-V2.

Engelcke, Parker Jones, Posner: "GENESIS-V2: Inferring Unordered Object Representations without Iterative
Refinement", NeurIPS 2021.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers import AutoregressivePrior, InstanceColouringSBP, UNet
from lightning_genesis.layers.broadcast import coordinate_grid
from lightning_genesis.layers.ic_sbp import Colouring, KernelName
from lightning_genesis.layers.slot_mixture_decoder import Activation, GenesisV2Decoder, used_slots
from lightning_genesis.layers.unet import num_unet_blocks
from lightning_genesis.layers.weights import LowPrecisionSequential
from lightning_genesis.models.base import SceneModel
from lightning_genesis.models.contract import check_sizes
from lightning_genesis.objectives import (
    Likelihood,
    check_likelihood,
    gaussian_kl,
    mask_kl,
    sampled_gaussian_kl,
    scene_nll,
)
from lightning_genesis.precision import full_precision
from lightning_genesis.scene import Noise, Scene, Terms, draw_gaussian, draw_normal, draw_uniform

MaskStart = Literal["start", "goal"]


class Posterior(NamedTuple):
    """Gaussian posterior of every slot, with a sample, each `[B, K, D]`."""

    mean: Tensor
    scale: Tensor
    sample: Tensor


class GenesisV2Network(nn.Module):
    """Encoder, IC-SBP, posterior and decoder; the slots are folded into the batch throughout.

    Args: see `GenesisV2`.
    """

    coordinates: Tensor | None

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        latent_dim: int,
        feature_dim: int,
        backbone_dim: int,
        kernel: KernelName,
        semi_convolutional: bool,
        coordinate_scale: float,
        posterior_bias: float | None,
        decoder_stages: int,
        decoder_norm: bool,
        component_activation: Activation,
        decoder_dims: Sequence[int] | None,
    ) -> None:
        super().__init__()

        def group_norm(channels: int) -> nn.Module:
            return nn.GroupNorm(8, channels)

        def head() -> list[nn.Module]:
            conv = nn.Conv2d(backbone_dim, feature_dim, 3, padding=1, bias=False)
            return [conv, group_norm(feature_dim), nn.ReLU(inplace=True)]

        self.backbone = UNet(3, backbone_dim, image_size, group_norm)
        self.attention_head = LowPrecisionSequential(*head())
        self.colouring = InstanceColouringSBP(
            feature_dim, num_slots, image_size, kernel, semi_convolutional=semi_convolutional
        )
        self.feature_head = LowPrecisionSequential(*head())
        pooled_dim = feature_dim + 2 if coordinate_scale else feature_dim
        self.feature_projection = nn.Conv2d(pooled_dim, 2 * feature_dim, 1)
        coordinates = coordinate_scale * coordinate_grid(image_size) if coordinate_scale else None
        self.register_buffer("coordinates", coordinates, persistent=False)
        posterior = nn.Linear(2 * feature_dim, 2 * latent_dim)
        if posterior_bias is not None:
            nn.init.constant_(posterior.bias[latent_dim:], posterior_bias)
        self.posterior_head = nn.Sequential(
            nn.LayerNorm(2 * feature_dim),
            nn.Linear(2 * feature_dim, 2 * feature_dim),
            nn.ReLU(inplace=True),
            posterior,
        )
        self.make_decoder = partial(
            GenesisV2Decoder,
            image_size,
            latent_dim,
            feature_dim,
            decoder_stages,
            decoder_norm,
            component_activation,
            decoder_dims,
        )
        self.decoder = self.make_decoder()

    def colour(
        self, images: Tensor, scores: Tensor, num_slots: int, min_pixels: float | None = None
    ) -> tuple[Colouring, Tensor]:
        """Masks of the IC-SBP and the features they pool, `[B, F, H, W]`."""
        features = self.backbone(images)
        masks = self.colouring(self.attention_head(features), scores, num_slots, min_pixels)
        return masks, self.feature_head(features)

    def pool(self, features: Tensor, log_masks: Tensor) -> Tensor:
        """Mean of the projected features under every mask, `[B, K, 2 F]`.

        Pooling and the 1x1 projection are both linear, so the projection comes after, on K vectors rather
        than H W.
        """
        with full_precision(features):
            masks = log_masks.exp().flatten(2)  # [B, K, H W]
            area = masks.sum(dim=2, keepdim=True)
            maps = features.float()
            if self.coordinates is not None:
                maps = torch.cat([maps, self.coordinates.expand(len(maps), -1, -1, -1)], dim=1)
            pooled = masks @ maps.flatten(2).transpose(1, 2)  # [B, K, F]
            weight, bias = self.feature_projection.weight.flatten(1), self.feature_projection.bias
            assert bias is not None
            return (pooled @ weight.t() + area * bias) / (area + 1e-5)

    def infer(
        self, images: Tensor, noise: Noise | None, num_slots: int, min_pixels: float | None
    ) -> tuple[Colouring, Posterior]:
        """Masks and posterior of every slot; draws scores `[B, 1, H, W]`, then noise `[B, K, D]`."""
        scores = draw_uniform(noise, (len(images), 1, *images.shape[2:]), images)
        colouring, features = self.colour(images, scores, num_slots, min_pixels)
        with full_precision(images):  # of K vectors, which casts would cost more than they save
            mean, scale = self.posterior_head(self.pool(features, colouring.log_masks)).chunk(2, dim=2)
            scale = nn.functional.softplus(scale + 0.5) + 1e-8
            sample = draw_gaussian(noise, mean, scale)
        return colouring, Posterior(mean, scale, sample)

    def decode(self, latents: Tensor, num_active: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `GenesisV2Decoder.decode`."""
        return self.decoder.decode(latents, num_active)

    def forward(
        self, images: Tensor, noise: Noise | None, num_slots: int, min_pixels: float | None
    ) -> tuple[Tensor, Tensor, Colouring, Posterior]:
        """Inference and decoding in one compilable piece."""
        colouring, posterior = self.infer(images, noise, num_slots, min_pixels)
        components, log_masks = self.decode(posterior.sample, colouring.num_active)
        return components, log_masks, colouring, posterior


class GenesisV2(SceneModel):
    """GENESIS-V2: slots in random order from the instance colouring stick-breaking process.

    The defaults are the published model. Where code and paper differ, the code made the published numbers
    and is followed: the prior's mean and scale go through `tanh` and `sigmoid(x + 4) + 1e-4`, the KL is
    one sample's estimate, and the prior's linear layer has `2 latent_dim` outputs, its LSTM 256 units.

    Where the published code errs, we differ: features are computed once per image; with a flexible number
    of slots those not in use get no mask, no KL, and change nothing for other images; widths are
    independent of each other.

    Args:
        num_slots: number of slots K.
        image_size: side of the images; 32, 48, 64, 80, 96, 112, 128, ...
        latent_dim: size of a slot's latent D.
        feature_dim: width of backbone, heads and decoder, a multiple of 8.
        backbone_dim: that of the backbone, if it has another.
        decoder_dims: those of the decoder's stages, if they have others, such as [128, 128, 64, 64].
        prior_dim: units of the prior's LSTM; the published code has `4 feature_dim`, which are 256.
        kernel: of the IC-SBP, "gaussian", "laplacian" or "epanechnikov".
        semi_convolutional: add coordinates to the pixel embeddings.
        autoregressive_prior: learned prior over slots; otherwise a standard normal for each.
        likelihood: "mixture" (Equation 1), "gaussian" around the reconstruction (SRI's GENESIS-V2-G), or
            "pixel_mixture", whose pixels come from one slot in all channels (not in the published code).
        std: standard deviation σ of the likelihood.
        normalized_likelihood: train with the density's `log √2π`; the ELBO always has it.
        mask_consistency: add the KL from decoded to attention masks (Section 3.3); start GECO at
            `beta: 1e-10` then, as the paper does.
        detach_decoded_masks: let that term train the attention masks alone.
        mask_consistency_start: when that term starts to count: "start", or "goal", from the first step on at
            which the objective's goal is met; it then goes on, whatever the error does. Not in the paper.
        analytic_kl: closed form of each slot's KL instead of one sample's estimate.
        flexible_slots: in evaluation, stop at the first mask below `min_pixels`.
        min_pixels: that threshold; the paper used 20, and 70 for ObjectsRoom.
        coordinate_scale: average pixel coordinates, times this, under a slot's mask along with its features;
            none if 0. Not in the paper, whose encoder has to learn where things are.
        posterior_bias: what the bias of the posterior's raw scale starts from, torch's own if None; at -3
            the posterior starts narrow. Not in the paper.
        decoder_stages: times the decoder doubles its grid of side `image_size / 2 ** decoder_stages`.
        decoder_norm: normalise the decoder's stages; see `TransposedConvDecoder`.
        component_activation: "sigmoid", or "linear" for components that may leave [0, 1]. Not in the paper;
            the small model of the quickstart learned nothing with a sigmoid (docs/results-in-detail.md).
        common: the arguments of every model, of `SceneModel`.

    Raises:
        ConfigurationError: if a size or option does not fit the architecture.
    """

    branches = ("genesis_v2",)
    network: GenesisV2Network
    mask_consistency_on: Tensor | None

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        latent_dim: int = 64,
        feature_dim: int = 64,
        backbone_dim: int | None = None,
        decoder_dims: list[int] | None = None,
        prior_dim: int = 256,
        kernel: KernelName = "gaussian",
        semi_convolutional: bool = True,
        autoregressive_prior: bool = True,
        likelihood: Likelihood = "mixture",
        std: float = 0.7,
        normalized_likelihood: bool = True,
        mask_consistency: bool = False,
        detach_decoded_masks: bool = True,
        mask_consistency_start: MaskStart = "start",
        analytic_kl: bool = False,
        flexible_slots: bool = False,
        min_pixels: float = 20.0,
        coordinate_scale: float = 0.0,
        posterior_bias: float | None = None,
        decoder_stages: int = 4,
        decoder_norm: bool = True,
        component_activation: Activation = "sigmoid",
        **common: Any,
    ) -> None:
        num_unet_blocks(image_size)
        check_architecture(num_slots, image_size, latent_dim, feature_dim, decoder_stages)
        _check_widths(backbone_dim, decoder_dims, prior_dim, decoder_stages)
        check_likelihood(likelihood, std)
        super().__init__(num_slots=num_slots, image_size=image_size, **common)
        self.network = GenesisV2Network(
            num_slots,
            image_size,
            latent_dim,
            feature_dim,
            backbone_dim or feature_dim,
            kernel,
            semi_convolutional,
            coordinate_scale,
            posterior_bias,
            decoder_stages,
            decoder_norm,
            component_activation,
            decoder_dims,
        )
        several = autoregressive_prior and num_slots > 1
        self.slot_prior = AutoregressivePrior(latent_dim, prior_dim) if several else None
        self.latent_dim, self.likelihood, self.std = latent_dim, likelihood, std
        self.normalized_likelihood, self.analytic_kl = normalized_likelihood, analytic_kl
        self.mask_consistency, self.detach_decoded_masks = mask_consistency, detach_decoded_masks
        self.flexible_slots, self.min_pixels = flexible_slots, min_pixels
        self.register_buffer("mask_consistency_on", None)
        if mask_consistency_start not in ("start", "goal"):
            raise ConfigurationError(
                f"mask_consistency_start={mask_consistency_start!r} is unknown: use 'start' or 'goal'"
            )
        if mask_consistency_start == "goal":
            if not mask_consistency or self.objective.goal_met(1) is None:
                raise ConfigurationError(
                    "mask_consistency_start='goal': expected mask_consistency and an objective with a goal, "
                    f"found {mask_consistency} and {type(self.objective).__name__}"
                )
            # 0, then 1: a part of the checkpoint, so that a resumed run goes on as it was
            self.mask_consistency_on = torch.zeros(())

    def forward(self, images: Tensor, noise: Noise | None = None) -> Scene:
        """Infers and decodes the slots of `images` `[B, 3, H, W]`.

        Draws scores `[B, 1, H, W]`, then standard normal noise `[B, K, D]`. The latents of the Scene are
        `mean`, `scale` and `sample`, each `[B, K, D]`.
        """
        min_pixels = self.min_pixels if self.flexible_slots and not self.training else None
        run = self.network if noise is None else self.network.forward  # a compiled network knows no noise
        components, log_masks, colouring, posterior = run(images, noise, self.num_slots, min_pixels)
        return Scene(
            components=components,
            log_masks=log_masks,
            attention_log_masks=colouring.log_masks,
            latents=posterior._asdict(),
            num_active=colouring.num_active,
        )

    def encode(self, images: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """Posterior `mean`, `scale` and `sample` of every slot, each `[B, K, D]`."""
        min_pixels = self.min_pixels if self.flexible_slots and not self.training else None
        return self.network.infer(images, noise, self.num_slots, min_pixels)[1]._asdict()

    def decode(self, latents: Tensor) -> Scene:
        """Scene of latents `[B, K, D]`; any number of slots."""
        components, log_masks = self.network.decode(latents)
        return Scene(components=components, log_masks=log_masks, latents={"sample": latents})

    def make_decoder(self) -> GenesisV2Decoder:
        """A new decoder like the model's own, freshly initialised, for SRI."""
        return self.network.make_decoder()

    def prior(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of `p(z_k | z_1 ... z_{k-1})` at latents `[B, K, D]`, each `[B, K, D]`."""
        if self.slot_prior is None:
            return torch.zeros_like(latents), torch.ones_like(latents)
        return self.slot_prior(latents)

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        """One branch: the likelihood, the KL of the latents and, as an option, of the masks."""
        kl = {"latent": self._latent_kl(scene, self.analytic_kl)}
        if self.mask_consistency and scene.attention_log_masks is not None:
            decoded = scene.log_masks.detach() if self.detach_decoded_masks else scene.log_masks
            kl["mask"] = mask_kl(scene.attention_log_masks, decoded)
            if self.mask_consistency_on is not None:
                kl["mask"] = kl["mask"] * self._mask_weight(images[0].numel())
        return {"genesis_v2": Terms(self._nll(scene, images, self.normalized_likelihood), kl)}

    @torch.no_grad()
    def _mask_weight(self, num_dimensions: int) -> Tensor:
        """0 until the goal is met for the first time, then 1; the same for all micro-batches of a step."""
        assert self.mask_consistency_on is not None
        met = self.objective.goal_met(num_dimensions)
        if self.training and met is not None:
            self.mask_consistency_on = torch.maximum(self.mask_consistency_on, met[0].float())
        return self.mask_consistency_on

    def elbo(self, scene: Scene, images: Tensor) -> Tensor:
        """Evidence lower bound, normalised likelihood minus the latents' KL, nats per image `[B]`."""
        return -self._nll(scene, images, normalized=True) - self._latent_kl(scene, self.analytic_kl)

    def log_weight(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """`log p(x, z) - log q(z | x)` at one sample, nats per image `[B]`."""
        scene = self(images, noise)
        return -self._nll(scene, images, normalized=True) - self._latent_kl(scene, analytic=False)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
    ) -> Scene:
        """Scenes drawn from the prior, slot after slot (Equation 2).

        Args:
            num_images: how many.
            num_slots: slots of each; may differ from the number trained with.
            temperature: factor on the scale of every latent.
            noise: draws `[num_images, K, D]` from here.
        """
        return self._sample(num_images, num_slots, temperature, noise)

    def _sample(
        self,
        num_images: int,
        num_slots: int | None,
        temperature: float,
        noise: Noise | None,
        scene_latent: Tensor | None = None,
    ) -> Scene:
        shape = (num_images, num_slots or self.num_slots, self.latent_dim)
        latents = draw_normal(noise, shape, self.network.decoder.grid)
        if self.slot_prior is None:
            return self.decode(temperature * latents)
        return self.decode(self.slot_prior.rollout(latents, temperature, scene=scene_latent))

    def _nll(self, scene: Scene, images: Tensor, normalized: bool) -> Tensor:
        return scene_nll(images, scene, self.likelihood, self.std, normalized)

    def _prior_of(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """The slots' prior at the sample of a scene."""
        return self.prior(scene.latents["sample"])

    def _latent_kl(self, scene: Scene, analytic: bool) -> Tensor:
        mean, scale, sample = (scene.latents[name] for name in ("mean", "scale", "sample"))
        with full_precision(sample):
            prior = self._prior_of(scene)
        if analytic:
            kl = gaussian_kl(mean, scale, *prior)
        else:
            kl = sampled_gaussian_kl(sample, mean, scale, *prior)  # [B, K]
        if scene.num_active is not None:
            kl = kl.masked_fill(~used_slots(scene.num_active, sample), 0.0)
        return kl.sum(dim=1)


def check_architecture(
    num_slots: int, image_size: int, latent_dim: int, feature_dim: int, decoder_stages: int
) -> None:
    """Refuses sizes that the decoder has no place for.

    Raises:
        ConfigurationError: if there is one.
    """
    check_sizes(num_slots=num_slots, latent_dim=latent_dim)
    if feature_dim < 8 or feature_dim % 8:
        raise ConfigurationError(
            f"feature_dim={feature_dim} does not divide into 8 groups: use a multiple of 8"
        )
    if decoder_stages < 1 or image_size % 2**decoder_stages or image_size < 2 ** (decoder_stages + 1):
        raise ConfigurationError(
            f"decoder_stages={decoder_stages} does not fit image_size={image_size}: the decoder starts from "
            f"a grid of side image_size / 2^decoder_stages, which must be a whole number of at least 2; "
            f"use an image_size that is a multiple of {2 ** max(decoder_stages, 1)}, or fewer stages"
        )


def _check_widths(
    backbone_dim: int | None, decoder_dims: list[int] | None, prior_dim: int, decoder_stages: int
) -> None:
    widths = {
        "backbone_dim": [backbone_dim] if backbone_dim is not None else [],
        "decoder_dims": decoder_dims or [],
    }
    for name, values in widths.items():
        for value in values:
            if value < 8 or value % 8:
                raise ConfigurationError(f"{name}={value} does not divide into 8 groups: use a multiple of 8")
    if decoder_dims is not None and len(decoder_dims) != decoder_stages:
        raise ConfigurationError(
            f"decoder_dims={decoder_dims} has {len(decoder_dims)} widths: use one for each of the "
            f"{decoder_stages} stages (decoder_stages)"
        )
    check_sizes(prior_dim=prior_dim)
