"""A model whose samples come from a fitted prior."""

from typing import Any

import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import SceneModel
from lightning_genesis.priors.base import SetPrior
from lightning_genesis.scene import Noise, Scene


class PriorSampler:
    """Takes the place of a model's `sample`: slots from a prior, the model's decoder.

    Args:
        model: which decodes.
        prior: of slots of the model's size.
    """

    def __init__(self, model: SceneModel, prior: SetPrior) -> None:
        self.model, self.prior = model, prior.eval()

    @torch.no_grad()
    def __call__(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
        scene_latent: Tensor | None = None,
    ) -> Scene:
        """As `SceneModel.sample`, with `scene_latent` `[num_images, S]` where the prior has a scene variable.

        Raises:
            ConfigurationError: if `scene_latent` is given to a prior without one.
        """
        if scene_latent is not None and self.prior.scene_dim is None:
            raise ConfigurationError(f"scene_latent was given: a {self.prior.kind} has no scene variable")
        self.prior.to(next(self.model.parameters()).device)
        slots = self.prior.draw(num_images, num_slots, temperature, noise, scene_latent)
        model: Any = self.model
        return model.decode(slots)


def attach_prior(model: SceneModel, prior: SetPrior) -> None:
    """Lets `model.sample`, and all that draws from it, draw from `prior` from now on.

    The prior is no part of the model's weights. `model.scene_dim` becomes the prior's.

    Raises:
        ConfigurationError: if the model has no slots that can be decoded.
    """
    check_decodes(model)
    sampler: Any = PriorSampler(model, prior)
    own: Any = model
    own.sample, own.scene_dim = sampler, prior.scene_dim


def check_decodes(model: SceneModel) -> None:
    """Refuses a model that does not decode slots.

    Raises:
        ConfigurationError: if it is one.
    """
    if not callable(getattr(model, "decode", None)):
        raise ConfigurationError(f"a {type(model).__name__} has no slots to decode, and so no prior to fit")
