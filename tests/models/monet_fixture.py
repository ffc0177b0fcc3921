"""MONet with the fixture's weights, and one training step of it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_genesis.interop.monet import monet_key
from lightning_genesis.models import MONet
from lightning_genesis.scene import Scene, Terms
from tests.reference import fill_with_fixture, images
from tests.reference.monet import SlotMajorNoise, official_keys


def fixture_model(num_slots: int = 5, image_size: int = 64, **options: Any) -> MONet:
    """A model with the fixture's weights, in training mode."""
    model = MONet(num_slots, image_size, **options)
    fill_with_fixture(model, official_keys({32: 4, 64: 5, 128: 6}[image_size]), monet_key)
    return model.train()


@dataclass
class Step:
    """A training forward and backward with the fixture's images and noise."""

    model: MONet
    images: Tensor
    scene: Scene
    terms: Terms
    loss: Tensor

    @property
    def gradient_norm(self) -> Tensor:
        """Norm over all parameters jointly."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        assert len(gradients) == len([*self.model.parameters()])
        return torch.nn.utils.get_total_norm(gradients)


def training_step(model: MONet) -> Step:
    """Forward and backward of `mean nll + mean KL` with weight 1."""
    batch = images(model.image_size)
    scene = model(batch, SlotMajorNoise())
    terms = model.loss_terms(scene, batch)["monet"]
    loss = terms.nll.mean() + terms.total_kl.mean()
    loss.backward()
    return Step(model, batch, scene, terms, loss)
