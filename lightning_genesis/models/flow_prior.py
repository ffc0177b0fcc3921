"""GENESIS-V2 whose slots have a set flow as their prior, trained together with the model. Not in a paper.

The idea is that of latent score-based models (Vahdat, Kreis, Kautz: "Score-based Generative Modeling in
Latent Space", NeurIPS 2021), on a set of slots: the KL of the posterior from the prior is the posterior's
negative entropy, in closed form, plus a bound on the cross entropy that needs one evaluation of the flow.
`lightning-genesis fit-prior` fits the same flow to a model that is trained already.
"""

from dataclasses import replace
from math import e, log, pi
from typing import Any

import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.set_flow import SetFlow
from lightning_genesis.models.genesis_v2 import GenesisV2
from lightning_genesis.precision import full_precision
from lightning_genesis.scene import Noise, Scene, draw_normal, draw_uniform


class FlowGenesisV2(GenesisV2):
    """GENESIS-V2 with a set flow as the slots' prior.

    ELBO and KL are with an upper bound of the cross entropy, by one sample of slots, noise and time; see
    `SetFlow.cross_entropy`.

    Args:
        num_slots: number of slots K.
        image_size: side of the images.
        flow_width: of the flow's transformer.
        flow_layers: its blocks.
        flow_heads: of its attention; divides the width.
        autoregressive_prior: there is none: the flow is the prior.
        options: of `GenesisV2`, but a flexible number of slots.

    Raises:
        ConfigurationError: if a size or option does not fit the architecture.
    """

    prior: Any = None  # it has no mean and no scale

    def __init__(
        self,
        num_slots: int,
        image_size: int,
        flow_width: int = 64,
        flow_layers: int = 3,
        flow_heads: int = 4,
        autoregressive_prior: bool = False,
        **options: Any,
    ) -> None:
        wanted = {"autoregressive_prior": autoregressive_prior} | options
        for name in ("autoregressive_prior", "flexible_slots"):
            if wanted.get(name):
                raise ConfigurationError(f"{name}=True: the prior is a flow over all slots; leave it out")
        super().__init__(num_slots, image_size, autoregressive_prior=False, **options)
        own = {"flow_width": flow_width, "flow_layers": flow_layers, "flow_heads": flow_heads}
        self.save_hyperparameters(own, logger=False)
        self.flow = SetFlow(self.latent_dim, flow_width, flow_layers, flow_heads)

    def forward(self, images: Tensor, noise: Noise | None = None) -> Scene:
        """As `GenesisV2`, whose noise is drawn first, then a number `[B, 1]` and noise `[B, K, D]`.

        The latents of the Scene have `cross_entropy` `[B]` too, of the sample under the prior.
        """
        scene = super().forward(images, noise)
        sample = scene.latents["sample"]
        with full_precision(sample):
            place = draw_uniform(noise, (len(sample), 1), sample).flatten()
            bound = self.flow.cross_entropy(sample, draw_normal(noise, sample.shape, sample), place)
        return replace(scene, latents=scene.latents | {"cross_entropy": bound})

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
    ) -> Scene:
        """Scenes drawn from the flow.

        Args:
            num_images: how many.
            num_slots: slots of each; may differ from the number trained with.
            temperature: factor on the noise that the flow carries to slots.
            noise: draws `[num_images, K, D]` from here.
        """
        shape = (num_images, num_slots or self.num_slots, self.latent_dim)
        return self.decode(self.flow.push(temperature * draw_normal(noise, shape, self.network.decoder.grid)))

    def _latent_kl(self, scene: Scene, analytic: bool) -> Tensor:
        mean, scale, sample = (scene.latents[name] for name in ("mean", "scale", "sample"))
        entropy = scale.log() + 0.5 * log(2.0 * pi * e)
        if not analytic:
            entropy = entropy + 0.5 * (((sample - mean) / scale).square() - 1.0)
        return scene.latents["cross_entropy"] - entropy.sum(dim=(1, 2))
