"""EfficientMORL.

Emami, He, Ranka, Rangarajan: "Efficient Iterative Amortized Inference for Learning Symmetric and Disentangled
Multi-Object Representations", ICML 2021.

Longer than other files: the system is one thing in two stages, the hierarchy of slots, and a refinement that
takes gradients of the first stage's loss inside the forward. Neither is used or understood without the other.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.utils._pytree import tree_map_only

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.gaussian import softplus_scale
from lightning_genesis.layers.initial_values import small_xavier
from lightning_genesis.layers.slot_attention import PixelEncoder, attend
from lightning_genesis.layers.slot_decoder import DecoderName, SlotDecoder
from lightning_genesis.layers.weights import LowPrecisionLinear, repeated
from lightning_genesis.models.base import SceneModel
from lightning_genesis.models.pieces import compile_for_training
from lightning_genesis.objectives import (
    Likelihood,
    SoftplusGECO,
    check_likelihood,
    gaussian_kl,
    sampled_gaussian_kl,
    scene_nll,
)
from lightning_genesis.precision import full_precision
from lightning_genesis.scene import Noise, Scene, Terms, draw_gaussian, draw_normal

PriorName = Literal["reversed++", "reversed", "bottom_up"]
PRIORS = ("reversed++", "reversed", "bottom_up")
HIDDEN_DIM = 128
"""Width of the prior's and the refinement's hidden layer, whatever the size of a slot."""


class Gaussian(NamedTuple):
    """A diagonal Gaussian; both `[..., D]`."""

    mean: Tensor
    scale: Tensor

    def sample(self, noise: Noise | None) -> Tensor:
        """A reparameterised draw."""
        return draw_gaussian(noise, self.mean, self.scale)


class Hierarchy(NamedTuple):
    """What the bottom-up stage says about a batch."""

    parameters: list[Tensor]
    """Mean and raw scale of every layer's posterior, from the first, each `[B, K, 2 D]`."""
    log_masks: Tensor
    """Attention of the last layer, normalised over slots, `[B, K, 1, H, W]`."""


class Step(NamedTuple):
    """Slots after the bottom-up stage (step 0) or a step of refinement."""

    posterior: Gaussian
    """Of the slots, `[B, K, D]`."""
    prior: Gaussian
    """What the posterior of the decoded slots is held against, `[B, K, D]`."""
    sample: Tensor
    """`[B, K, D]`."""
    components: Tensor
    """`[B, K, 3, H, W]`."""
    log_masks: Tensor
    """`[B, K, 1, H, W]`."""
    nll: Tensor
    """`[B]`."""
    kl: Tensor
    """`[B]`: of all layers in step 0, of the refined one after."""


class Ladder(NamedTuple):
    """Latents that the decoded ones depend on in the generative model, each `[B, M, K, D]`; M may be 0."""

    sample: Tensor
    posterior: Gaussian
    prior: Gaussian


class Inference(NamedTuple):
    """Everything that comes out of the network."""

    steps: list[Step]
    ladder: Ladder
    attention_log_masks: Tensor
    """`[B, K, 1, H, W]`."""


def posterior_of(parameters: Tensor) -> Gaussian:
    """The Gaussian of means and raw scales `[..., 2 D]`."""
    mean, raw = parameters.chunk(2, dim=-1)
    return Gaussian(mean, softplus_scale(raw))


