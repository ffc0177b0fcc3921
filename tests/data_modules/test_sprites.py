"""Drawn sprites against published sizes and a slow reference; the published file against drawn sprites."""

import math
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_modules.store import DataError
from data_modules.synthesis import sprites
from data_modules.synthesis.sprites import (
    NpzSprites,
    RenderedSprites,
    index_from_latents,
    latents_from_index,
    render,
)

# Number of pixels at orientation 0 and position (0, 0), for the six scales: published frames.
AREAS = {
    "square": (100, 144, 196, 256, 324, 400),
    "ellipse": (76, 104, 144, 184, 228, 288),
    "heart": (58, 84, 108, 140, 182, 222),
}
# Width and height at the smallest and the largest scale.
BOXES = {
    "square": ((10, 10), (20, 20)),
    "ellipse": ((12, 8), (26, 14)),
    "heart": ((10, 9), (20, 17)),
}


def frames(indices: np.ndarray, source: sprites.SpriteSource | None = None) -> np.ndarray:
    """Whole frames of sprites, bool `[N, 64, 64]`."""
    windows = (source or RenderedSprites()).masks(indices)
    full = np.zeros((len(indices), 64, 64), bool)
    for frame, mask, top, left in zip(full, windows.masks, windows.top, windows.left, strict=True):
        frame[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return full


def slow_frame(index: int) -> np.ndarray:
    """One frame, pixel by pixel, the heart as a polygon by the even-odd rule."""
    index, y = divmod(index, 32)
    index, x = divmod(index, 32)
    index, orientation = divmod(index, 40)
    shape, scale_class = divmod(index, 6)
    scale = (5 + scale_class) / 10
    theta = 2 * math.pi * orientation / 39
    t = 2 * np.pi * (np.arange(2000) + 0.5) / 2000
    x1 = scale * 9.597 * np.sin(t) ** 3
    y1 = -scale * (
        8.609 * np.cos(t) - 3.314 * np.cos(2 * t) - 1.324 * np.cos(3 * t) - 0.663 * np.cos(4 * t) + 1.436
    )
    x2, y2 = np.roll(x1, -1), np.roll(y1, -1)
    frame = np.zeros((64, 64), bool)
    for row in range(64):
        for column in range(64):
            dx, dy = column + 0.5 - (16 + 32 * x / 31), row + 0.5 - (16 + 32 * y / 31)
            if math.hypot(dx, dy) > 14:
                continue
            u = math.cos(theta) * dx - math.sin(theta) * dy
            v = math.sin(theta) * dx + math.cos(theta) * dy
            if shape == 0:
                inside = abs(u) <= 9.6 * scale and abs(v) <= 9.6 * scale
            elif shape == 1:
                inside = (u / (12.8 * scale)) ** 2 + (v / (7.2 * scale)) ** 2 <= 1
            else:
                with np.errstate(divide="ignore"):
                    left_of = u < x1 + (v - y1) / (y2 - y1) * (x2 - x1)
                crossed = ((y1 > v) != (y2 > v)) & left_of
                inside = crossed.sum() % 2 == 1
            frame[row, column] = inside
    return frame


def test_indices_are_numbered_as_published() -> None:
    assert math.prod(sprites.LATENT_SIZES) == sprites.NUM_SPRITES == 737_280
    indices = np.random.default_rng(0).integers(sprites.NUM_SPRITES, size=1000)
    latents = latents_from_index(indices)
    expected = latents[:, 0]
    for column, size in enumerate((6, 40, 32, 32), start=1):
        expected = expected * size + latents[:, column]
    np.testing.assert_array_equal(expected, indices)
    np.testing.assert_array_equal(index_from_latents(latents), indices)


@pytest.mark.parametrize("shape", range(3), ids=sprites.SHAPES)
def test_areas_and_boxes_are_the_published_ones(shape: int) -> None:
    indices = index_from_latents([[shape, scale, 0, 0, 0] for scale in range(6)])
    drawn = frames(indices)
    # of the ellipses, four pixels at the smallest and the largest scale have their centres on the outline
    tolerance = 4 if shape == 1 else 2 if shape == 2 else 0
    found = drawn.sum(axis=(1, 2))
    assert np.abs(found - AREAS[sprites.SHAPES[shape]]).max() <= tolerance
    for scale, expected in zip((0, 5), BOXES[sprites.SHAPES[shape]], strict=True):
        assert (drawn[scale].any(0).sum(), drawn[scale].any(1).sum()) == expected


def test_turned_squares_keep_the_published_areas() -> None:
    areas = frames(index_from_latents([[0, 5, turn, 0, 0] for turn in range(1, 39)])).sum(axis=(1, 2))
    assert areas.min() >= 360
    assert areas.max() <= 376


def test_agrees_with_a_slow_reference() -> None:
    rng = random.Random(1)
    indices = [rng.randrange(sprites.NUM_SPRITES) for _ in range(300)]
    drawn = frames(np.array(indices))
    differing = sum(
        int((frame != slow_frame(index)).sum()) for frame, index in zip(drawn, indices, strict=True)
    )
    assert differing == 0


def test_last_orientation_is_the_first() -> None:
    latents = latents_from_index(np.random.default_rng(2).integers(sprites.NUM_SPRITES, size=300))
    first, last = latents.copy(), latents.copy()
    first[:, 2], last[:, 2] = 0, 39
    np.testing.assert_array_equal(frames(index_from_latents(first)), frames(index_from_latents(last)))


@pytest.mark.parametrize(("shape", "turn"), [(0, math.pi / 2), (1, math.pi), (2, 2 * math.pi)])
def test_shapes_repeat_under_their_symmetry(shape: int, turn: float) -> None:
    rng = np.random.default_rng(3)
    scale, angle = rng.choice(sprites.SCALES, 200), rng.uniform(0, 6, 200)
    x, y = rng.uniform(16, 48, (2, 200))
    shapes = np.full(200, shape)
    base = render(shapes, scale, angle, x, y).masks
    assert (base != render(shapes, scale, angle + turn, x, y).masks).sum() == 0
    assert (base != render(shapes, scale, angle + turn / 3, x, y).masks).sum() > 1000


def test_turns_counter_clockwise_and_positions_run_right_and_down() -> None:
    # a heart's tip points down at first; a quarter turn counter-clockwise points it to the right
    upright, turned = render(
        np.array([2, 2]), np.ones(2), np.array([0, math.pi / 2]), np.full(2, 32.0), np.full(2, 32.0)
    ).masks
    rows = upright.sum(1)[upright.any(1)]
    assert rows[-1] < rows[1], "the tip is not below"
    np.testing.assert_array_equal(np.rot90(upright[:28, :28]), turned[:28, :28])
    corner = frames(index_from_latents([[0, 0, 0, 31, 0]]))[0]
    rows, columns = np.nonzero(corner)
    assert (rows.mean() + 0.5, columns.mean() + 0.5) == (16.0, 48.0)


def test_nothing_leaves_its_window_or_the_frame() -> None:
    turned = [[0, 5, turn, x, y] for turn in range(39) for x in range(0, 32, 3) for y in (0, 13, 31)]
    latents = np.array(turned)
    found = frames(index_from_latents(latents)).sum(axis=(1, 2))
    theta = (2 * np.pi * latents[:, 2] / 39)[:, None, None]
    columns, rows = np.meshgrid(np.arange(-8, 72) + 0.5, np.arange(-8, 72) + 0.5)
    dx = columns - (16 + 32 * latents[:, 3] / 31)[:, None, None]
    dy = rows - (16 + 32 * latents[:, 4] / 31)[:, None, None]
    u, v = np.cos(theta) * dx - np.sin(theta) * dy, np.sin(theta) * dx + np.cos(theta) * dy
    np.testing.assert_array_equal(found, (np.maximum(abs(u), abs(v)) <= 9.6).sum(axis=(1, 2)))
    # wherever a sprite sits, its window lies in the frame
    windows = RenderedSprites().masks(index_from_latents([[0, 5, 5, 0, 0], [0, 5, 5, 31, 31]]))
    assert windows.top.min() >= 0
    assert windows.left.max() + windows.masks.shape[2] <= 64


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Frames of a dSprites that ends after 5000 sprites."""
    monkeypatch.setattr(sprites, "NUM_SPRITES", 5000)
    return frames(np.arange(5000)).astype(np.uint8)


def test_npz_sprites_are_the_files(tmp_path: Path, few: np.ndarray) -> None:
    classes = np.concatenate([np.zeros((5000, 1), int), latents_from_index(np.arange(5000))], axis=1)
    path = tmp_path / "dsprites.npz"
    np.savez_compressed(
        path, imgs=few, latents_classes=classes, metadata=np.array({"never": "unpickled"}, object)
    )
    wanted = np.array([4999, 7, 7, 0, 4096, 4095])
    np.testing.assert_array_equal(frames(wanted, NpzSprites(path, wanted)), few[wanted].astype(bool))
    with zipfile.ZipFile(path) as archive:
        assert sprites.npz_checksum(path) == archive.getinfo("imgs.npy").CRC


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("key", ["`imgs`", "only the keys images"]),
        ("shape", ["`imgs`", "[4999, 64, 64]", "[5000, 64, 64]"]),
        ("dtype", ["`imgs`", "float32", "uint8"]),
        ("values", ["`imgs`", "the value 255", "only 0 and 1"]),
        ("order", ["`latents_classes`", "row 0"]),
        ("pickle", ["`imgs`", "dtype object"]),
        ("truncated", ["damaged", "download it again"]),
        ("text", ["damaged or no .npz"]),
        ("missing", ["no such file", "`sprites`"]),
    ],
)
def test_what_is_not_dsprites_gets_one_line(
    tmp_path: Path, few: np.ndarray, case: str, expected: list[str]
) -> None:
    path = tmp_path / "given.npz"
    classes = np.concatenate([np.zeros((5000, 1), int), latents_from_index(np.arange(5000))], axis=1)
    if case == "key":
        save(path, images=few)
    elif case == "shape":
        save(path, imgs=few[1:])
    elif case == "dtype":
        save(path, imgs=few.astype(np.float32))
    elif case == "values":
        save(path, imgs=few * np.uint8(255))
    elif case == "order":
        save(path, imgs=few, latents_classes=classes[::-1])
    elif case == "pickle":
        save(path, imgs=np.array([None], object))
    elif case == "truncated":
        np.savez(path, imgs=few)
        path.write_bytes(path.read_bytes()[: 2**20])
    elif case == "text":
        path.write_text("<html>404</html>")
    with pytest.raises(DataError) as caught:
        NpzSprites(path, np.array([0]))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_flipped_byte_in_the_file_is_found(tmp_path: Path, few: np.ndarray) -> None:
    path = tmp_path / "given.npz"
    np.savez(path, imgs=few)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        NpzSprites(path, np.array([0]))
