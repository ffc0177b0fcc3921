"""Several models on the same images, and images of a dataset alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_genesis.figures.drawing import (
    colour_slots,
    colour_truth,
    masked_components,
    stack,
    tile,
    titled,
    wrap,
)
from lightning_genesis.scene import Scene


def model_comparison(
    images: Tensor,
    scenes: Mapping[str, Scene],
    truth: Tensor | None = None,
    num_background: int = 1,
    scores: Mapping[str, Sequence[str]] | None = None,
) -> Tensor:
    """A block per image with a row per model (GENESIS, Figures 4, 10, 12; GENESIS-V2, Figures 2, 5, 12).

    A row has reconstruction, decoded masks, attention masks if any model has some, and the slots; models with
    fewer slots, or without attention masks, leave cells white. The first row has the image and the truth.

    Args:
        images: `[B, 3, H, W]`.
        scenes: of these images, by the model's name.
        truth: instance ids `[B, H, W]`.
        num_background: ids below it are background.
        scores: by model, a text per image.
    """
    most = max(scene.num_slots for scene in scenes.values())
    attends = any(scene.attention_log_masks is not None for scene in scenes.values())
    headings = ["reconstruction", "masks", *(["attention"] if attends else [])]
    headings += [f"slot {slot}" for slot in range(1, most + 1)]
    blank = torch.ones_like(images)
    first = [images, blank if truth is None else colour_truth(truth, num_background)]
    rows = [first + [blank] * (len(headings) - 2)]
    for scene in scenes.values():
        attention = blank
        if scene.attention_log_masks is not None:
            attention = colour_slots(scene.segmentation("attention"))
        row = [scene.reconstruction, colour_slots(scene.segmentation()), *([attention] if attends else [])]
        row += masked_components(scene).unbind(dim=1)
        rows.append([one.to(images.device) for one in row] + [blank] * (len(headings) - len(row)))
    table = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)  # [B, rows, columns, 3, H, W]
    given = "input" if truth is None else "input, truth"
    blocks = []
    for number, block in enumerate(table):
        labels = [given]
        labels += [
            f"{name}\n{scores[name][number]}" if scores and name in scores else name for name in scenes
        ]
        blocks.append(tile([*block.unbind(dim=1)], headings, labels, most))
    return stack(blocks)


def dataset_examples(images: Tensor, truth: Tensor | None, num_background: int, per_scene: int = 1) -> Tensor:
    """Images of a dataset, above their true segmentation (GENESIS-V2, Figures 10 and 11).

    Args:
        images: `[B, 3, H, W]`.
        truth: instance ids `[B, H, W]`; None where there are no masks.
        num_background: ids below it are background.
        per_scene: images in a row that show one scene, such as the 14 crops of a picture of Sketchy.
    """
    columns = 7 if per_scene % 7 == 0 else per_scene if 1 < per_scene <= 8 else 8
    parts = [images] if truth is None else [images, colour_truth(truth, num_background)]
    groups = torch.stack(parts, dim=1)
    if per_scene == 1:
        return tile(wrap(groups, min(columns, len(groups))))
    scenes = [tile(wrap(scene, min(columns, len(scene)))) for scene in groups.split(per_scene)]
    return stack([titled(f"scene {number}", scene) for number, scene in enumerate(scenes, start=1)])