class LayerPrior(nn.Module):
    """`p(z^l | z^{l+1})`, the same for all slots and layers.

    Args:
        latent_dim: size of a latent D.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(latent_dim, HIDDEN_DIM)
        self.mean = nn.Linear(HIDDEN_DIM, latent_dim)
        self.scale = nn.Linear(HIDDEN_DIM, latent_dim)

    def forward(self, latents: Tensor) -> Gaussian:
        """The prior given latents `[..., D]`, of the same shape."""
        with full_precision(latents):
            hidden = F.elu(self.hidden(latents.float()))
            return Gaussian(self.mean(hidden), softplus_scale(self.scale(hidden)))


class Refinement(nn.Module):
    """Moves a posterior by the gradient of the loss with respect to it, as far as it has learned to.

    Args:
        latent_dim: size of a latent D.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.encoding = nn.Sequential(
            nn.Linear(4 * latent_dim, HIDDEN_DIM), nn.ELU(inplace=True), nn.Linear(HIDDEN_DIM, latent_dim)
        )
        self.recurrence = nn.GRUCell(latent_dim, latent_dim)
        self.mean = nn.Linear(latent_dim, latent_dim)
        self.scale = nn.Linear(latent_dim, latent_dim)

    def forward(self, parameters: Tensor, gradient: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Moved parameters `[B, K, 2 D]` and the next state.

        Args:
            parameters: means and raw scales, `[B, K, 2 D]`.
            gradient: of the loss with respect to them; nothing flows back into it.
            state: of the recurrence, None before the first step.
        """
        with full_precision(parameters):
            halves = gradient.detach().unflatten(-1, (2, -1))  # means and raw scales are normalised apart
            direction = F.layer_norm(halves, halves.shape[-1:]).flatten(-2)
            code = self.encoding(torch.cat([parameters, direction], dim=-1))
            state = self.recurrence(code.flatten(0, 1), state)
            change = torch.cat([self.mean(state), self.scale(state)], dim=-1)
            return parameters + change.view_as(parameters), state


class EMORLNetwork(PixelEncoder):
    """Bottom-up hierarchical inference, then refinement by the gradient of the loss.

    Args: see `EfficientMORL`.
    """

    step_weights: Tensor
    """Weights `[2]` of error and KL in the loss that the refinement follows: the last training step's."""

    def __init__(
        self,
        image_size: int,
        latent_dim: int,
        feature_dim: int,
        num_layers: int,
        decoder: DecoderName,
        decoder_dim: int,
        decoder_stages: int,
        prior: PriorName,
        likelihood: Likelihood,
        std: float,
        normalized_likelihood: bool,
        refinement_batch_size: int,
    ) -> None:
        super().__init__(image_size, feature_dim, 0, "emorl")
        self.num_layers, self.prior = num_layers, prior
        self.likelihood, self.std, self.normalized_likelihood = likelihood, std, normalized_likelihood
        self.refinement_batch_size = refinement_batch_size
        self.initial_posterior = nn.Parameter(torch.cat([torch.zeros(latent_dim), torch.ones(latent_dim)]))
        """Mean and raw scale that all slots start from."""
        self.norm_slots = nn.LayerNorm(latent_dim)
        self.query = nn.Linear(latent_dim, latent_dim, bias=False)
        self.key = LowPrecisionLinear(feature_dim, latent_dim, bias=False)
        self.value = LowPrecisionLinear(feature_dim, latent_dim, bias=False)
        # The DualGRU: two that know nothing of each other, for means and raw scales.
        self.mean_gru = nn.GRUCell(latent_dim, latent_dim)
        self.scale_gru = nn.GRUCell(latent_dim, latent_dim)
        self.norm_mean, self.norm_scale = nn.LayerNorm(latent_dim), nn.LayerNorm(latent_dim)
        self.mean_mlp, self.scale_mlp = _mlp(latent_dim), _mlp(latent_dim)
        self.make_decoder = partial(
            SlotDecoder, latent_dim, image_size, decoder_dim, decoder, decoder_stages, "emorl"
        )
        self.decoder = self.make_decoder()
        self.layer_prior = LayerPrior(latent_dim) if num_layers > 1 else None
        self.refinement = Refinement(latent_dim)
        self.register_buffer("step_weights", torch.ones(2))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """The repository's; PyTorch's own for positions and the refinement's recurrence."""
        for name, part in self.named_children():
            if name != "position":
                small_xavier(part)
        for value in (*self.mean_gru.parameters(), *self.scale_gru.parameters()):
            nn.init.normal_(value)

    def infer(self, images: Tensor, noise: Noise | None, num_slots: int) -> Hierarchy:
        """The bottom-up stage on images in [0, 1]: slots compete for pixels, once per layer.

        Draws noise `[B, K, D]` for the initial slots and every layer but the last.
        """
        pixels = self.pixels(images)
        key, value = self.key(pixels), self.value(pixels)
        with full_precision(images):
            key, value = key.float().transpose(1, 2), value.float()
            parameters = self.initial_posterior.expand(len(images), num_slots, -1)
            layers: list[Tensor] = []
            log_attention = key.new_zeros(())
            weights = repeated(
                *(self.norm_slots, self.query, self.mean_gru, self.scale_gru, self.norm_mean),
                *(self.norm_scale, self.mean_mlp, self.scale_mlp),
            )
            for _ in range(self.num_layers):
                sample = posterior_of(parameters).sample(noise)
                mean, raw = (half.flatten(0, 1) for half in parameters.chunk(2, dim=2))
                with weights():
                    query = self.query(self.norm_slots(sample)) * sample.shape[2] ** -0.5
                    update, log_attention = attend(query, key, value)
                    mean = self.mean_gru(update.flatten(0, 1), mean)
                    raw = self.scale_gru(update.flatten(0, 1), raw)
                    mean = mean + self.mean_mlp(self.norm_mean(mean))
                    raw = raw + self.scale_mlp(self.norm_scale(raw))
                parameters = torch.cat([mean, raw], dim=1).unflatten(0, (len(images), num_slots))
                layers.append(parameters)
            log_masks = log_attention.unflatten(2, images.shape[2:]).unsqueeze(2)
        return Hierarchy(layers, log_masks)

    def forward(
        self, images: Tensor, noise: Noise | None, num_slots: int, num_refinements: int, keep_graph: bool
    ) -> Inference:
        """Inference and decoding of all steps.

        Gradients have to be enabled. Draws noise `[B, K, D]` for the initial slots, every layer, what the
        priors of the layers are given (layers L to 2, or 1 to L - 1 "bottom_up"), and every refinement.

        Args:
            images: `[B, 3, H, W]` in [0, 1].
            noise: of all draws.
            num_slots: K.
            num_refinements: steps I of refinement.
            keep_graph: let gradients of the result reach the weights; without, each step's graph is freed.
        """
        with torch.set_grad_enabled(keep_graph):
            hierarchy = self.infer(images, noise, num_slots)
        parameters = hierarchy.parameters[-1]
        if not keep_graph:
            parameters = parameters.detach().requires_grad_()
        layers = [*hierarchy.parameters[:-1], parameters]  # so that every path leads through `parameters`
        decoding = repeated(self.decoder)
        sample = posterior_of(parameters).sample(noise)
        with decoding():
            components, log_masks, nll = self._decode_and_score(images, sample)
        posteriors, priors, given = self._layers(layers, noise)
        kl = gaussian_kl(*posteriors, *priors).sum(dim=(1, 2))
        top = Gaussian(*(value[:, -1] for value in priors))
        steps = [Step(posterior_of(parameters), top, sample, components, log_masks, nll, kl)]
        refined_prior = self._refined_prior(priors)
        refining = repeated(self.refinement)
        state: Tensor | None = None
        for step in range(1, num_refinements + 1):
            gradient = self._gradient(steps[-1], parameters, keep_graph)
            with torch.set_grad_enabled(keep_graph), refining():
                parameters, state = self.refinement(parameters, gradient, state)
            if not keep_graph:
                parameters.requires_grad_()
            # nobody asks for the gradient of the last step but the training
            with torch.set_grad_enabled(keep_graph or step < num_refinements):
                posterior = posterior_of(parameters)
                sample = posterior.sample(noise)
                with decoding():
                    components, log_masks, nll = self._decode_and_score(images, sample)
                kl = gaussian_kl(*posterior, *refined_prior).sum(dim=1)
            steps.append(Step(posterior, refined_prior, sample, components, log_masks, nll, kl))
        ladder = self._ladder(posteriors, priors, given, num_refinements)
        return Inference(steps, ladder, hierarchy.log_masks)

    def _layers(self, layers: list[Tensor], noise: Noise | None) -> tuple[Gaussian, Gaussian, Tensor]:
        """Posterior and prior of every layer `[B, L, K, D]`; what priors are given, `[B, L - 1, K, D]`.

        Priors are given fresh samples, not those that the next layer was inferred from.
        """
        posteriors = posterior_of(torch.stack(layers, dim=1))
        if self.prior == "bottom_up":
            drawn = [posterior_of(parameters).sample(noise) for parameters in layers[:-1]]
        else:  # from the last layer down
            drawn = [posterior_of(parameters).sample(noise) for parameters in layers[:0:-1]][::-1]
        first = posteriors.mean[:, :1]
        standard = Gaussian(torch.zeros_like(first), torch.ones_like(first))
        if self.layer_prior is None:
            return posteriors, standard, first[:, :0]
        given = torch.stack(drawn, dim=1)
        inner = self.layer_prior(given)
        pairs = (
            zip(standard, inner, strict=True)
            if self.prior == "bottom_up"
            else zip(inner, standard, strict=True)
        )
        return posteriors, Gaussian(*(torch.cat(pair, dim=1) for pair in pairs)), given

    def _refined_prior(self, priors: Gaussian) -> Gaussian:
        """What refined slots are held against: the first layer's prior in the "++" form, else N(0, 1)."""
        first = Gaussian(*(value[:, 0] for value in priors))
        if self.prior == "reversed++":
            return first
        return Gaussian(torch.zeros_like(first.mean), torch.ones_like(first.scale))

    def _ladder(self, posteriors: Gaussian, priors: Gaussian, given: Tensor, num_refinements: int) -> Ladder:
        """Refined slots of the "++" form stand for layer 1; unrefined bottom-up ones for layer L."""
        if num_refinements and self.prior == "reversed++":
            part = slice(1, None)
        elif not num_refinements and self.prior == "bottom_up":
            part = slice(None, -1)
        else:
            part = slice(0, 0)
            given = given[:, part]
        return Ladder(given, *(Gaussian(x.mean[:, part], x.scale[:, part]) for x in (posteriors, priors)))

    def _gradient(self, step: Step, parameters: Tensor, keep_graph: bool) -> Tensor:
        """Gradient of a step's loss with respect to the posterior's parameters, `[B, K, 2 D]`."""
        loss = (self.step_weights[0] * step.nll + self.step_weights[1] * step.kl).sum()
        (gradient,) = torch.autograd.grad(
            loss / self.refinement_batch_size, parameters, retain_graph=keep_graph
        )
        return gradient

    def _decode_and_score(self, images: Tensor, sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        components, log_masks = self.decoder.decode(sample)
        scene = Scene(components, log_masks)
        nll = scene_nll(images, scene, self.likelihood, self.std, self.normalized_likelihood)
        return components, log_masks, nll


def _mlp(latent_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(latent_dim, 2 * latent_dim), nn.ReLU(inplace=True), nn.Linear(2 * latent_dim, latent_dim)
    )


class EfficientMORL(SceneModel):
    """EfficientMORL: slots from a bottom-up hierarchy of L layers, refined by the gradient of the loss.

    The defaults are the published model (CLEVR6 at 96x96). The network sees images in [-1, 1]; the likelihood
    is of images in [0, 1]. As in Slot Attention, slots come in no fixed order and their number may change.

    **Refinement** follows the gradient of the loss with respect to the slots' posterior, in evaluation too:
    `forward` enables gradients where they are off, even in inference mode, and gives a detached Scene then.
    The weights of error and KL in that loss are those of the last training step; they are part of the model.

    **The curriculum**: training takes `num_refinements` steps of refinement, and `final_refinements` from the
    optimiser step `curriculum_steps` on. Evaluation always takes the latter, as the published one does. Step
    `i` of `I` weighs `(I + 3 - i) / (I + 1)` in the loss.

    **The batch.** In the published code the gradient is that of the mean loss over a process's images. It is
    layer-normalised, with ε = 1e-5, so the result depends on how many they are: 32 / GPUs in training, 1 in
    evaluation. Here the gradient is that of each image's own loss, divided by the constant
    `refinement_batch_size`: the same numbers as published code has for that many images, at any batch size,
    on any number of ranks, and in evaluation. `--model.refinement_batch_size 1` is the published evaluation.

    **What it is a model of.** "reversed++": `p(z^L) = N(0, 1)`, `p(z^l | z^{l+1})`, and slots `z^1` that are
    decoded. Samples are drawn so, and the ELBO is that of this model: the refined slots' KL, which `val/kl`
    shows as the paper does, and the KLs of layers 2 to L besides. Bottom-up slots alone (I = 0) are held
    against N(0, 1). "reversed" and "bottom_up" hold refined slots against N(0, 1), and draw them from it. In
    "bottom_up", `p(z^{l+1} | z^l)` is given a fresh sample of `q(z^l)`, as in the published code.

    Args:
        num_slots: number of slots K.
        image_size: side of the images.
        latent_dim: size of a slot D.
        feature_dim: width of the encoder.
        num_layers: number of layers L.
        decoder: "iodine", four 3x3 convolutions; "small", three 5x5 convolutions (Tetrominoes, with
            `decoder_dim: 32`); "big", transposed convolutions from a small grid.
        decoder_dim: width of the decoder.
        decoder_stages: times the big decoder doubles its grid of side `image_size / 2 ** decoder_stages`.
        prior: "reversed++", "reversed" or "bottom_up".
        num_refinements: steps I of refinement in training. Without any the refinement gets no gradient, which
            several ranks need `--trainer.strategy ddp_find_unused_parameters_true` for.
        final_refinements: I later in training, and in evaluation.
        curriculum_steps: the optimiser step from which on.
        refinement_batch_size: divides the gradient that the refinement sees.
        likelihood: "mixture", "gaussian" around the reconstruction, or "pixel_mixture"; see `GenesisV2`.
        std: standard deviation σ of the likelihood.
        normalized_likelihood: train with the density's `log √2π`; the ELBO always has it.
        learning_rate: of the optimiser, after the warm-up.
        warmup_steps: optimiser steps in which the learning rate rises from 0.
        decay_steps: optimiser steps in which it halves, continuously, after the warm-up; 0 for no decay.
        common: the arguments of every model, of `SceneModel`.

    Raises:
        ConfigurationError: if a size or option does not fit the architecture.
    """

    branches = ("emorl",)
    replays = False
    default_objective = staticmethod(SoftplusGECO)
    network: EMORLNetwork

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        latent_dim: int = 64,
        feature_dim: int = 64,
        num_layers: int = 3,
        decoder: DecoderName = "iodine",
        decoder_dim: int = 64,
        decoder_stages: int = 4,
        prior: PriorName = "reversed++",
        num_refinements: int = 3,
        final_refinements: int = 1,
        curriculum_steps: int = 100_000,
        refinement_batch_size: int = 32,
        likelihood: Likelihood = "mixture",
        std: float = 0.1,
        normalized_likelihood: bool = False,
        warmup_steps: int = 10_000,
        decay_steps: int = 100_000,
        learning_rate: float = 4e-4,
        **common: Any,
    ) -> None:
        _check_options(locals())
        check_likelihood(likelihood, std)
        super().__init__(
            num_slots=num_slots,
            image_size=image_size,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=decay_steps,
            **common,
        )
        self.network = EMORLNetwork(
            image_size,
            latent_dim,
            feature_dim,
            num_layers,
            decoder,
            decoder_dim,
            decoder_stages,
            prior,
            likelihood,
            std,
            normalized_likelihood,
            refinement_batch_size,
        )
        self.latent_dim, self.likelihood, self.std = latent_dim, likelihood, std
        self.num_refinements, self.final_refinements = num_refinements, final_refinements
        self.curriculum_steps = curriculum_steps

    @property
    def current_refinements(self) -> int:
        """Steps of refinement now: by the step in training, the final number in evaluation."""
        early = self.training and self.global_step < self.curriculum_steps
        return self.num_refinements if early else self.final_refinements

    def forward(
        self,
        images: Tensor,
        noise: Noise | None = None,
        num_slots: int | None = None,
        num_refinements: int | None = None,
    ) -> Scene:
        """Infers, refines and decodes the slots of `images` `[B, 3, H, W]` in [0, 1].

        The Scene is that of the last step; the earlier ones are `auxiliary`, "step_0" to "step_I-1". Latents
        are `mean`, `scale`, `sample`, `prior_mean` and `prior_scale`, each `[B, K, D]`, `nll` and `kl` of
        every step, each `[B, I + 1]`, and `ladder_kl` `[B]`, of the latents above. The attention masks are
        those of layer L. For the random draws see `EMORLNetwork.forward`.

        Args:
            images: `[B, 3, H, W]`.
            noise: of all draws.
            num_slots: K of this call; the model's own if None.
            num_refinements: I of this call; `current_refinements` if None.
        """
        return self._scene(self._infer(images, noise, num_slots, num_refinements))

    def _infer(
        self, images: Tensor, noise: Noise | None, num_slots: int | None, num_refinements: int | None
    ) -> Inference:
        """Runs the network with gradients on; the result is detached where they were off."""
        keep_graph = torch.is_grad_enabled()
        if self.training and hasattr(self, "objective"):
            self.follow(self.objective.weights()[:, 0])
        refinements = self.current_refinements if num_refinements is None else num_refinements
        with torch.inference_mode(False), torch.enable_grad():
            if not keep_graph:
                images = images.clone()  # one that was made in inference mode cannot be saved for a gradient
            inference = self.network(images, noise, num_slots or self.num_slots, refinements, keep_graph)
        return inference if keep_graph else _detached(inference)

    @torch.no_grad()
    def follow(self, weights: Tensor) -> None:
        """Sets the weights `[2]` of error and KL in the loss that the refinement follows.

        In training it follows its own objective; as a part of SRI it has none, and is told SRI's.
        """
        self.network.step_weights.copy_(weights)

    def _scene(self, inference: Inference) -> Scene:
        last, ladder = inference.steps[-1], inference.ladder
        return Scene(
            components=last.components,
            log_masks=last.log_masks,
            attention_log_masks=inference.attention_log_masks,
            latents={
                **last.posterior._asdict(),
                "sample": last.sample,
                "prior_mean": last.prior.mean,
                "prior_scale": last.prior.scale,
                "nll": torch.stack([step.nll for step in inference.steps], dim=1),
                "kl": torch.stack([step.kl for step in inference.steps], dim=1),
                "ladder_kl": gaussian_kl(*ladder.posterior, *ladder.prior).sum(dim=(1, 2)),
            },
            auxiliary={
                f"step_{index}": Scene(step.components, step.log_masks)
                for index, step in enumerate(inference.steps[:-1])
            },
        )

    def encode(self, images: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """Posterior `mean`, `scale` and `sample` of every refined slot, each `[B, K, D]`."""
        latents = self(images, noise).latents
        return {name: latents[name] for name in ("mean", "scale", "sample")}

    def decode(self, latents: Tensor) -> Scene:
        """Scene of latents `[B, K, D]`; any number of slots."""
        components, log_masks = self.network.decoder.decode(latents)
        return Scene(components=components, log_masks=log_masks, latents={"sample": latents})

    def make_decoder(self) -> SlotDecoder:
        """A new decoder like the model's own, freshly initialised, for SRI."""
        return small_xavier(self.network.make_decoder())

    def prior(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of `p(z^l | z^{l+1})` at latents `[B, K, D]`, each `[B, K, D]`."""
        if self.network.layer_prior is None:
            return torch.zeros_like(latents), torch.ones_like(latents)
        return self.network.layer_prior(latents)

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        """One branch: error and KL of the last step, and those of the earlier ones in its `steps`."""
        del images  # the network has seen them
        nll, kl = scene.latents["nll"].unbind(dim=1), scene.latents["kl"].unbind(dim=1)
        count = len(nll) - 1
        *earlier, last = (
            Terms(nll[step], {"latent": kl[step]}, (count + 3 - step) / (count + 1))
            for step in range(count + 1)
        )
        return {self.branches[0]: replace(last, steps=tuple(earlier))}

    def elbo(self, scene: Scene, images: Tensor) -> Tensor:
        """Evidence lower bound, normalised likelihood minus the KLs of all latents, nats per image `[B]`."""
        latents = scene.latents
        kl = gaussian_kl(*(latents[name] for name in ("mean", "scale", "prior_mean", "prior_scale"))).sum(
            dim=1
        )
        return -self._nll(scene, images, normalized=True) - kl - latents["ladder_kl"]

    def log_weight(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """`log p(x, z) - log q(z | x)` at one sample, nats per image `[B]`."""
        inference = self._infer(images, noise, None, None)
        last, ladder = inference.steps[-1], inference.ladder
        slots = sampled_gaussian_kl(last.sample, *last.posterior, *last.prior).sum(dim=1)
        above = sampled_gaussian_kl(ladder.sample, *ladder.posterior, *ladder.prior).sum(dim=(1, 2))
        return -self._nll(self._scene(inference), images, normalized=True) - slots - above

    def _nll(self, scene: Scene, images: Tensor, normalized: bool) -> Tensor:
        return scene_nll(images, scene, self.likelihood, self.std, normalized)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
    ) -> Scene:
        """Scenes of the slots' prior, every slot on its own; in the "++" form from layer L down to layer 1.

        Args:
            num_images: how many.
            num_slots: slots of each; may differ from the number trained with.
            temperature: factor on the scale of every latent.
            noise: draws `[num_images, K, D]` per layer from here.
        """
        like = self.network.initial_posterior
        shape = (num_images, num_slots or self.num_slots, self.latent_dim)
        latents = temperature * draw_normal(noise, shape, like)
        for _ in range(self.network.num_layers - 1 if self.network.prior == "reversed++" else 0):
            mean, scale = self.prior(latents)
            latents = Gaussian(mean, temperature * scale).sample(noise)
        return self.decode(latents)

    def configure_model(self) -> None:
        """Compiles the convolutions, nearly all of the work; the gradient inside stays eager."""
        for part in (self.network.encoder, self.network.decoder):
            if self.compile_mode is not None:
                # the decoder's graph is gone through twice: its buffers cannot be given away the first time
                functorch_config.donated_buffer = False
                compile_for_training(part, self.compile_mode)


def _detached(inference: Any) -> Any:
    """The same without a graph."""
    return tree_map_only(Tensor, Tensor.detach, inference)


def _check_options(options: dict[str, object]) -> None:
    """Refuses what does not fit; `options` are the constructor's arguments by name."""
    least = {
        "num_slots": 1,
        "image_size": 2,
        "latent_dim": 1,
        "feature_dim": 1,
        "num_layers": 1,
        "decoder_dim": 1,
        "decoder_stages": 0,
        "num_refinements": 0,
        "final_refinements": 0,
        "curriculum_steps": 0,
        "refinement_batch_size": 1,
    }
    for name, minimum in least.items():
        value = options[name]
        if not isinstance(value, int) or value < minimum:
            raise ConfigurationError(f"{name}={value!r} is too small: use a whole number >= {minimum}")
    for name, known in {"decoder": ("iodine", "small", "big"), "prior": PRIORS}.items():
        if options[name] not in known:
            raise ConfigurationError(f"{name}={options[name]!r} is unknown: use one of {', '.join(known)}")
