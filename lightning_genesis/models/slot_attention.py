"""Slot Attention.

Locatello, Weissenborn, Unterthiner, Mahendran, Heigold, Uszkoreit, Dosovitskiy, Kipf: "Object-Centric
Learning with Slot Attention", NeurIPS 2020. The object discovery model: an autoencoder without a prior over
scenes.
"""

from math import sqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.gaussian import softplus_scale
from lightning_genesis.layers.slot_attention import (
    ENCODER_STRIDES,
    LAYER_NORM_EPSILON,
    POSITION_ORDER,
    Implementation,
    PixelEncoder,
    SlotAttentionModule,
)
from lightning_genesis.layers.slot_decoder import SlotDecoder
from lightning_genesis.models.base import SceneModel
from lightning_genesis.objectives import FixedBeta
from lightning_genesis.precision import full_precision
from lightning_genesis.scene import Noise, Scene, Terms, draw_normal

DecoderName = Literal["big", "small"]


class Inference(NamedTuple):
    """What the encoder says about a batch."""

    slots: Tensor
    """`[B, K, D]`."""
    log_masks: Tensor
    """Attention of the last iteration at the size of the image, normalised over slots, `[B, K, 1, H, W]`."""


class SlotAttentionNetwork(PixelEncoder):
    """Encoder, Slot Attention and decoder; the slots are folded into the batch in the decoder.

    Args: see `SlotAttention`.
    """

    def __init__(
        self,
        image_size: int,
        slot_dim: int,
        feature_dim: int,
        mlp_dim: int,
        encoder_stages: int,
        decoder: DecoderName,
        decoder_dim: int,
        decoder_stages: int,
        implementation: Implementation,
        num_queries: int | None,
        implicit_gradient: bool,
    ) -> None:
        super().__init__(image_size, feature_dim, encoder_stages, implementation)
        self.num_queries, self.implicit_gradient = num_queries, implicit_gradient
        self.implementation, epsilon = implementation, LAYER_NORM_EPSILON[implementation]
        self.attention = SlotAttentionModule(
            feature_dim, slot_dim, mlp_dim, norm_inputs=implementation == "official", epsilon=epsilon
        )
        self.decoder = SlotDecoder(slot_dim, image_size, decoder_dim, decoder, decoder_stages, implementation)
        shape = (1, 2 * slot_dim) if num_queries is None else (num_queries, slot_dim)
        # a fixed point does not depend on where it was sought from: nothing would train a Gaussian of that
        learned = num_queries is not None or not implicit_gradient
        self.initial_slots = nn.Parameter(torch.zeros(shape), requires_grad=learned)
        """Mean and raw scale that all slots start from; or the queries, one for each slot."""
        self._initialise(slot_dim)

    @torch.no_grad()
    def _initialise(self, slot_dim: int) -> None:
        """Keras's initial values, or those of EMORL's repository."""
        if self.implementation == "emorl":
            if self.num_queries is None:
                self.initial_slots[:, slot_dim:] = 1.0
            else:
                nn.init.xavier_uniform_(self.initial_slots)
            for name, value in self.decoder.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(value)
                else:
                    nn.init.xavier_normal_(value, gain=0.02)
            return
        limit = sqrt(6.0 / (slot_dim + 1))
        nn.init.uniform_(self.initial_slots, -limit, limit)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        gru = self.attention.gru
        nn.init.xavier_uniform_(gru.weight_ih)
        nn.init.orthogonal_(gru.weight_hh)
        nn.init.zeros_(gru.bias_ih)
        nn.init.zeros_(gru.bias_hh)

    def start(self, noise: Noise | None, images: Tensor, num_slots: int) -> Tensor:
        """Slots before the first iteration, drawn from one Gaussian, or the queries, `[B, K, D]`."""
        if self.num_queries is not None:
            if num_slots != self.num_queries:
                raise ConfigurationError(
                    f"num_slots={num_slots}, but there are {self.num_queries} learned queries, one a slot"
                )
            return self.initial_slots.expand(len(images), -1, -1)
        mean, raw = self.initial_slots.chunk(2, dim=1)
        scale = raw.exp() if self.implementation == "official" else softplus_scale(raw)
        shape = (len(images), num_slots, mean.shape[1])
        return mean + scale * draw_normal(noise, shape, images)

    def infer(self, images: Tensor, noise: Noise | None, num_slots: int, num_iterations: int) -> Inference:
        """Slots of images in [0, 1]; draws noise `[B, K, D]`."""
        pixels = self.pixels(images)
        slots, log_attention = self.attention(
            pixels,
            self.start(noise, images, num_slots),
            num_iterations,
            gradient_iterations=1 if self.implicit_gradient else None,
            straight_through=self.num_queries is not None,
        )
        return Inference(slots, self.masks(log_attention, images))

    def decode(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Components in the range of the images `[B, K, 3, H, W]` and log-masks `[B, K, 1, H, W]`."""
        return self.decoder.decode(slots)

    def forward(
        self, images: Tensor, noise: Noise | None, num_slots: int, num_iterations: int
    ) -> tuple[Tensor, Tensor, Inference]:
        """Inference and decoding in one compilable piece."""
        inference = self.infer(images, noise, num_slots, num_iterations)
        components, log_masks = self.decode(inference.slots)
        return components, log_masks, inference


class SlotAttention(SceneModel):
    """Slot Attention for object discovery: slots compete for pixels over a few iterations.

    The defaults are the published model (CLEVR6 at 128x128). It sees images in [-1, 1] and decodes into
    [-1, 1]; both are mapped here, so images and components are in [0, 1] as everywhere, the components not
    clamped. Its loss is the mean squared error over all pixels and channels of the images in [-1, 1], four
    times that of images in [0, 1]. It has no likelihood, no ELBO and nothing to sample from.

    `implementation: emorl` is the Slot Attention of EfficientMORL's repository: components through a sigmoid,
    the sum of squared errors in [0, 1], PyTorch's layer normalisation and initial values, no normalisation
    of the inputs of the attention, `padding=2, output_padding=1` in the decoder, another order of the
    position features, a softplus for the variance of the initial slots, and a learning rate that decays only
    after the warm-up.

    The numbers of slots and iterations are no part of the weights and may be others at evaluation.

    Args:
        num_slots: number of slots K.
        image_size: side of the images.
        slot_dim: size of a slot D.
        feature_dim: width of the encoder.
        mlp_dim: width of the residual MLP of the slots.
        num_iterations: of the attention.
        encoder_stages: times the encoder halves the image, 0 to 3.
        decoder: "big" doubles a small grid by transposed convolutions; "small" is three 5x5 convolutions at
            full size, for Multi-dSprites (with `decoder_dim: 32`).
        decoder_dim: width of the decoder.
        decoder_stages: times the big decoder doubles its grid of side `image_size / 2 ** decoder_stages`;
            from 8x8 in the paper.
        implementation: "official", or "emorl".
        learned_queries: start every slot from a learned vector of its own, not from noise. With
            `implicit_gradient` this is BO-QSA (Jia, Liu, Huang, ICLR 2023): the queries get the gradient that
            is held back from the iterations. The number of slots is then fixed.
        implicit_gradient: let the gradient through the last iteration alone (Chang, Griffiths, Levine,
            NeurIPS 2022); see `SlotAttentionModule`. The Gaussian that slots start from is then not trained.
        learning_rate: of the optimiser, after the warm-up.
        warmup_steps: optimiser steps in which the learning rate rises from 0.
        decay_steps: optimiser steps in which it halves, continuously, from step 0 on; 0 for no decay.
        common: the arguments of every model, of `SceneModel`.

    Raises:
        ConfigurationError: if a size or option does not fit the architecture.
    """

    branches = ("slot_attention",)
    default_objective = staticmethod(FixedBeta)
    network: SlotAttentionNetwork

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        slot_dim: int = 64,
        feature_dim: int = 64,
        mlp_dim: int = 128,
        num_iterations: int = 3,
        encoder_stages: int = 0,
        decoder: DecoderName = "big",
        decoder_dim: int = 64,
        decoder_stages: int = 4,
        implementation: Implementation = "official",
        learned_queries: bool = False,
        implicit_gradient: bool = False,
        warmup_steps: int = 10_000,
        decay_steps: int = 100_000,
        learning_rate: float = 4e-4,
        **common: Any,
    ) -> None:
        _check_options(locals())
        self.decay_in_warmup = implementation == "official"
        super().__init__(
            num_slots=num_slots,
            image_size=image_size,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=decay_steps,
            **common,
        )
        self.network = SlotAttentionNetwork(
            image_size,
            slot_dim,
            feature_dim,
            mlp_dim,
            encoder_stages,
            decoder,
            decoder_dim,
            decoder_stages,
            implementation,
            num_slots if learned_queries else None,
            implicit_gradient,
        )
        self.num_iterations, self.implementation = num_iterations, implementation

    def forward(
        self,
        images: Tensor,
        noise: Noise | None = None,
        num_slots: int | None = None,
        num_iterations: int | None = None,
    ) -> Scene:
        """Infers and decodes the slots of `images` `[B, 3, H, W]` in [0, 1].

        Draws standard normal noise `[B, K, D]`. The latents of the Scene are `slots`, `[B, K, D]`. The
        attention masks are those of the last iteration; where the encoder's map is smaller than the image,
        their logarithms are interpolated and normalised again, without a gradient.

        Args:
            images: `[B, 3, H, W]`.
            noise: of the initial slots.
            num_slots: K of this call; the model's own if None.
            num_iterations: iterations of this call; the model's own if None.
        """
        run = self.network if noise is None else self.network.forward  # a compiled network knows no noise
        components, log_masks, inference = run(
            images, noise, num_slots or self.num_slots, num_iterations or self.num_iterations
        )
        return Scene(
            components=components,
            log_masks=log_masks,
            attention_log_masks=inference.log_masks,
            latents={"slots": inference.slots},
        )

    def encode(self, images: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """The `slots` of images, `[B, K, D]`."""
        return {"slots": self.network.infer(images, noise, self.num_slots, self.num_iterations).slots}

    def decode(self, latents: Tensor) -> Scene:
        """Scene of slots `[B, K, D]`; any number of them."""
        components, log_masks = self.network.decode(latents)
        return Scene(components=components, log_masks=log_masks, latents={"slots": latents})

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        """One branch without a divergence; `nll` is the squared error in the model's own units, `[B]`.

        Official: the mean over pixels and channels in [-1, 1]. EMORL: the sum over them in [0, 1].
        """
        with full_precision(images):
            squared = (scene.reconstruction.float() - images.float()).square()
            if self.implementation == "official":
                error = 4.0 * squared.mean(dim=(1, 2, 3))
            else:
                error = squared.sum(dim=(1, 2, 3))
        return {"slot_attention": Terms(error, {})}

    def elbo(self, scene: Scene, images: Tensor) -> Tensor | None:
        """There is no likelihood and no bound."""
        return None


def _check_options(options: dict[str, object]) -> None:
    """Refuses what does not fit; `options` are the constructor's arguments by name."""
    least = {
        "num_slots": 1,
        "image_size": 2,
        "slot_dim": 1,
        "feature_dim": 1,
        "mlp_dim": 1,
        "num_iterations": 1,
        "decoder_dim": 1,
        "decoder_stages": 0,
    }
    for name, minimum in least.items():
        value = options[name]
        if not isinstance(value, int) or value < minimum:
            raise ConfigurationError(f"{name}={value!r} is too small: use a whole number >= {minimum}")
    choices = {
        "encoder_stages": tuple(ENCODER_STRIDES),
        "decoder": ("big", "small"),
        "implementation": tuple(POSITION_ORDER),
    }
    for name, known in choices.items():
        if options[name] not in known:
            raise ConfigurationError(
                f"{name}={options[name]!r} is unknown: use one of {', '.join(map(str, known))}"
            )
