"""How likely a prior finds the slots of test images, and the ELBO of the model with it."""

from collections.abc import Sequence
from math import log, pi
from typing import Any, cast

import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import SceneModel
from lightning_genesis.models.base import EVALUATION_SEED
from lightning_genesis.priors.base import SetPrior
from lightning_genesis.scene import IndexedNoise, Scene

IMAGES_AT_ONCE = 64
PRIOR_SEED = EVALUATION_SEED + 1
"""Of the noise by which a density is estimated, another than that of the slots."""


@torch.no_grad()
def score_prior(model: SceneModel, prior: SetPrior, dataset: Any, indices: Sequence[int]) -> dict[str, float]:
    """Means over images, in nats per image.

    Args:
        model: in evaluation mode.
        prior: of its slots.
        dataset: gives batches by `__getitems__`.
        indices: positions of the images.

    Returns:
        `log_density`, of the posterior's samples under the prior; and where the model has a likelihood and a
        prior over slots of its own, `log_density_own`, and the ELBO by one sample with each: `elbo`,
        `elbo_own`. The two share the samples, so that their difference is that of the densities.
    """
    device = next(model.parameters()).device
    prior = prior.to(device)
    sums: dict[str, float] = {}
    for first in range(0, len(indices), IMAGES_AT_ONCE):
        batch = dataset.__getitems__(list(indices[first : first + IMAGES_AT_ONCE]))
        batch = model.on_after_batch_transfer({**batch, "image": batch["image"].to(device)}, 0)
        scene = model.predict_step(batch, 0)
        slots = scene.slot_latents
        assert slots is not None
        values = {"log_density": prior.log_density(slots.float(), IndexedNoise(PRIOR_SEED, batch["index"]))}
        own = own_log_density(model, scene)
        if own is not None:
            values["log_density_own"] = own
            values["elbo_own"] = model.log_weight(
                batch["image"], IndexedNoise(EVALUATION_SEED, batch["index"])
            )
            values["elbo"] = values["elbo_own"] - own + values["log_density"]
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.double().sum().item()
    prior.cpu()
    return {name: value / len(indices) for name, value in sums.items()}


def own_log_density(model: SceneModel, scene: Scene) -> Tensor | None:
    """Log density of a scene's slots under the prior that the model was trained with, nats `[B]`.

    None where the model has none of slots alone (a scene variable, a ladder), or no likelihood.
    """
    own, slots = cast(Any, model), scene.slot_latents
    known = callable(getattr(model, "prior", None)) and "prior_mean" not in scene.latents
    if slots is None or model.scene_dim is not None or not known:
        return None
    try:
        if type(model).log_weight is SceneModel.log_weight:
            return None
        mean, scale = own.prior(slots)
    except (ConfigurationError, TypeError):
        return None
    return -(0.5 * ((slots - mean) / scale).square() + scale.log() + 0.5 * log(2.0 * pi)).sum(dim=(1, 2))
