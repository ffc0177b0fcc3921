"""Grids of what a model sees: pure functions from a Scene to a picture, float `[3, H, W]` in [0, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid

from lightning_genesis.scene import MaskKind, Scene

SLOT_COLOURS: tuple[tuple[int, int, int], ...] = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
    (0, 128, 128),
    (220, 190, 255),
    (170, 110, 40),
    (255, 250, 200),
    (128, 0, 0),
    (170, 255, 195),
    (128, 128, 0),
    (255, 215, 180),
    (0, 0, 128),
    (128, 128, 128),
)
"""Colour of each slot, the same in every picture; slots beyond these start over."""
PADDING = 2


def colour_slots(ids: Tensor) -> Tensor:
    """Slot ids `[..., H, W]` in the slots' colours, `[..., 3, H, W]`."""
    palette = torch.tensor(SLOT_COLOURS, dtype=torch.float32, device=ids.device) / 255.0
    return palette[ids % len(palette)].movedim(-1, -3)


def reconstruction_grid(images: Tensor, scene: Scene) -> Tensor:
    """One row per image: input, reconstruction, segmentation (decoded, then attention), masked components.

    Args:
        images: `[B, 3, H, W]`.
        scene: of the same images.
    """
    columns = [images, scene.reconstruction, colour_slots(scene.segmentation())]
    if scene.attention_log_masks is not None:
        columns.append(colour_slots(scene.segmentation("attention")))
    columns += [*masked_components(scene).unbind(dim=1)]
    return tile(columns)


def sample_grid(scene: Scene) -> Tensor:
    """One row per sample: the image, its segmentation, masked components."""
    columns = [
        scene.reconstruction,
        colour_slots(scene.segmentation()),
        *masked_components(scene).unbind(dim=1),
    ]
    return tile(columns)


def mask_grid(images: Tensor, scene: Scene, kind: MaskKind = "attention") -> Tensor:
    """One row per image: input, segmentation, and the mask of every slot in grey (GENESIS-V2, Figure 9)."""
    masks = scene.log_masks_of(kind).exp().expand(-1, -1, 3, -1, -1)
    return tile([images, colour_slots(scene.segmentation(kind)), *masks.unbind(dim=1)])


def masked_components(scene: Scene) -> Tensor:
    """Every slot's component where its mask is high, on white, `[B, K, 3, H, W]`."""
    return scene.masks * scene.components + (1.0 - scene.masks)


def tile(columns: list[Tensor], minimum_side: int = 64) -> Tensor:
    """Columns of images `[B, 3, H, W]` side by side; small images are enlarged without smoothing."""
    table = torch.stack([column.float() for column in columns], dim=1).clamp(
        0.0, 1.0
    )  # [B, columns, 3, H, W]
    scale = -(-minimum_side // table.shape[-1])
    rows = F.interpolate(table.flatten(0, 1), scale_factor=float(scale), mode="nearest")
    return make_grid(rows, nrow=len(columns), padding=PADDING, pad_value=1.0)
