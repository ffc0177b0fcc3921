"""Stand-in for ObjectsRoom: a corner of a room with one to three objects, in the published format."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_modules.raw.tfrecord import TFRecordWriter
from data_modules.synthesis.drawing import hue, place_apart, spread_hues
from data_modules.synthesis.scene3d import (
    DEPTH_BELOW,
    Camera,
    Light,
    Pattern,
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

FILE = "objects_room_train.tfrecords"
SIDE = 64
NUM_ENTITIES = 7
MAX_OBJECTS = 3
SKY, FLOOR, WALL, OTHER_WALL = range(4)
MIN_PIXELS = 30
"""Every object shows at least this many pixels, and every background entity too."""

_SHAPES: tuple[Shape, ...] = ("box", "sphere", "cylinder", "icosahedron", "hexagon")
_PATTERNS: tuple[Pattern, ...] = ("checks", "stripes", "waves", "bricks")
_HALF = 4.0
_SALT = 0x0B1EC75


def draw(seed: int, index: int, one_wall: bool = False) -> dict[str, NDArray[np.uint8]]:
    """Draw record `index`.

    Args:
        seed: of the whole set.
        index: number of the record.
        one_wall: only one wall is in view. As in the published file there are then three background
            entities and the objects begin at entity 3.

    Returns:
        The features of the record: `image` uint8 `[64, 64, 3]` and `mask` uint8 `[7, 64, 64, 1]` of 0 and
        255: sky, floor, two walls, then the objects; empty masks fill up.
    """
    rng = np.random.default_rng((_SALT, seed, index))
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    rendering = None
    while rendering is None:
        rendering = _try(rng, count, one_wall)
    masks = (rendering.entities == np.arange(NUM_ENTITIES)[:, None, None]).astype(np.uint8) * 255
    return {"image": rendering.image, "mask": masks[..., None]}


def write(folder: Path, sizes: Mapping[str, int], seed: int, one_wall: float = 0.0) -> None:
    """Write `objects_room_train.tfrecords` with as many records as `sizes` has in all.

    Args:
        folder: where to.
        sizes: number of records per split; the file does not say which is which.
        seed: another one gives other scenes.
        one_wall: share of the records with only one wall in view, evenly through the file. The paper's rule
            takes the first object of such a record for background; the published file has an unknown share.
    """
    numbers = range(sum(sizes.values()))
    with TFRecordWriter(folder / FILE, compressed=True) as writer:
        for record in in_order(partial(_draw_some, seed, one_wall), numbers, threads=1):
            writer.write(record)


def _draw_some(seed: int, one_wall: float, index: int) -> dict[str, NDArray[np.uint8]]:
    return draw(seed, index, one_wall=int((index + 1) * one_wall) > int(index * one_wall))


def _try(rng: np.random.Generator, count: int, one_wall: bool) -> Rendering | None:
    """A scene, or None if its objects have no room or an entity is hardly seen.

    The room's corner is at (4, 4); the camera looks in from the open side, over the walls to the sky.
    """
    hues = spread_hues(rng, 3 + count)
    top = rng.uniform(2.2, 3.0)
    surfaces = [_surface(rng, tone) for tone in hues[:3]]
    if one_wall:
        # straight at a wall
        position, target = (rng.uniform(-2, -1), rng.uniform(-0.5, 0.5)), (_HALF, rng.uniform(-0.4, 0.4))
    else:
        turn = rng.uniform(-0.65, 0.65)
        distance = rng.uniform(5.5, 7.0) / np.sqrt(2)
        position, target = (_HALF - distance - turn, _HALF - distance + turn), (2.4, 2.4)
    camera = Camera(
        vector((*position, rng.uniform(1.5, 2.0))), vector((*target, rng.uniform(0.7, 1.1))), 60.0, SIDE, SIDE
    )
    planes = [
        Plane((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), surfaces[0][0], FLOOR, surfaces[0][1]),
        Plane((_HALF, 0.0, 0.0), (-1.0, 0.0, 0.0), surfaces[1][0], WALL, surfaces[1][1], top),
    ]
    if not one_wall:
        wall = Plane((0.0, _HALF, 0.0), (0.0, -1.0, 0.0), surfaces[2][0], OTHER_WALL, surfaces[2][1], top)
        planes.append(wall)
    background = 1 + len(planes)
    light = Light(
        direction=(-rng.uniform(0.3, 1.0), -rng.uniform(0.3, 1.0), rng.uniform(1.1, 1.8)),
        sun=0.52,
        fill_direction=(-1.0, rng.uniform(-0.6, 0.6), 0.5),
        fill=0.2,
        ambient=0.4,
    )
    solids = _objects(rng, camera, hues[3:], background, low=-1.8 if one_wall else -0.5)
    if solids is None:
        return None
    rendering = render(World(solids, planes, light, hue(rng.uniform(0.52, 0.62), 0.45, 0.95), SKY), camera)
    pixels = np.bincount(rendering.entities.reshape(-1), minlength=NUM_ENTITIES)
    return rendering if (pixels[: background + count] >= MIN_PIXELS).all() else None


def _surface(rng: np.random.Generator, tone: float) -> tuple[tuple[float, float, float], Texture]:
    """A pale colour with a weak pattern: objects are more colourful than the room."""
    value = rng.uniform(0.6, 0.85)
    saturation = rng.uniform(0.2, 0.4)
    pattern = _PATTERNS[rng.integers(len(_PATTERNS))]
    second = hue(tone, saturation, value - rng.uniform(0.08, 0.16))
    return hue(tone, saturation, value), Texture(pattern, second, float(rng.uniform(1.0, 2.0)))


def _objects(
    rng: np.random.Generator, camera: Camera, hues: NDArray[np.float64], first: int, low: float
) -> list[Solid] | None:
    """Objects in frame that do not touch each other; None if there is no room for them."""
    count = len(hues)
    radii = rng.uniform(0.38, 0.75, count)
    heights = radii * rng.uniform(0.8, 1.3, count)
    shapes = [_SHAPES[number] for number in rng.integers(len(_SHAPES), size=count)]
    angles = rng.uniform(0, 2 * np.pi, count)
    saturations, values = rng.uniform(0.7, 0.95, count), rng.uniform(0.8, 0.98, count)
    proposed = rng.uniform(low, _HALF - 0.9, (128, 2))
    middles = np.concatenate([np.broadcast_to(proposed, (count, 128, 2)), np.empty((count, 128, 1))], axis=2)
    middles[..., 2] = heights[:, None]
    in_frame = camera.holds(middles, np.hypot(radii, heights)[:, None])
    places = place_apart(proposed, radii, in_frame, gap=0.25)
    if places is None:
        return None
    solids = []
    for number, shape in enumerate(shapes):
        radius, height = radii[number], heights[number]
        if shape in ("sphere", "icosahedron"):
            height = radius
        side = 0.78 * radius if shape == "box" else radius
        solids.append(
            Solid(
                shape,
                vector((*places[number], height * DEPTH_BELOW.get(shape, 1.0))),
                vector((side, side, height)),
                hue(hues[number], saturations[number], values[number]),
                first + number,
                turn_z(angles[number]),
            )
        )
    return solids
