"""GENESIS and GENESIS-S with the fixture's weights, and one training step of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_genesis.interop.genesis import genesis_key
from lightning_genesis.models import Genesis
from lightning_genesis.objectives import sampled_gaussian_kl
from lightning_genesis.scene import Scene, Terms
from tests.reference import FixtureNoise, fill_with_fixture, images
from tests.reference.genesis import official_keys
from tests.reference.monet import SlotMajorNoise


class ForwardNoise(SlotMajorNoise):
    """One draw per slot for the mask latents, then one for all component latents."""

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Mask latents have 64 dimensions, component latents 16."""
        return super().normal(shape, like) if shape[-1] == 16 else FixtureNoise.normal(self, shape, like)


def fixture_model(num_slots: int = 5, image_size: int = 64, **options: Any) -> Genesis:
    """A model with the fixture's weights, in training mode."""
    model = Genesis(num_slots, image_size, **options)
    keys = official_keys(
        two_stage=options.get("two_stage", True),
        symmetric=options.get("symmetric_components", False),
        component_prior=options.get("component_prior", True),
        autoregressive=options.get("autoregressive_prior", True),
        norm=options.get("norm", "batch"),
        one_slot=num_slots == 1,
    )
    fill_with_fixture(model, keys, genesis_key)
    return model.train()


@dataclass
class Step:
    """A training forward and backward with the fixture's images and noise."""

    model: Genesis
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


@torch.no_grad()
def slot_kl(model: Genesis, scene: Scene) -> dict[str, Tensor]:
    """KL of every slot and kind of latent, `[B, K]`."""
    latents = scene.latents
    values = (
        latents["sample"],
        latents["mean"],
        latents["scale"],
        *model.prior(latents["sample"]),
    )
    parts = zip(*(value.split(model.network.dims, dim=2) for value in values), strict=True)
    return {name: sampled_gaussian_kl(*part) for name, part in zip(("mask", "component"), parts, strict=True)}


def training_step(model: Genesis) -> Step:
    """Forward and backward of `mean nll + mean KL` with weight 1."""
    batch = images(model.image_size)
    scene = model(batch, ForwardNoise())
    terms = model.loss_terms(scene, batch)["genesis"]
    loss = terms.nll.mean() + terms.total_kl.mean()
    loss.backward()
    return Step(model, batch, scene, terms, loss)
