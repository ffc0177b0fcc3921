"""The slots of a split, by a trained model, as priors are fitted to them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import SceneModel

IMAGES_AT_ONCE = 64
SAMPLE, MEAN, SCALE = "sample", "mean", "scale"


@torch.no_grad()
def encode_slots(
    model: SceneModel,
    dataset: Any,
    indices: Sequence[int],
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Slots of images with noise that belongs to each image, on the CPU, float32.

    Args:
        model: in evaluation mode.
        dataset: gives batches by `__getitems__`.
        indices: positions of the images.
        progress: is told how many images each batch had.

    Returns:
        `sample` `[N, K, D]`, the slots; `mean` and `scale` likewise where a new sample of the posterior can
        be made of them, one slot independent of the others given the image.

    Raises:
        ConfigurationError: if the model has no slots, or leaves some out.
    """
    device = next(model.parameters()).device
    parts: list[dict[str, Tensor]] = []
    for first in range(0, len(indices), IMAGES_AT_ONCE):
        batch = dataset.__getitems__(list(indices[first : first + IMAGES_AT_ONCE]))
        batch = model.on_after_batch_transfer({**batch, "image": batch["image"].to(device)}, 0)
        scene = model.predict_step(batch, 0).to("cpu")
        slots = scene.slot_latents
        if slots is None:
            raise ConfigurationError(f"a {type(model).__name__} has no slots, and so no prior to fit")
        if scene.num_active is not None and bool((scene.num_active < scene.num_slots).any()):
            raise ConfigurationError(
                "flexible_slots is true: some slots are not in use and mean nothing; encode with "
                "model.flexible_slots = False"
            )
        found = {SAMPLE: slots.float()}
        if not model.slots_in_order and {MEAN, SCALE} <= scene.latents.keys():
            found |= {name: scene.latents[name].float() for name in (MEAN, SCALE)}
        parts.append(found)
        if progress is not None:
            progress(len(slots))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def to_fit(slots: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """`sets` and `scales` of `fit_prior`, of what `encode_slots` returned."""
    if MEAN in slots:
        return {"sets": slots[MEAN], "scales": slots[SCALE]}
    return {"sets": slots[SAMPLE], "scales": None}
