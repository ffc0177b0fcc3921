"""The grids: every cell is what it should be."""

import torch

from lightning_genesis.callbacks.drawing import (
    PADDING,
    SLOT_COLOURS,
    colour_slots,
    mask_grid,
    reconstruction_grid,
    sample_grid,
)
from lightning_genesis.scene import Scene


def scene_of_halves(size: int = 64) -> tuple[torch.Tensor, Scene]:
    """A red slot on the left, a blue one on the right; attention the other way round."""
    components = torch.zeros(1, 2, 3, size, size)
    components[:, 0, 0], components[:, 1, 2] = 1.0, 1.0
    masks = torch.zeros(1, 2, 1, size, size)
    masks[:, 0, :, :, : size // 2], masks[:, 1, :, :, size // 2 :] = 1.0, 1.0
    scene = Scene(components, masks.log(), attention_log_masks=masks.flip(1).log())
    return torch.full((1, 3, size, size), 0.5), scene


def cell(picture: torch.Tensor, column: int, size: int = 64) -> torch.Tensor:
    start = PADDING + column * (size + PADDING)
    return picture[:, PADDING : PADDING + size, start : start + size]


def test_reconstruction_grid() -> None:
    images, scene = scene_of_halves()
    picture = reconstruction_grid(images, scene)
    assert picture.shape == (3, 64 + 2 * PADDING, 6 * (64 + PADDING) + PADDING)
    assert torch.equal(cell(picture, 0), images[0])
    assert torch.equal(cell(picture, 1), scene.reconstruction[0])
    first, second = (torch.tensor(colour) / 255.0 for colour in SLOT_COLOURS[:2])
    decoded, attention = cell(picture, 2), cell(picture, 3)
    assert torch.equal(decoded[:, 0, 0], first)
    assert torch.equal(decoded[:, 0, -1], second)
    assert torch.equal(attention[:, 0, 0], second)
    assert cell(picture, 4)[:, 0, 0].tolist() == [1.0, 0.0, 0.0]  # the red slot, then white where it is not
    assert cell(picture, 4)[:, 0, -1].tolist() == [1.0, 1.0, 1.0]


def test_other_grids() -> None:
    images, scene = scene_of_halves()
    masks = mask_grid(images, scene)
    assert cell(masks, 2)[:, 0, 0].tolist() == [0.0] * 3  # attention of slot 0 is on the right
    assert cell(masks, 2)[:, 0, -1].tolist() == [1.0] * 3
    samples = sample_grid(scene)
    assert torch.equal(cell(samples, 0), scene.reconstruction[0])


def test_small_images_are_enlarged_and_slots_beyond_the_palette_start_over() -> None:
    images, scene = scene_of_halves(size=16)
    assert reconstruction_grid(images, scene).shape[1] == 64 + 2 * PADDING
    ids = torch.tensor([[0, len(SLOT_COLOURS)]])
    colours = colour_slots(ids)
    assert torch.equal(colours[:, :, 0], colours[:, :, 1])
