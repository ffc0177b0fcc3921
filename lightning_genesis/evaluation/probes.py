"""What a model's latents tell of an image: small networks trained on them, and how often they are right.

Source: GENESIS, Table 1 and Appendix B.5.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from data_modules.base import Batch
from lightning_genesis.metrics import count_pixels
from lightning_genesis.models import SceneModel
from lightning_genesis.scene import Scene

NUM_TRAIN = 50_000
"""Labelled training images in the GENESIS paper."""
IMAGES_AT_ONCE = 128
MAX_CLASSES = 64
"""A label with more values is a number, such as that of an episode, not a class."""


@dataclass(frozen=True)
class Probe:
    """How a probe is trained; the defaults are the GENESIS paper's (Appendix B.5).

    There is no early stopping and no scaling of the features: the last epoch's network counts.
    """

    hidden_dim: int = 512
    """Units of the one hidden layer, with ELU."""
    num_epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-4
    """Of Adam."""
    seed: int = 0
    """Of the initial weights and of the order of the examples."""


@dataclass
class Latents:
    """What a model says about some images of a split, and what is true of them."""

    features: Tensor
    """Of an image, `[N, F]`."""
    labels: dict[str, Tensor]
    """By name, `[N]`."""
    slots: Tensor
    """Latents of the slots that match an object, `[M, D]`."""
    properties: dict[str, Tensor] = field(default_factory=dict)
    """Of these objects, by name, `[M, ...]`."""
    overlap: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Intersection over union of slot and object, `[M]`."""


# ---------------------------------------------------------------- latents


