"""Stand-in for CLEVR with masks: 3 to 10 objects on a grey floor, in the published format."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.raw.tfrecord import TFRecordWriter
from data_modules.synthesis.drawing import place_apart
from data_modules.synthesis.scene3d import (
    Camera,
    Colour,
    Light,
    Plane,
    Rendering,
    Shape,
    Solid,
    Texture,
    World,
    render,
    turn_z,
    vector,
)
from data_modules.threads import in_order

FILE = "clevr_with_masks_train.tfrecords"
HEIGHT, WIDTH = 240, 320
NUM_ENTITIES = 11
MIN_OBJECTS, MAX_OBJECTS = 3, 10
FEW, FEW_FRACTION = 6, 0.53483
"""This share of the published scenes has at most six objects."""
MIN_PIXELS = 100
"""Every object shows at least this many pixels of 240 x 320."""

# codes in the record are places in these lists plus 1; 0 is nothing. Which code is what in the published file
# is not documented.
SHAPES: tuple[Shape, ...] = ("box", "sphere", "cylinder")
SIZES = {"small": 0.35, "large": 0.7}
MATERIALS = {"rubber": 0.0, "metal": 0.75}
COLOURS: dict[str, Colour] = {
    "gray": (0.45, 0.45, 0.45),
    "red": (0.78, 0.17, 0.17),
    "blue": (0.2, 0.33, 0.88),
    "green": (0.14, 0.5, 0.12),
    "brown": (0.55, 0.32, 0.12),
    "purple": (0.56, 0.2, 0.78),
    "cyan": (0.2, 0.82, 0.82),
    "yellow": (0.95, 0.88, 0.22),
}
_SALT = 0xC1E7
_REACH = 3.0


def draw(seed: int, index: int) -> dict[str, NDArray[Any]]:
    """Draw record `index`.

    Returns:
        The features of the record: `image` uint8 `[240, 320, 3]`; `mask` uint8 `[11, 240, 320, 1]` of 0 and
        255, the background first; `size`, `material`, `shape`, `color` uint8 `[11]`; `x`, `y`, `z` (world
        units), `rotation` (degrees) and `visibility` float32 `[11]`; `pixel_coords` float32 `[11, 3]`
        (column, row, depth of the centre). As in the published file `visibility` is 1 for the background too;
        all else of the background, and all of entities that are not there, is 0.
    """
    rng = np.random.default_rng((_SALT, seed, index))
    few = rng.random() < FEW_FRACTION
    count = int(rng.integers(MIN_OBJECTS, FEW + 1) if few else rng.integers(FEW + 1, MAX_OBJECTS + 1))
    found = None
    while found is None:
        found = _try(rng, count)
    rendering, factors = found
    masks = (rendering.entities == np.arange(NUM_ENTITIES)[:, None, None]).astype(np.uint8) * 255
    return {"image": rendering.image, "mask": masks[..., None], **factors}


def write(folder: Path, sizes: Mapping[str, int], seed: int) -> None:
    """Write `clevr_with_masks_train.tfrecords` with as many records as `sizes` has in all.

    About 53 % of them have at most six objects, as published.
    """
    numbers = range(sum(sizes.values()))
    with TFRecordWriter(folder / FILE, compressed=True) as writer:
        for record in in_order(partial(draw, seed), numbers):
            writer.write(record)


def _try(rng: np.random.Generator, count: int) -> tuple[Rendering, dict[str, NDArray[Any]]] | None:
    """A scene with its factors, or None if its objects have no room or one is hardly seen."""
    shift = rng.uniform(-0.4, 0.4, 3)
    camera = Camera(
        vector((7.5 + shift[0], -6.5 + shift[1], 5.4 + shift[2])), (0.0, 0.0, 0.2), 36.0, HEIGHT, WIDTH
    )
    codes = {
        "size": rng.integers(1, len(SIZES) + 1, count),
        "material": rng.integers(1, len(MATERIALS) + 1, count),
        "shape": rng.integers(1, len(SHAPES) + 1, count),
        "color": rng.integers(1, len(COLOURS) + 1, count),
    }
    rotations = rng.uniform(0, 360, count)
    radii = np.array(list(SIZES.values()))[codes["size"] - 1]
    # a cube has the diagonal of the others' diameter
    halves = np.where(codes["shape"] == 1 + SHAPES.index("box"), radii / np.sqrt(2), radii)
    proposed = rng.uniform(-_REACH, _REACH, (256, 2))
    middles = np.concatenate([np.broadcast_to(proposed, (count, 256, 2)), np.empty((count, 256, 1))], axis=2)
    middles[..., 2] = halves[:, None]
    in_frame = camera.holds(middles, 1.3 * radii[:, None])
    places = place_apart(proposed, radii, in_frame, gap=0.25)
    if places is None:
        return None
    centres = np.column_stack([places, halves])
    solids = [
        Solid(
            shape=SHAPES[codes["shape"][number] - 1],
            centre=vector(centres[number]),
            half_size=vector(np.full(3, halves[number])),
            colour=list(COLOURS.values())[codes["color"][number] - 1],
            entity=1 + number,
            rotation=turn_z(np.radians(rotations[number])),
            metal=list(MATERIALS.values())[codes["material"][number] - 1],
        )
        for number in range(count)
    ]
    light = Light(
        direction=vector((-1.0 + 0.4 * shift[1], -1.2 + 0.4 * shift[2], 2.0)),
        sun=0.5,
        fill_direction=(1.0, -0.6, 0.7),
        fill=0.3,
        ambient=0.4,
    )
    # shades of grey as wide as the scene
    shades = Texture("waves", vector(np.full(3, rng.uniform(0.48, 0.53))), 16.0)
    floor = Plane((float(rng.uniform(-8, 8)), 0.0, 0.0), (0.0, 0.0, 1.0), (0.6, 0.6, 0.6), 0, shades)
    rendering = render(World(solids, [floor], light, (0.5, 0.5, 0.5), 0), camera)
    pixels = np.bincount(rendering.entities.reshape(-1), minlength=count + 1)
    if pixels[1:].min() < MIN_PIXELS:
        return None
    factors: dict[str, NDArray[Any]] = {name: _padded(values, np.uint8) for name, values in codes.items()}
    for name, values in zip("xyz", centres.T, strict=True):
        factors[name] = _padded(values, np.float32)
    factors["rotation"] = _padded(rotations, np.float32)
    factors["visibility"] = (np.arange(NUM_ENTITIES) <= count).astype(np.float32)
    factors["pixel_coords"] = _padded(camera.project(centres), np.float32)
    return rendering, factors


def _padded(values: NDArray[Any], kind: type[np.generic]) -> NDArray[Any]:
    """Values of the objects `[n, ...]` behind a zero for the background, filled up to `[11, ...]`."""
    padded = np.zeros((NUM_ENTITIES, *values.shape[1:]), kind)
    padded[1 : 1 + len(values)] = values
    return padded
