"""Figures of generation: what a model dreams."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_genesis.figures.drawing import (
    colour_masks,
    colour_slots,
    grey,
    image_so_far,
    masked_components,
    slot_legend,
    stack,
    tile,
    titled,
    wrap,
)
from lightning_genesis.figures.inference import steps
from lightning_genesis.scene import Scene


def generation_steps(scene: Scene) -> Tensor:
    """How a sample comes about, slot after slot (GENESIS, Figure 3).

    One block per sample, with rows for each slot's component where its mask is high, the mask, and the image
    as far as it is made by then.
    """
    sample = scene.reconstruction
    rows = {
        "component": (sample, masked_components(scene)),
        "mask": (colour_slots(scene.segmentation()), grey(scene.masks)),
        "so far": (torch.ones_like(sample), image_so_far(scene)),
    }
    return steps("sample", rows)


def generation_order(scene: Scene, num_columns: int = 8) -> Tensor:
    """Samples above their masks in the colours of the slots, which are numbered below (SRI, Figures 4 and 7).

    A model that generates in a fixed order shows the same kind of thing in the same colour in every sample.
    """
    num_columns = min(num_columns, len(scene.components))
    return stack([tile(wrap(_with_masks(scene), num_columns)), slot_legend(scene.num_slots)])


def sweep(scenes: Mapping[str, Scene]) -> Tensor:
    """Samples of one seed under several settings, each with its masks (SRI, Figures 12 and 13).

    Args:
        scenes: by the name of the setting, such as "7 slots", one sample per column.
    """
    rows = torch.cat([_with_masks(scene) for scene in scenes.values()], dim=1)  # [B, 2 settings, 3, H, W]
    labels = [label for name in scenes for label in (name, "masks")]
    legend = slot_legend(max(scene.num_slots for scene in scenes.values()))
    picture = stack([tile([*rows], labels=labels), legend])
    # more slots take more of an image's noise, of which some models draw twice
    same_noise = len({scene.num_slots for scene in scenes.values()}) == 1
    return titled("the same noise in each column", picture) if same_noise else picture


def samples_by_run(scenes: Mapping[str, Scene], num_columns: int = 4) -> Tensor:
    """Samples of several runs, above their masks, under a caption each (SRI, Figure 6).

    Args:
        scenes: by caption, such as "seed 0: FID 71.0".
        num_columns: samples in a row.
    """
    blocks = [titled(caption, generation_order(scene, num_columns)) for caption, scene in scenes.items()]
    return stack(blocks)


def _with_masks(scene: Scene) -> Tensor:
    """Samples and their soft masks, `[B, 2, 3, H, W]`."""
    return torch.stack([scene.reconstruction.clamp(0.0, 1.0), colour_masks(scene)], dim=1)
