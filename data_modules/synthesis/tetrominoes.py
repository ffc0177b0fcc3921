"""Stand-in for Tetrominoes: three pieces of four squares each on black, in the published format."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_modules.base import Split
from data_modules.raw.tfrecord import TFRecordWriter

FILE = "tetrominoes_train.tfrecords"
CELLS, CELL_PIXELS = 7, 5
NUM_PIECES = 3
COLOURS = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)], np.float32)
_TETROMINOES = ("####", "##/##", ".##/##.", "##./.##", "###/.#.", "###/#..", "###/..#")


def _orientations() -> list[NDArray[np.bool_]]:
    """The different turns of the seven pieces, as small arrays of cells."""
    found: list[NDArray[np.bool_]] = []
    for text in _TETROMINOES:
        piece = np.array([[cell == "#" for cell in row] for row in text.split("/")])
        for _ in range(4):
            piece = np.rot90(piece)
            if not any(np.array_equal(piece, other) for other in found):
                found.append(piece)
    return found


SHAPES = _orientations()


def draw(seed: int, index: int) -> dict[str, NDArray[np.generic]]:
    """Draws scene `index`: pieces that do not overlap, at random places of a grid of 7 x 7 cells.

    Returns:
        The features of a record: `image` uint8 `[35, 35, 3]`, `mask` uint8 `[4, 35, 35, 1]` of 0 and 255,
        float32 `x`, `y`, `shape`, `visibility` `[4]`, `color` `[4, 3]`. Entity 0 is the background.
    """
    rng = np.random.default_rng((seed, index))
    owners = np.zeros((CELLS, CELLS), np.uint8)
    factors = {name: np.zeros(1 + NUM_PIECES, np.float32) for name in ("x", "y", "shape")}
    colours = np.zeros((1 + NUM_PIECES, 3), np.float32)
    piece = 1
    while piece <= NUM_PIECES:
        shape = int(rng.integers(len(SHAPES)))
        height, width = SHAPES[shape].shape
        row, column = rng.integers(CELLS - height + 1), rng.integers(CELLS - width + 1)
        place = owners[row : row + height, column : column + width]
        if (place[SHAPES[shape]] > 0).any():
            if rng.random() < 0.01:  # the ones before may leave no room
                owners[:], piece = 0, 1
            continue
        place[SHAPES[shape]] = piece
        colours[piece] = COLOURS[rng.integers(len(COLOURS))]
        factors["x"][piece] = (column + width / 2) / CELLS
        factors["y"][piece] = (row + height / 2) / CELLS
        factors["shape"][piece] = shape + 1
        piece += 1
    ids = owners.repeat(CELL_PIXELS, 0).repeat(CELL_PIXELS, 1)
    masks = (ids == np.arange(1 + NUM_PIECES)[:, None, None]).astype(np.uint8)[..., None] * 255
    image = (colours[ids] * 255).astype(np.uint8)
    visibility = np.ones(1 + NUM_PIECES, np.float32)
    return {"image": image, "mask": masks, **factors, "color": colours, "visibility": visibility}


def write(folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
    """Write `tetrominoes_train.tfrecords` with as many records as `sizes` has in all."""
    with TFRecordWriter(folder / FILE, compressed=True) as writer:
        for index in range(sum(sizes.values())):
            writer.write(draw(seed, index))
