"""GENESIS and GENESIS-S.

Engelcke, Kosiorek, Parker Jones, Posner: "GENESIS: Generative Scene Inference and Sampling with
Object-Centric Latent Representations", ICLR 2020.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers import (
    AutoregressivePrior,
    BroadcastDecoder,
    ComponentVAE,
    GatedComponentVAE,
    GatedDecoder,
    GatedEncoder,
    stick_breaking,
)
from lightning_genesis.layers.autoregressive_prior import prior_parameters
from lightning_genesis.layers.gated_conv import posterior_scale
from lightning_genesis.layers.weights import repeated
from lightning_genesis.models.base import SceneModel
from lightning_genesis.models.contract import check_choice, check_sizes
from lightning_genesis.objectives import (
    Likelihood,
    check_likelihood,
    gaussian_kl,
    sampled_gaussian_kl,
    scene_nll,
)
from lightning_genesis.precision import full_precision
from lightning_genesis.scene import Noise, Scene, Terms, draw_gaussian, draw_normal

Norm = Literal["batch", "instance"]
Activation = Literal["sigmoid", "linear"]
STATISTICS = ("mean", "scale", "sample")  # of the latents


class MaskVAE(nn.Module):
    """Infers the mask latents one slot after the other and decodes all masks at once (Equations 7 and 4).

    The last slot takes what is left of the image. So its latent's logit changes nothing; the latent itself
    still conditions the slot's component.

    Args:
        latent_dim: size of a slot's mask latent M.
        image_size: side of the images.
        norm: of the gated convolutions.
        feature_dim: their channels.
    """

    def __init__(self, latent_dim: int, image_size: int, norm: Norm, feature_dim: int) -> None:
        super().__init__()
        features, hidden_dim = 256, 2 * latent_dim
        self.encoder = GatedEncoder(image_size, norm, out_channels=features, feature_dim=feature_dim)
        self.mean_head = nn.Linear(features, latent_dim)
        self.scale_head = nn.Linear(features, latent_dim)
        self.lstm = nn.LSTMCell(features + latent_dim, hidden_dim)
        self.linear = nn.Linear(hidden_dim, 2 * latent_dim)
        self.decoder = GatedDecoder(latent_dim, 1, image_size, norm, feature_dim)

    def infer(self, images: Tensor, noise: Noise | None, num_slots: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, scale and sample of `q(z_k | x, z_1 ... z_{k-1})` (Equation 7), float32 `[B, K, M]`.

        Draws noise `[B, K, M]`. The first slot's comes from the image's features alone, the others' from an
        LSTM over features and the latents before.
        """
        features = self.encoder(images).float()
        with full_precision(features):
            mean, scale = self.mean_head(features), posterior_scale(self.scale_head(features))
            draws = draw_normal(noise, (len(images), num_slots, mean.shape[1]), features)
            slots = [(mean, scale, torch.addcmul(mean, scale, draws[:, 0]))]
            state: tuple[Tensor, Tensor] | None = None
            weights = repeated(self.lstm, self.linear)
            for slot in range(1, num_slots):
                with weights():
                    state = self.lstm(torch.cat([features, slots[-1][2]], dim=1), state)
                    mean, raw = self.linear(state[0]).chunk(2, dim=1)
                scale = posterior_scale(raw)
                slots.append((mean, scale, torch.addcmul(mean, scale, draws[:, slot])))
        mean, scale, sample = (torch.stack(values, dim=1) for values in zip(*slots, strict=True))
        return mean, scale, sample

    def decode(self, latents: Tensor) -> Tensor:
        """Log-masks, float32 `[B, K, 1, H, W]`, of mask latents `[B, K, M]`."""
        logits = self.decoder(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
        return stick_breaking(logits)


class GenesisNetwork(nn.Module):
    """Posteriors and decoders; the slots are folded into the batch but in the posterior's recurrence.

    Args: see `Genesis`.
    """

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        mask_dim: int,
        component_dim: int,
        two_stage: bool,
        symmetric_components: bool,
        norm: Norm,
        component_activation: Activation,
        feature_dim: int,
        encoder_dim: int | None,
        decoder_dim: int | None,
    ) -> None:
        super().__init__()
        self.num_slots, self.component_activation = num_slots, component_activation
        self.dims = (mask_dim if num_slots > 1 else 0, component_dim if two_stage else 0)
        """Sizes of a slot's mask latent and component latent; 0 where it has none."""
        self.mask_vae = MaskVAE(mask_dim, image_size, norm, feature_dim) if num_slots > 1 else None
        self.component_vae: ComponentVAE | GatedComponentVAE | None = None
        self.component_decoder: BroadcastDecoder | None = None
        if not two_stage:
            self.component_decoder = BroadcastDecoder(mask_dim, 3, image_size, decoder_dim or feature_dim)
        elif symmetric_components:
            self.component_vae = GatedComponentVAE(component_dim, 3, image_size, norm, feature_dim)
        else:
            self.component_vae = ComponentVAE(
                component_dim,
                3,
                image_size,
                feature_dim=encoder_dim or feature_dim,
                decoder_dim=decoder_dim or feature_dim,
            )

    def infer(self, images: Tensor, noise: Noise | None) -> tuple[dict[str, Tensor], Tensor]:
        """Posterior of every slot, `[B, K, M + C]` with the mask latent first, and log-masks.

        Draws noise `[B, K, M]`, then `[B, K, C]`, of the latents that the model has.
        """
        parts = []
        if self.mask_vae is None:
            log_masks = torch.zeros_like(images[:, None, :1])
        else:
            parts.append(self.mask_vae.infer(images, noise, self.num_slots))
            log_masks = self.mask_vae.decode(parts[-1][2])
        if self.component_vae is not None:
            mean, scale = self.component_vae.encode(images, log_masks)
            with full_precision(mean):
                parts.append((mean, scale, draw_gaussian(noise, mean, scale)))
        latents = [torch.cat(values, dim=2) for values in zip(*parts, strict=True)]
        return dict(zip(STATISTICS, latents, strict=True)), log_masks

    def decode_components(self, latents: Tensor) -> Tensor:
        """Components `[B, K, 3, H, W]` of latents `[B, K, M + C]`."""
        if self.component_vae is not None:
            raw = self.component_vae.decode(latents[:, :, self.dims[0] :])
        else:
            assert self.component_decoder is not None
            raw = self.component_decoder(latents.flatten(0, 1)).float().unflatten(0, latents.shape[:2])
        with full_precision(raw):
            return raw.sigmoid() if self.component_activation == "sigmoid" else raw

    def decode(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Components and log-masks `[B, K, 1, H, W]` of latents `[B, K, M + C]`."""
        components = self.decode_components(latents)
        if self.mask_vae is None:
            return components, torch.zeros_like(components[:, :, :1])
        return components, self.mask_vae.decode(latents[:, :, : self.dims[0]])

    def forward(self, images: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inference and decoding in one compilable piece."""
        latents, log_masks = self.infer(images, noise)
        return self.decode_components(latents["sample"]), log_masks, latents


class Genesis(SceneModel):
    """GENESIS: a mixture of components whose masks and looks have latents of their own, in a fixed order.

    The defaults are the published model. `two_stage=False` is GENESIS-S, where one latent per slot makes mask
    and component. With one slot the model is a VAE of the component alone.

    Where code and paper differ, the code made the published numbers and is followed: the priors' mean and
    scale go through `tanh` and `sigmoid(x + 4) + 1e-4`; the KLs are one sample's estimate; the mixture is one
    per pixel and channel; the component's posterior sees the log-mask, not the mask latents (Equation 7); and
    the last slot's mask latent, whose logit is not used, is inferred and costs KL like the others.

    Where the published code errs, we differ: samples are drawn from the prior that was trained, with its
    `tanh` (`released_sampler` for the other); without the autoregressive prior every mask latent has a
    standard normal one; a model of one slot can be sampled; the number of slots of a sample is free.

    Batch normalisation mixes all slots and images of a batch in training, on every rank for itself: results
    then depend on the batch and on the number of ranks, which `norm="instance"` avoids.

    Latents of a slot are one vector, the mask latent first, then the component latent, `[B, K, M + C]`.

    Args:
        num_slots: number of slots K.
        image_size: side of the images; 32, 64, 128 or 256 as published, or 96, which is ours; with one slot
            any multiple of 16.
        mask_dim: size of a slot's mask latent M; GENESIS-S has only this.
        component_dim: size of a slot's component latent C.
        two_stage: separate latents for masks and components; GENESIS-S if False.
        symmetric_components: gated convolutions in the component VAE, in place of a small encoder and a
            broadcast decoder.
        component_prior: learned prior of a component given its mask latent; otherwise a standard normal.
        autoregressive_prior: learned prior over mask latents; otherwise a standard normal for each.
        norm: of the gated convolutions, "batch" or "instance".
        component_activation: "sigmoid", or "linear" for components that may leave [0, 1].
        feature_dim: channels of the outer convolutions, the inner ones have twice as many; 32 in the paper,
            the quickstart has fewer.
        encoder_dim: those of the component VAE's encoder, if it has others.
        decoder_dim: those of its broadcast decoder (in GENESIS-S the components'), if it has others.
        prior_dim: units of the LSTM over mask latents.
        likelihood: see `GenesisV2`.
        std: standard deviation σ of the likelihood.
        analytic_kl: closed form of each KL instead of one sample's estimate.
        released_sampler: sample mask latents without `tanh` on the mean of their prior, as the released code
            does, by which the released checkpoints' FIDs were computed.
        common: the arguments of every model, of `SceneModel`; `compile` leaves out the priors (their LSTM).

    Raises:
        ConfigurationError: if a size or option does not fit the architecture.
    """

    slots_in_order = True
    branches = ("genesis",)
    network: GenesisNetwork

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        mask_dim: int = 64,
        component_dim: int = 16,
        two_stage: bool = True,
        symmetric_components: bool = False,
        component_prior: bool = True,
        autoregressive_prior: bool = True,
        norm: Norm = "batch",
        component_activation: Activation = "sigmoid",
        feature_dim: int = 32,
        encoder_dim: int | None = None,
        decoder_dim: int | None = None,
        prior_dim: int = 256,
        likelihood: Likelihood = "mixture",
        std: float = 0.7,
        analytic_kl: bool = False,
        released_sampler: bool = False,
        **common: Any,
    ) -> None:
        check_sizes(
            num_slots=num_slots,
            mask_dim=mask_dim,
            component_dim=component_dim,
            feature_dim=feature_dim,
            encoder_dim=encoder_dim,
            decoder_dim=decoder_dim,
            prior_dim=prior_dim,
        )
        _check_options(num_slots, two_stage, symmetric_components)
        check_likelihood(likelihood, std)
        check_choice("norm", norm, ("batch", "instance"))
        check_choice("component_activation", component_activation, ("sigmoid", "linear"))
        super().__init__(num_slots=num_slots, image_size=image_size, **common)
        self.network = GenesisNetwork(
            num_slots,
            image_size,
            mask_dim,
            component_dim,
            two_stage,
            symmetric_components,
            norm,
            component_activation,
            feature_dim,
            encoder_dim,
            decoder_dim,
        )
        several = num_slots > 1
        self.slot_prior = (
            AutoregressivePrior(mask_dim, prior_dim) if autoregressive_prior and several else None
        )
        self.component_prior = (
            nn.Sequential(
                nn.Linear(mask_dim, 256),
                nn.ELU(inplace=True),
                nn.Linear(256, 256),
                nn.ELU(inplace=True),
                nn.Linear(256, 2 * component_dim),
            )
            if component_prior and two_stage and several
            else None
        )
        self.likelihood, self.std = likelihood, std
        self.analytic_kl, self.released_sampler = analytic_kl, released_sampler

    def forward(self, images: Tensor, noise: Noise | None = None) -> Scene:
        """Infers and decodes the slots of `images` `[B, 3, H, W]`.

        Draws standard normal noise `[B, K, M]`, then `[B, K, C]`. The latents of the Scene are `mean`,
        `scale` and `sample`, each `[B, K, M + C]`. Its masks are the likelihood's; there are no others.
        """
        run = self.network if noise is None else self.network.forward  # a compiled network knows no noise
        components, log_masks, latents = run(images, noise)
        return Scene(components=components, log_masks=log_masks, latents=latents)

    def encode(self, images: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """Posterior `mean`, `scale` and `sample` of every slot, each `[B, K, M + C]`."""
        return self.network.infer(images, noise)[0]

    def representation(self, scene: Scene) -> Tensor:
        """See `SceneModel`. In GENESIS without the last slot's mask latent, as it makes no mask.

        656 numbers for the published model with nine slots; 576 for GENESIS-S, which leaves nothing out.
        """
        features = super().representation(scene)
        mask_dim, component_dim = self.network.dims
        start = (self.num_slots - 1) * (mask_dim + component_dim)
        if not component_dim:
            return features
        return torch.cat([features[:, :start], features[:, start + mask_dim :]], dim=1)

    def decode(self, latents: Tensor) -> Scene:
        """Scene of latents `[B, K, M + C]`; any number of slots, or one if the model has one."""
        components, log_masks = self.network.decode(latents)
        return Scene(components=components, log_masks=log_masks, latents={"sample": latents})

    def prior(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of the priors at latents `[B, K, M + C]`, each `[B, K, M + C]`.

        `p(z^m_k | z^m_1 ... z^m_{k-1})` (Equation 1) and `p(z^c_k | z^m_k)` (Equation 2).
        """
        return self._prior(latents)

    def _prior(self, latents: Tensor, scene_latent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        masks, components = latents.split(self.network.dims, dim=2)
        if self.slot_prior is None:
            mask_prior = _standard_normal(masks)
        else:
            mask_prior = self.slot_prior(masks, scene_latent)
        component_prior = self._component_prior(masks, components)
        mean, scale = (torch.cat(pair, dim=2) for pair in zip(mask_prior, component_prior, strict=True))
        return mean, scale

    def _component_prior(self, masks: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.component_prior is None:
            return _standard_normal(like)
        return prior_parameters(self.component_prior(masks).float())

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        """One branch: the likelihood (Equation 3) and the KLs `mask` and `component`, if it has them."""
        return {"genesis": Terms(self._nll(scene, images), self._latent_kl(scene, self.analytic_kl))}

    def elbo(self, scene: Scene, images: Tensor) -> Tensor:
        """Evidence lower bound (Equation 8), likelihood minus KLs, nats per image `[B]`."""
        return -self._nll(scene, images) - self._total_kl(scene, self.analytic_kl)

    def log_weight(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """`log p(x, z) - log q(z | x)` at one sample, nats per image `[B]`."""
        scene = self(images, noise)
        return -self._nll(scene, images) - self._total_kl(scene, analytic=False)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
    ) -> Scene:
        """Scenes drawn from the prior: mask latents slot after slot (Equation 1), then the components' (2).

        In training mode batch normalisation would see the samples; call it in evaluation mode.

        Args:
            num_images: how many.
            num_slots: slots of each; may differ from the number trained with, unless that was one.
            temperature: factor on the scale of every latent.
            noise: draws `[num_images, K, M]`, then `[num_images, K, C]` from here.

        Raises:
            ConfigurationError: if a model of one slot is asked for more.
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
        num_slots = num_slots or self.num_slots
        if self.num_slots == 1 and num_slots != 1:
            raise ConfigurationError(
                f"num_slots={num_slots}: a model trained with one slot has no masks; use 1"
            )
        like = next(self.network.parameters())
        mask_dim, component_dim = self.network.dims
        shape = (num_images, num_slots)
        parts = []
        if mask_dim:
            masks = draw_normal(noise, (*shape, mask_dim), like)
            if self.slot_prior is None:
                masks = temperature * masks
            else:
                bounded = not self.released_sampler
                masks = self.slot_prior.rollout(masks, temperature, bounded, scene_latent)
            parts.append(masks)
        if component_dim:
            draws = draw_normal(noise, (*shape, component_dim), like)
            mean, scale = self._component_prior(parts[0] if parts else draws, draws)
            parts.append(mean + temperature * scale * draws)
        return self.decode(torch.cat(parts, dim=2))

    def _nll(self, scene: Scene, images: Tensor) -> Tensor:
        return scene_nll(images, scene, self.likelihood, self.std, normalized=True)

    def _prior_of(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """The slots' prior at the sample of a scene."""
        return self.prior(scene.latents["sample"])

    def _latent_kl(self, scene: Scene, analytic: bool) -> dict[str, Tensor]:
        """KL of each kind of latent, summed over slots, `[B]`."""
        posterior = [scene.latents[name] for name in STATISTICS]
        with full_precision(posterior[0]):
            prior = self._prior_of(scene)
        kl = {}
        dims = self.network.dims
        parts = zip(*(value.split(dims, dim=2) for value in (*posterior, *prior)), strict=True)
        for name, dim, (mean, scale, sample, *of_prior) in zip(
            ("mask", "component"), dims, parts, strict=True
        ):
            if dim:
                statistics = (mean, scale, *of_prior)
                value = gaussian_kl(*statistics) if analytic else sampled_gaussian_kl(sample, *statistics)
                kl[name] = value.sum(dim=1)
        return kl

    def _total_kl(self, scene: Scene, analytic: bool) -> Tensor:
        return torch.stack([*self._latent_kl(scene, analytic).values()]).sum(dim=0)


def _standard_normal(like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(like), torch.ones_like(like)


def _check_options(num_slots: int, two_stage: bool, symmetric_components: bool) -> None:
    if not two_stage and num_slots == 1:
        raise ConfigurationError("two_stage=False (GENESIS-S) needs masks: use num_slots of at least 2")
    if not two_stage and symmetric_components:
        raise ConfigurationError("symmetric_components=True would be ignored: use two_stage=True with it")