@torch.no_grad()
def collect(model: SceneModel, dataset: Any, indices: Sequence[int]) -> Latents:
    """The latents of images, posterior samples with noise that belongs to each image, on the CPU.

    Args:
        model: in evaluation mode.
        dataset: gives batches by `__getitems__`.
        indices: positions of the images.
    """
    device = next(model.parameters()).device
    parts: list[Latents] = []
    for first in range(0, len(indices), IMAGES_AT_ONCE):
        batch: Batch = dataset.__getitems__(list(indices[first : first + IMAGES_AT_ONCE]))
        batch = model.on_after_batch_transfer({**batch, "image": batch["image"].to(device)}, 0)
        scene = model.predict_step(batch, 0).to("cpu")
        part = Latents(model.representation(scene).float(), batch.get("labels", {}), torch.zeros(0))
        if "objects" in batch and "segmentation" in batch and scene.num_slots > 1:
            _add_objects(part, model, scene, batch)
        parts.append(part)

    def join(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([value for value in values if len(value)] or [values[0]])

    return Latents(
        join([part.features for part in parts]),
        {name: join([part.labels[name] for part in parts]) for name in parts[0].labels},
        join([part.slots for part in parts]),
        {name: join([part.properties[name] for part in parts]) for name in parts[0].properties},
        join([part.overlap for part in parts]),
    )


def _add_objects(part: Latents, model: SceneModel, scene: Scene, batch: Batch) -> None:
    slots = scene.slot_latents
    if slots is None:
        return
    present = batch["objects"].get("present")
    match, overlap = match_objects(
        scene.segmentation(),
        batch["segmentation"],
        num_slots=scene.num_slots,
        num_objects=next(iter(batch["objects"].values())).shape[1],
        num_background=model.hparams["num_background"],
    )
    found = match >= 0 if present is None else (match >= 0) & present
    images = torch.arange(len(match))[:, None].expand_as(match)
    part.slots, part.overlap = slots[images[found], match[found]].float(), overlap[found]
    part.properties = {name: value[found] for name, value in batch["objects"].items() if name != "present"}


def match_objects(
    segmentation: Tensor, target: Tensor, *, num_slots: int, num_objects: int, num_background: int = 1
) -> tuple[Tensor, Tensor]:
    """A slot for every object that can be seen, so that the sum of intersections over unions is largest.

    Args:
        segmentation: slot ids, `[B, H, W]`.
        target: instance ids, `[B, H', W']`; object `i` has id `num_background + i`.
        num_slots: number of slots K.
        num_objects: number of objects N that the data have room for.
        num_background: ids below it are background.

    Returns:
        slot of every object, int64 `[B, N]`, -1 where it has no pixel or all slots are taken; and their
        intersection over union, float64 `[B, N]`, 0 there.
    """
    counts = count_pixels(segmentation, target, num_slots=num_slots, num_background=num_background)
    areas = counts.background + counts.foreground.sum(dim=2)
    inside = counts.foreground[:, :, :num_objects]
    objects = inside.sum(dim=1)
    overlaps = inside / (areas[:, :, None] + objects[:, None] - inside).clamp(min=1)
    match = torch.full(objects.shape, -1)
    overlap = torch.zeros_like(objects)
    for image, scores in enumerate(overlaps):
        seen = objects[image].nonzero()[:, 0]
        slots, columns = (torch.from_numpy(ids) for ids in linear_sum_assignment(-scores[:, seen].numpy()))
        match[image, seen[columns]] = slots
        overlap[image, seen[columns]] = scores[slots, seen[columns]]
    return match, overlap


# ---------------------------------------------------------------- probes


def train_probe(
    features: Tensor, targets: Tensor, num_outputs: int, settings: Probe | None = None
) -> nn.Module:
    """A network with one hidden layer that tells `targets` from `features`.

    Args:
        features: `[N, F]`, on the device to train on.
        targets: classes, int64 `[N]`, learned by cross-entropy; or numbers, `[N, num_outputs]`, by squared
            error.
        num_outputs: number of classes or numbers.
        settings: the paper's if None.
    """
    settings = settings or Probe()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = nn.Sequential(
            nn.Linear(features.shape[1], settings.hidden_dim),
            nn.ELU(),
            nn.Linear(settings.hidden_dim, num_outputs),
        )
    network.to(features.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    loss: nn.Module = nn.MSELoss() if targets.is_floating_point() else nn.CrossEntropyLoss()
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.enable_grad():
        for _ in range(settings.num_epochs):
            order = torch.randperm(len(features), generator=generator).to(features.device)
            for some in order.split(settings.batch_size):
                optimizer.zero_grad()
                loss(network(features[some]), targets[some]).backward()
                optimizer.step()
    return network.eval()


@dataclass(frozen=True)
class Score:
    """How well a probe does on test examples."""

    kind: Literal["accuracy", "r2"]
    value: float
    """Share of right answers; or R², 1 for exact numbers, 0 for their mean."""
    chance: float
    """What the most frequent class, or the mean, of the training examples would give."""


@torch.no_grad()
def probe_classes(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, settings: Probe | None = None
) -> Score:
    """Trains a probe of classes, and its accuracy on test features.

    Args:
        train: features `[N, F]`.
        train_labels: integers `[N]`; their values are the classes.
        test: features `[T, F]`.
        test_labels: integers `[T]`; a value that training lacks counts as a wrong answer.
        settings: the paper's if None.
    """
    classes, targets, counts = train_labels.unique(return_inverse=True, return_counts=True)
    network = train_probe(train, targets.to(train.device), len(classes), settings)
    found = classes[network(test).argmax(dim=1).cpu()]
    chance = (test_labels == classes[counts.argmax()]).double().mean()
    return Score("accuracy", (found == test_labels).double().mean().item(), chance.item())


@torch.no_grad()
def probe_numbers(
    train: Tensor, train_values: Tensor, test: Tensor, test_values: Tensor, settings: Probe | None = None
) -> Score:
    """Trains a probe of numbers `[N, P]`, brought to mean 0 and variance 1; R², the mean over the P."""
    mean, scale = train_values.mean(dim=0), train_values.std(dim=0).clamp(min=1e-12)
    targets, truth = ((values - mean) / scale for values in (train_values, test_values))
    network = train_probe(train, targets.float().to(train.device), targets.shape[1], settings)
    error = (network(test).cpu().double() - truth).square().sum(dim=0)
    total = (truth - truth.mean(dim=0)).square().sum(dim=0).clamp(min=1e-12)
    known, chance = ((1 - rest / total).mean().item() for rest in (error, truth.square().sum(dim=0)))
    return Score("r2", known, chance)


def is_class(values: Tensor) -> bool:
    """Whether a label is one of a few classes, `[N]` integers."""
    return values.dim() == 1 and not values.is_floating_point() and len(values.unique()) <= MAX_CLASSES


def run_probes(
    train: Latents, test: Latents, device: torch.device, settings: Probe | None = None
) -> Iterator[tuple[str, Score]]:
    """Probes for every label that is a class, and every property of the objects, one after the other."""
    features, test_features = train.features.to(device), test.features.to(device)
    for name, values in train.labels.items():
        if is_class(values) and torch.isin(test.labels[name], values).any():
            yield name, probe_classes(features, values, test_features, test.labels[name], settings)
    if not (len(train.slots) and len(test.slots)):
        return
    slots, test_slots = train.slots.to(device), test.slots.to(device)
    for name, values in train.properties.items():
        truth = test.properties[name]
        if is_class(values):
            yield f"object_{name}", probe_classes(slots, values, test_slots, truth, settings)
        elif values.is_floating_point():
            numbers, truth = (numbers.double().reshape(len(numbers), -1) for numbers in (values, truth))
            yield f"object_{name}", probe_numbers(slots, numbers, test_slots, truth, settings)


def metrics_of(scores: Mapping[str, Score], overlap: Tensor) -> dict[str, float | None]:
    """Names and values for a result: `probe_NAME`, `probe_NAME_chance`, with `_r2` for numbers."""
    found: dict[str, float | None] = {}
    for name, score in scores.items():
        suffix = "_r2" if score.kind == "r2" else ""
        found[f"probe_{name}{suffix}"] = score.value
        found[f"probe_{name}{suffix}_chance"] = score.chance
    if len(overlap):
        found["probe_object_iou"] = overlap.mean().item()
    return found
