"""The grids: every cell is what it should be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_genesis.figures.drawing import (
    LINE,
    PADDING,
    SIDE,
    SLOT_COLOURS,
    colour_masks,
    colour_slots,
    image_sheet,
    image_so_far,
    mask_grid,
    reconstruction_grid,
    sample_grid,
    slot_legend,
    stack,
    text,
    text_width,
    tile,
    wrap,
    write_picture,
)
from lightning_genesis.scene import Scene


def scene_of_halves(size: int = SIDE) -> tuple[Tensor, Scene]:
    """A red slot on the left, a blue one on the right; attention the other way round."""
    components = torch.zeros(1, 2, 3, size, size)
    components[:, 0, 0], components[:, 1, 2] = 1.0, 1.0
    masks = torch.zeros(1, 2, 1, size, size)
    masks[:, 0, :, :, : size // 2], masks[:, 1, :, :, size // 2 :] = 1.0, 1.0
    scene = Scene(components, masks.log(), attention_log_masks=masks.flip(1).log())
    return torch.full((1, 3, size, size), 0.5), scene


def cell(picture: Tensor, column: int, row: int = 0, top: int = LINE, left: int = 0) -> Tensor:
    """A cell of a grid below a heading, beside labels `left` pixels wide."""
    x = left + PADDING + column * (SIDE + PADDING)
    y = top + PADDING + row * (SIDE + PADDING)
    return picture[:, y : y + SIDE, x : x + SIDE]


def slot_colour(slot: int) -> Tensor:
    return torch.tensor(SLOT_COLOURS[slot]) / 255.0


def test_reconstruction_grid() -> None:
    images, scene = scene_of_halves()
    picture = reconstruction_grid(images, scene)
    assert picture.shape == (3, LINE + SIDE + 2 * PADDING, 6 * (SIDE + PADDING) + PADDING)
    assert torch.equal(cell(picture, 0), images[0])
    assert torch.equal(cell(picture, 1), scene.reconstruction[0])
    decoded, attention = cell(picture, 2), cell(picture, 3)
    assert torch.equal(decoded[:, 0, 0], slot_colour(0))
    assert torch.equal(decoded[:, 0, -1], slot_colour(1))
    assert torch.equal(attention[:, 0, 0], slot_colour(1))
    assert cell(picture, 4)[:, 0, 0].tolist() == [1.0, 0.0, 0.0]  # the red slot, then grey where it is not
    assert cell(picture, 4)[:, 0, -1].tolist() == [0.5, 0.5, 0.5]


def test_truth_is_shown_at_the_images_size_and_labels_stand_to_the_left() -> None:
    images, scene = scene_of_halves()
    truth = torch.zeros(1, 2 * SIDE, 2 * SIDE, dtype=torch.uint8)
    truth[:, :SIDE] = 1
    picture = reconstruction_grid(images, scene, truth, ["ARI-FG 0.50\nSC-FG 0.25"])
    left = text_width("ARI-FG 0.50") + 2 * PADDING
    assert torch.equal(cell(picture, 0, left=left), images[0])
    shown = cell(picture, 2, left=left)
    assert torch.equal(shown[:, 0, 0], slot_colour(0))
    assert torch.equal(shown[:, -1, 0], torch.tensor([58, 62, 68]) / 255)  # the background
    assert picture[:, LINE:, :left].min() == 0.0  # black letters


def test_other_grids() -> None:
    images, scene = scene_of_halves()
    masks = mask_grid(images, scene)
    assert cell(masks, 2)[:, 0, 0].tolist() == [0.0] * 3  # attention of slot 0 is on the right
    assert cell(masks, 2)[:, 0, -1].tolist() == [1.0] * 3
    samples = sample_grid(scene)
    assert torch.equal(cell(samples, 0), scene.reconstruction[0])


def test_the_headings_of_slots_have_their_colours() -> None:
    images, scene = scene_of_halves()
    picture = reconstruction_grid(images, scene)
    for slot in (0, 1):
        x = PADDING + (4 + slot) * (SIDE + PADDING) + 3
        assert torch.allclose(picture[:, 1, x], slot_colour(slot))
    assert picture[:, 1, PADDING].tolist() == [1.0] * 3


def test_small_images_are_enlarged_and_slots_beyond_the_palette_start_over() -> None:
    images, scene = scene_of_halves(size=16)
    assert reconstruction_grid(images, scene).shape[1] == LINE + SIDE + 2 * PADDING
    ids = torch.tensor([[0, len(SLOT_COLOURS)]])
    colours = colour_slots(ids)
    assert torch.equal(colours[:, :, 0], colours[:, :, 1])


@pytest.mark.parametrize("number", [1, 3, 4, 5])
def test_sheet_reads_from_left_to_right(number: int) -> None:
    images = torch.linspace(0.1, 0.9, number).view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    columns = {1: 1, 3: 2, 4: 2, 5: 3}[number]
    picture = image_sheet(images)
    rows = -(-number // columns)
    assert picture.shape[1:] == tuple(n * (SIDE + PADDING) + PADDING for n in (rows, columns))
    for index, image in enumerate(images):
        assert torch.equal(cell(picture, index % columns, index // columns, top=0), image)
    if number % columns:  # what is left over is white
        assert (cell(picture, columns - 1, rows - 1, top=0) == 1.0).all()


def test_groups_stand_one_below_the_other() -> None:
    groups = torch.rand(3, 2, 3, SIDE, SIDE)
    picture = tile(wrap(groups, 2))
    assert torch.equal(cell(picture, 1, 1, top=0), groups[1, 1])
    assert torch.equal(cell(picture, 0, 2, top=0), groups[2, 0])


def test_soft_masks_mix_colours() -> None:
    _, scene = scene_of_halves()
    hard = colour_masks(scene)
    assert torch.allclose(hard, colour_slots(scene.segmentation()))
    half = Scene(scene.components, torch.full_like(scene.log_masks, 0.5).log())
    expected = (slot_colour(0) + slot_colour(1)) / 2.0
    assert torch.allclose(colour_masks(half)[0, :, 0, 0], expected)


def test_image_so_far_ends_with_the_reconstruction() -> None:
    log_masks = torch.randn(2, 4, 1, 5, 5).log_softmax(dim=1)
    scene = Scene(torch.rand(2, 4, 3, 5, 5), log_masks)
    steps = image_so_far(scene)
    assert torch.allclose(steps[:, -1], scene.reconstruction, atol=1e-6)
    first = scene.masks[:, 0] * scene.components[:, 0] + 1.0 - scene.masks[:, 0]
    assert torch.allclose(steps[:, 0], first)


def test_text_fits_and_legend_has_every_slot() -> None:
    word = text("reconstruction", SIDE, LINE)
    assert text_width("reconstruction") <= SIDE
    assert word[:, :, 0].min() == 1.0  # nothing touches the edge
    assert word[:, :, -1].min() == 1.0
    assert word.min() < 0.2
    legend = slot_legend(9)
    assert legend.shape[:2] == (3, LINE)
    corners = legend[:, 0].T
    assert all(torch.isclose(corners, slot_colour(slot)).all(dim=1).any() for slot in range(9))


def test_stack_keeps_pictures_and_fills_with_white() -> None:
    wide, narrow = torch.rand(3, 4, 10), torch.rand(3, 5, 6)
    picture = stack([wide, narrow], gap=2)
    assert picture.shape == (3, 11, 10)
    assert torch.equal(picture[:, :4], wide)
    assert torch.equal(picture[:, 6:, :6], narrow)
    assert (picture[:, 4:6] == 1.0).all()
    assert (picture[:, 6:, 6:] == 1.0).all()


def test_a_picture_is_written_whole(tmp_path: Path) -> None:
    picture = torch.rand(3, 5, 7)
    write_picture(tmp_path / "new" / "picture.png", picture)
    read = np.asarray(Image.open(tmp_path / "new" / "picture.png")).astype(int)
    assert np.abs(read - (picture.permute(1, 2, 0).numpy() * 255.0)).max() <= 0.51
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
