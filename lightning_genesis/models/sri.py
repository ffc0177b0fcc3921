"""SRI: segregate, relate, imagine.

Emami, He, Ranka, Rangarajan: "Towards Improving the Generation Quality of Autoregressive Slot VAEs", 2024.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.matching import reorder, slot_order
from lightning_genesis.layers.scene_encoder import SCENE_STATISTICS, SetEncoder, scene_to_sample
from lightning_genesis.layers.slot_sequence import CorrelatedScale, ScenePrior
from lightning_genesis.metrics import bits_per_dimension
from lightning_genesis.models.base import SceneModel
from lightning_genesis.models.contract import check_sizes
from lightning_genesis.models.emorl import EfficientMORL
from lightning_genesis.models.pieces import compiled
from lightning_genesis.models.segregation import (
    ENCODERS,
    EncoderName,
    SegregationModel,
    SlotDecoder,
    build_segregation,
    segregation_branches,
)
from lightning_genesis.objectives import (
    GECO,
    Likelihood,
    Objective,
    check_likelihood,
    gaussian_kl,
    sampled_gaussian_kl,
    scene_nll,
)
from lightning_genesis.precision import full_precision
from lightning_genesis.scene import Noise, Scene, Terms, draw_gaussian, draw_normal

STATISTICS = ("mean", "scale", "sample")


class SRI(SceneModel):
    """SRI: slots of a segregation model, related by a scene variable, in the order of an imagined scene.

    Segregate: a model of its own (`encoder`, with its loss L_seg) gives Gaussian slots in random order.
    Relate: a permutation-invariant encoder of their samples gives `q(s | x)`. Imagine: the slot prior,
    given s, rolls out K slots; each takes the closest free segregated slot, and that is the order. The
    posterior in this order keeps the means and gets new scales, from an LSTM over s and the means before.

    The defaults are SRI-MoG on GENESIS-V2 as released. Where code and paper differ, the code made the
    published numbers and is followed: two decoders (`shared_decoder` for the paper's one); prior and
    posterior project s each with its own layer; the posterior is conditioned on means, the prior on samples;
    the matching compares means; GECO's β multiplies the KL and is not stopped at 1. The two constraints, of
    L_seg and of L_SRI, have a β and an average each.

    Published as numbers only, and chosen here: without a scene variable (`scene_dim: null`, Table 3a) the
    posterior's first input is zero; without alignment (Table 3b: `order: none`, `cross_order_kl: false`) the
    slots keep the random order, and "the slot posterior is never transformed into an autoregressive one" is
    taken literally with `autoregressive_posterior: false`. SRI-SA* is `encoder: slot_attention`, `order:
    none`, `cross_order_kl: false`, `segregation_loss: false`, `shared_decoder: true`: trained on L_SRI
    alone, whose gradient then reaches the encoder. SRI-EMORL is `encoder: emorl` with
    `encoder_options: {num_refinements: 2, final_refinements: 2}` and `objective: SoftplusGECO`, as each model
    is said to be trained with the GECO of its encoder's code; the scene encoder sees the refined slots, the
    hierarchy keeps EfficientMORL's three layers, and SRI's decoder is another of EfficientMORL's.

    Args:
        num_slots: number of slots K.
        image_size: side of the images.
        encoder: "genesis_v2", "slot_attention" (one learned initial Gaussian per slot) or "emorl".
        encoder_options: options of that model by name, such as `latent_dim` and `feature_dim`. It gets SRI's
            `likelihood`, `std` and `normalized_likelihood`, unless they are here too.
        scene_dim: size of the scene variable S; None for a model without one.
        num_set_layers: blocks of the scene encoder L.
        hidden_dim: units of the LSTMs of slot prior and slot posterior.
        order: "greedy" (Algorithm 1), "hungarian" (least sum of distances; waits for the device and solves on
            the host), or "none" to leave the slots in the order of the encoder.
        cross_order_kl: train the imagined scene to resemble the image (Equation 8).
        autoregressive_posterior: predict new scales; otherwise the slots keep those of the encoder.
        segregation_loss: train the encoder by L_seg alone; otherwise by L_SRI alone.
        shared_decoder: one decoder for L_seg and L_SRI, as in the paper; needed without L_seg.
        likelihood: "mixture" (Equation 4, SRI-MoG), "gaussian" (Equation 3, SRI-G), or "pixel_mixture"; see
            `GenesisV2`.
        std: standard deviation σ of the likelihood.
        normalized_likelihood: train with the density's `log √2π`; the ELBO always has it.
        compile: mode of `torch.compile` for three pieces in training: the encoder's network; scene variable,
            rollout, matching, posterior and decoder (but for `order: hungarian`); and all loss terms.
        common: the other arguments of every model, of `SceneModel`.

    Raises:
        ConfigurationError: if an option is unknown, or does not fit the others.
    """

    own_scores = ("elbo_sri", "bits_per_dim_sri")
    segregation: SegregationModel

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        encoder: EncoderName = "genesis_v2",
        encoder_options: dict[str, Any] | None = None,
        scene_dim: int | None = 128,
        num_set_layers: int = 3,
        hidden_dim: int = 256,
        order: Literal["greedy", "hungarian", "none"] = "greedy",
        cross_order_kl: bool = True,
        autoregressive_posterior: bool = True,
        segregation_loss: bool = True,
        shared_decoder: bool = False,
        likelihood: Likelihood = "mixture",
        std: float = 0.7,
        normalized_likelihood: bool = True,
        compile: str | None = None,
        **common: Any,
    ) -> None:
        _check_options(locals())
        shared = {
            "likelihood": likelihood,
            "std": std,
            "normalized_likelihood": normalized_likelihood,
            "compile": compile,
            "autoregressive_prior": False,  # SRI's own comes in its place
        }
        segregation = build_segregation(encoder, num_slots, image_size, encoder_options or {}, shared)
        before = segregation_branches(segregation.branches) if segregation_loss else ()
        self.branches = (*before, "sri")  # the base class binds the objective to them
        super().__init__(num_slots=num_slots, image_size=image_size, compile=compile, **common)
        self.segregation = segregation
        self.latent_dim = latent_dim = segregation.latent_dim
        self.scene_encoder = (
            None if scene_dim is None else SetEncoder(latent_dim, scene_dim, num_layers=num_set_layers)
        )
        self.slot_prior = ScenePrior(latent_dim, hidden_dim, scene_dim)
        self.slot_posterior = (
            CorrelatedScale(latent_dim, hidden_dim, scene_dim) if autoregressive_posterior else None
        )
        self.decoder = None if shared_decoder else segregation.make_decoder()
        self.scene_dim, self.order, self.cross_order_kl = scene_dim, order, cross_order_kl
        self.segregation_loss = segregation_loss
        self.likelihood, self.std, self.normalized_likelihood = likelihood, std, normalized_likelihood
        self._configured = False

    @staticmethod
    def default_objective() -> Objective:
        """GECO with SRI's step (A.4.2)."""
        return GECO(step_size=1e-6)

    # ---------------------------------------------------------------- inference

    def forward(self, images: Tensor, noise: Noise | None = None) -> Scene:
        """Infers and decodes the slots of `images` `[B, 3, H, W]`, in SRI's order.

        Draws what the encoder draws, then standard normal noise of the scene `[B, S]`, of the imagined slots
        and of the posterior's `[B, K, D]` each.

        The latents of the Scene are those of `encode`; its attention masks are the encoder's in SRI's order.
        Auxiliary are "segregation", L_seg's own decoding in the encoder's order, and in evaluation
        "imagination", the imagined slots decoded.
        """
        if self.training and isinstance(self.segregation, EfficientMORL):
            self.segregation.follow(self.objective.weights()[:, 0])  # of L_seg, if there is one
        # what is compiled knows no noise, and nothing of the host
        whole = noise is None and self.order != "hungarian"
        auxiliary: dict[str, Scene] = {}
        attention: Tensor | None = None
        given: Any
        if self.segregation_loss or not self.training:
            segregation = self.segregation(images, noise)
            given, attention = segregation.latents, segregation.attention_log_masks
            if self.segregation_loss:
                auxiliary["segregation"] = segregation
        else:
            given = images if whole and self.segregation.replays else self.segregation.encode(images, noise)
        latents, scene = (self._piece(SRI._relate) if whole else SRI._relate)(self, given, noise)
        if attention is not None and "order" in latents:
            attention = reorder(attention, latents["order"])
        if not self.training:
            auxiliary["imagination"] = self.decode(latents["rollout_sample"])
        return Scene(
            components=scene.components,
            log_masks=scene.log_masks,
            attention_log_masks=attention,
            latents=latents,
            auxiliary=auxiliary,
        )

    def encode(self, images: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """Posteriors of images, by name, without decoding.

        Returns:
            `mean`, `scale` and `sample` of the slots in SRI's order, `[B, K, D]`; the same of the scene,
            `scene_mean`, ..., `[B, S]`, where there is one; the same of the imagined slots, `rollout_mean`,
            ..., `[B, K, D]`; and `order` `[B, K]`, which of the encoder's slots each is, where they are
            aligned. In training what no loss needs is left out.
        """
        return self._infer(self.segregation.encode(images, noise), noise)

    def _relate(
        self, given: Mapping[str, Tensor] | Tensor, noise: Noise | None
    ) -> tuple[dict[str, Tensor], Scene]:
        """`_infer`, or `encode` where images are given, and what is decoded from it."""
        latents = self.encode(given, noise) if isinstance(given, Tensor) else self._infer(given, noise)
        return latents, self.decode(latents["sample"])

    def _infer(self, given: Mapping[str, Tensor], noise: Noise | None) -> dict[str, Tensor]:
        """Relate and imagine (Sections 4.1 and 4.2), given the encoder's `mean`, `scale` and `sample`."""
        mean, scale, sample = (given[name].float() for name in STATISTICS)
        if self.segregation_loss:
            mean, scale, sample = mean.detach(), scale.detach(), sample.detach()
        latents: dict[str, Tensor] = {}
        with full_precision(mean):
            scene: Tensor | None = None
            if self.scene_encoder is not None:
                latents |= self.scene_encoder.infer(sample, noise)
                scene = latents["scene_sample"]
            if self.order != "none" or self.cross_order_kl or not self.training:
                draws = draw_normal(noise, mean.shape, mean)
                with torch.set_grad_enabled(torch.is_grad_enabled() and self.cross_order_kl):
                    rollout = self.slot_prior.imagine(draws, scene)
                latents |= {f"rollout_{name}": value for name, value in rollout._asdict().items()}
                if self.order != "none":
                    latents["order"] = order = slot_order(rollout.mean, mean, self.order)
                    mean, scale = reorder(mean, order), reorder(scale, order)
            if self.slot_posterior is not None:
                scale = self.slot_posterior(mean, scene)
            latents |= {"mean": mean, "scale": scale}
            latents["sample"] = draw_gaussian(noise, mean, scale)
        return latents

    def decode(self, latents: Tensor) -> Scene:
        """Scene of latents `[B, K, D]`; any number of slots."""
        if self.decoder is None:
            return self.segregation.decode(latents)
        components, log_masks = cast(SlotDecoder, self.decoder).decode(latents)
        return Scene(components=components, log_masks=log_masks, latents={"sample": latents})

    # ---------------------------------------------------------------- prior

    def prior(self, latents: Tensor, scene_latent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and scale of `p(z_k | z_1 ... z_{k-1}, s)`, each `[B, K, D]` (Equation 2).

        Args:
            latents: the slots, `[B, K, D]`.
            scene_latent: s, `[B, S]`; None for a model without one.
        """
        with full_precision(latents):
            return self.slot_prior(latents, scene_latent)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
        scene_latent: Tensor | None = None,
    ) -> Scene:
        """Scenes drawn from the prior: the scene variable, then slot after slot (Section 3).

        Args:
            num_images: how many.
            num_slots: slots of each; may differ from the number trained with.
            temperature: factor on the scale of every latent that is drawn.
            noise: draws `[num_images, S]`, unless `scene_latent` is given, then `[num_images, K, D]`.
            scene_latent: the scene variables, `[num_images, S]`, taken as they are.

        Raises:
            ConfigurationError: if `scene_latent` does not fit.
        """
        like = next(self.slot_prior.parameters())
        scene_latent = scene_to_sample(scene_latent, num_images, self.scene_dim, temperature, noise, like)
        draws = draw_normal(noise, (num_images, num_slots or self.num_slots, self.latent_dim), like)
        with full_precision(like):
            latents = self.slot_prior.imagine(draws, scene_latent, temperature).sample
        scene = self.decode(latents)
        if scene_latent is not None:
            scene.latents["scene_sample"] = scene_latent
        return scene

    # ---------------------------------------------------------------- losses

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        """L_seg as the encoder has it, and L_SRI with KLs `scene`, `slot` and `cross_order` (Equation 11)."""
        return self._piece(SRI._loss_terms)(self, scene, images)

    def _loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        terms: dict[str, Terms] = {}
        if self.segregation_loss:
            of_encoder = self.segregation.loss_terms(scene.auxiliary["segregation"], images)
            terms = dict(zip(self.branches, of_encoder.values(), strict=False))
        kl = self._kl(scene)
        if self.cross_order_kl:
            kl["cross_order"] = self._cross_order_kl(scene)
        return {**terms, "sri": Terms(self._nll(scene, images, self.normalized_likelihood), kl)}

    def elbo(self, scene: Scene, images: Tensor) -> Tensor:
        """Evidence lower bound of L_SRI's decoding, nats per image `[B]`.

        With the normalised likelihood, and without the cross-order KL, which only loosens it.
        """
        return -self._nll(scene, images, normalized=True) - _sum(self._kl(scene))

    def score_own(self, scene: Scene, images: Tensor) -> dict[str, Tensor]:
        """`elbo_sri`, `-L_SRI` with the normalised likelihood, and its bits per dimension, each `[B]`.

        That is the ELBO minus the cross-order KL, where that is trained with: what the paper tabulates.
        """
        elbo = self.elbo(scene, images)
        if self.cross_order_kl:
            elbo = elbo - self._cross_order_kl(scene)
        return {"elbo_sri": elbo, "bits_per_dim_sri": bits_per_dimension(elbo, images[0].numel())}

    def log_weight(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """`log p(x, z, s) - log q(z, s | x)` at one sample, nats per image `[B]`.

        The encoder's sample, its order and the imagined slots are auxiliary: whatever they are, the mean of
        the weight is p(x).
        """
        scene = self(images, noise)
        return -self._nll(scene, images, normalized=True) - _sum(self._kl(scene, analytic=False))

    def _nll(self, scene: Scene, images: Tensor, normalized: bool) -> Tensor:
        return scene_nll(images, scene, self.likelihood, self.std, normalized)

    def _kl(self, scene: Scene, analytic: bool = True) -> dict[str, Tensor]:
        """KL of the scene variable (Equation 10) and of the slots in their order (Equation 23), `[B]`."""
        latents = scene.latents
        mean, scale, sample = (latents[name] for name in STATISTICS)
        prior = self.prior(sample, latents.get("scene_sample"))
        if analytic:
            slots = gaussian_kl(mean, scale, *prior)
        else:
            slots = sampled_gaussian_kl(sample, mean, scale, *prior)
        of_scene = {} if self.scene_dim is None else {"scene": scene_kl(latents, analytic)}
        return {**of_scene, "slot": slots.sum(dim=1)}

    def _cross_order_kl(self, scene: Scene) -> Tensor:
        """KL of the slots in their order from the imagined ones (Equation 8), `[B]`."""
        names = ("mean", "scale", "rollout_mean", "rollout_scale")
        return gaussian_kl(*(scene.latents[name] for name in names)).sum(dim=1)

    # ---------------------------------------------------------------- training

    def configure_model(self) -> None:
        """Compiles the encoder now, the rest when it is trained."""
        self.segregation.configure_model()
        self._configured = True

    def _piece(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A method of the class, compiled in training once the model was configured."""
        if self._configured and self.compile_mode and self.training and torch.is_grad_enabled():
            return compiled(function, self.compile_mode)
        return function


def _sum(values: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([*values.values()]).sum(dim=0)


def scene_kl(latents: Mapping[str, Tensor], analytic: bool = True) -> Tensor:
    """KL of the scene variable from its standard normal prior (Equation 10), nats per image `[B]`.

    Args:
        latents: of a Scene, with the names of `SCENE_STATISTICS`.
        analytic: closed form; otherwise one sample's estimate.
    """
    mean, scale, sample = (latents[name] for name in SCENE_STATISTICS)
    prior = torch.zeros_like(mean), torch.ones_like(scale)
    if analytic:
        return gaussian_kl(mean, scale, *prior)
    return sampled_gaussian_kl(sample, mean, scale, *prior)


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuses what does not fit; `options` are the constructor's arguments by name."""
    choices = {"encoder": tuple(ENCODERS), "order": ("greedy", "hungarian", "none")}
    for name, known in choices.items():
        if options[name] not in known:
            raise ConfigurationError(f"{name}={options[name]!r} is unknown: use one of {', '.join(known)}")
    check_sizes(**{name: options[name] for name in ("scene_dim", "num_set_layers", "hidden_dim")})
    if not options["segregation_loss"] and not options["shared_decoder"]:
        raise ConfigurationError(
            "segregation_loss=False leaves the encoder's decoder untrained: use shared_decoder=True with it"
        )
    check_likelihood(options["likelihood"], options["std"])
