"""GENESIS-V2 with the fixture's weights, and one training step of it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_genesis.interop.genesis_v2 import genesis_v2_key
from lightning_genesis.models import GenesisV2
from lightning_genesis.objectives import sampled_gaussian_kl
from lightning_genesis.scene import Scene, Terms
from tests.reference import FixtureNoise, fill_with_fixture, images
from tests.reference.genesis_v2 import official_keys


def fixture_model(num_slots: int = 7, image_size: int = 64, **options: Any) -> GenesisV2:
    """A model with the fixture's weights, in training mode."""
    model = GenesisV2(num_slots, image_size, **options)
    keys = official_keys(
        num_blocks={32: 4, 64: 5, 128: 6}[image_size],
        semi_convolutional=options.get("semi_convolutional", True),
        autoregressive=options.get("autoregressive_prior", True),
    )
    fill_with_fixture(model, keys, genesis_v2_key)
    return model.train()


@dataclass
class Step:
    """A training forward and backward with the fixture's images and noise."""

    model: GenesisV2
    images: Tensor
    scene: Scene
    terms: Terms
    loss: Tensor

    @property
    def slot_kl(self) -> Tensor:
        """KL of every slot, `[B, K]`."""
        sample = self.scene.latents["sample"]
        with torch.no_grad():
            prior = self.model.prior(sample)
            return sampled_gaussian_kl(
                sample, self.scene.latents["mean"], self.scene.latents["scale"], *prior
            )

    @property
    def gradient_norm(self) -> Tensor:
        """Norm over all parameters jointly."""
        return torch.nn.utils.get_total_norm([gradient(p) for p in self.model.parameters()])


def gradient(parameter: Tensor) -> Tensor:
    """The gradient, which must be there."""
    assert parameter.grad is not None
    return parameter.grad


def training_step(model: GenesisV2) -> Step:
    """Forward and backward of `mean nll + mean KL` with weight 1."""
    batch = images(model.image_size)
    scene = model(batch, FixtureNoise())
    terms = model.loss_terms(scene, batch)["genesis_v2"]
    loss = terms.nll.mean() + terms.total_kl.mean()
    loss.backward()
    return Step(model, batch, scene, terms, loss)
