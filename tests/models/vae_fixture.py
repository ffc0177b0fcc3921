"""The VAEs with the fixture's weights, and one training step of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_genesis.interop.vae import vae_key
from lightning_genesis.models import VAE
from lightning_genesis.models.vae import DecoderName
from lightning_genesis.scene import Scene, Terms
from tests.reference import FixtureNoise, fill_with_fixture, images
from tests.reference.vae import official_keys


def fixture_model(decoder: DecoderName, image_size: int = 64) -> VAE:
    """A model with the fixture's weights, in training mode."""
    model = VAE(image_size=image_size, decoder=decoder)
    fill_with_fixture(model, official_keys(decoder), vae_key)
    return model.train()


@dataclass
class Step:
    """A training forward and backward with the fixture's images and noise."""

    model: VAE
    scene: Scene
    terms: Terms
    loss: Tensor

    @property
    def gradient_norm(self) -> Tensor:
        """Norm over all parameters jointly."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        assert len(gradients) == len([*self.model.parameters()])
        return torch.nn.utils.get_total_norm(gradients)


def training_step(model: VAE) -> Step:
    """Forward and backward of `mean nll + mean KL` with weight 1."""
    batch = images(model.image_size)
    scene = model(batch, FixtureNoise())
    terms = model.loss_terms(scene, batch)["vae"]
    loss = terms.nll.mean() + terms.total_kl.mean()
    loss.backward()
    return Step(model, scene, terms, loss)
