"""Generation measured three ways: reconstructions, slots recombined across images, samples of priors.

All are compared with the same reference: the images themselves, or their reconstructions, which leave the
decoder out and ask about the prior alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.metrics.object_statistics import (
    BINS,
    FACTORS,
    count_blobs,
    object_statistics,
    total_variation,
)
from lightning_genesis.metrics.structural_accuracy import judge_towers
from lightning_genesis.metrics.two_sample import component_frechet, random_net_mmd, two_sample_accuracy
from lightning_genesis.models import SceneModel
from lightning_genesis.models.base import EVALUATION_SEED
from lightning_genesis.scene import IndexedNoise, Scene

BATCH_SIZE = 64
Reference = Literal["images", "reconstructions"]


@dataclass
class Gathered:
    """Images of one origin and what was counted in them, on the CPU."""

    images: Tensor
    """Clamped to [0, 1], `[N, 3, H, W]`."""
    blobs: Tensor
    """`count_blobs`, `[N]`."""
    objects: Tensor | None = None
    """Number of objects by masks, `[N]`; None for images alone, and for models of one slot."""
    factors: dict[str, Tensor] = field(default_factory=dict)
    """Of all objects together, by name, each `[M]`."""
    towers: Tensor | None = None
    """Whether each is a correct tower, bool `[N]`; None where the data show none."""


def gather(scenes: Iterable[Scene], towers: bool = False) -> Gathered:
    """Looks at scenes that come in batches."""
    images, objects, judged = [], [], []
    factors: dict[str, list[Tensor]] = {name: [] for name in FACTORS}
    for scene in scenes:
        scene = scene.to("cpu")
        images.append(scene.reconstruction.float().clamp(0.0, 1.0))
        if scene.num_slots == 1:
            continue
        found = object_statistics(scene)
        objects.append(found.num_objects)
        for name in FACTORS:
            factors[name].append(found.factors[name][found.present])
        if towers:
            judged.append(judge_towers(scene.segmentation(), images[-1]).correct)
    together = torch.cat(images)
    return Gathered(
        together,
        count_blobs(together),
        torch.cat(objects) if objects else None,
        {name: torch.cat(values) for name, values in factors.items()} if objects else {},
        torch.cat(judged) if judged else None,
    )


def read_images(dataset: Any, indices: Sequence[int]) -> Gathered:
    """Images of a dataset as they are."""
    parts = []
    for first in range(0, len(indices), BATCH_SIZE):
        image = dataset.__getitems__(list(indices[first : first + BATCH_SIZE]))["image"]
        parts.append(image.float() / 255.0 if image.dtype == torch.uint8 else image)
    images = torch.cat(parts)
    return Gathered(images, count_blobs(images))


@torch.no_grad()
def reconstructions(model: SceneModel, dataset: Any, indices: Sequence[int]) -> Iterator[Scene]:
    """Scenes of images as the decoder makes them of posterior samples; noise belongs to each image.

    MONet's own reconstruction mixes by attention masks, which only an image has; here it is by decoded ones.
    """
    device = next(model.parameters()).device
    for first in range(0, len(indices), BATCH_SIZE):
        batch = dataset.__getitems__(list(indices[first : first + BATCH_SIZE]))
        batch = model.on_after_batch_transfer({**batch, "image": batch["image"].to(device)}, 0)
        scene: Scene = model.predict_step(batch, 0)
        yield replace(scene, log_masks=scene.log_masks_of("decoded"), decoded_log_masks=None)


@torch.no_grad()
def recombined(model: SceneModel, slots: Tensor, seed: int = EVALUATION_SEED) -> Iterator[Scene]:
    """Scenes whose K slots are of K images: slot k of scene i is slot k of an image drawn for it.

    Every slot of every image is used once. Nothing makes them fit together, nor sees to it that a scene gets
    one background, unless the model's slots have places of their own.

    Args:
        model: decodes.
        slots: of images, `[N, K, D]`.
        seed: of the permutations.
    """
    decode: Callable[[Tensor], Scene] = model.decode  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(seed)
    columns = [slot[torch.randperm(len(slots), generator=generator)] for slot in slots.unbind(dim=1)]
    device = next(model.parameters()).device
    for some in torch.stack(columns, dim=1).split(BATCH_SIZE):
        yield decode(some.to(device))


@torch.no_grad()
def drawn(
    model: SceneModel, count: int, seed: int = EVALUATION_SEED, temperature: float = 1.0
) -> Iterator[Scene]:
    """Samples of the model's prior, or of the one that was attached to it; sample `i` has noise `(seed, i)`.

    Raises:
        ConfigurationError: if the model has no prior.
    """
    for first in range(0, count, BATCH_SIZE):
        numbers = range(first, min(first + BATCH_SIZE, count))
        yield model.sample(len(numbers), None, temperature, IndexedNoise(seed, numbers))


def compare(reference: Gathered, other: Gathered, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, float]:
    """How far images are from a reference; all but the accuracy of towers are lower for better ones.

    Args:
        reference: what they should be like.
        other: the images.
        seeds: of the two-sample classifier; none of it if empty.

    Returns:
        `two_sample_accuracy` and the ends of its interval, `_low` and `_high`; `random_net_mmd`;
        `component_frechet`; total variations `blob_count_tv`, `object_count_tv`, `object_area_tv`, ...; and
        `s_acc`, where the data show towers.

    Raises:
        ConfigurationError: if there are too few images to compare.
    """
    if min(len(reference.images), len(other.images)) < 4:
        raise ConfigurationError(f"{len(other.images)} images to compare, expected four or more")
    values: dict[str, float] = {}
    if seeds:
        told = two_sample_accuracy(reference.images, other.images, seeds)
        values |= {
            "two_sample_accuracy": told.accuracy,
            "two_sample_accuracy_low": told.low,
            "two_sample_accuracy_high": told.high,
        }
    values["random_net_mmd"] = random_net_mmd(reference.images, other.images)
    values["component_frechet"] = component_frechet(reference.images, other.images)
    values["blob_count_tv"] = total_variation(reference.blobs, other.blobs)
    if reference.objects is not None and other.objects is not None:
        values["object_count_tv"] = total_variation(reference.objects, other.objects)
        for name in FACTORS:
            values[f"object_{name}_tv"] = total_variation(reference.factors[name], other.factors[name], BINS)
    if other.towers is not None:
        values["s_acc"] = other.towers.double().mean().item()
    return values
