"""Stand-in for GQN rooms-ring-camera: one to three objects in a square room, in the published format."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_modules.raw.tfrecord import TFRecordWriter
from data_modules.synthesis.drawing import hue, jpeg, place_apart, ring, spread_hues
from data_modules.synthesis.scene3d import (
    DEPTH_BELOW,
    Camera,
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

SIDE = 64
NUM_VIEWS = 10
MAX_OBJECTS = 3
SCENES_PER_SHARD = 5000
"""The published number; a small set has smaller shards."""
SHAPES: tuple[Shape, ...] = (
    "sphere",
    "box",
    "cylinder",
    "octahedron",
    "hexagon",
    "dodecahedron",
    "icosahedron",
)

_HALF_ROOM, _RING, _EYE = 3.5, 2.6, 1.3
_RING_CENTRE = 0.35
_SALT = 0x69E7
_WALLS = (
    Texture("bricks", (0.66, 0.42, 0.34), 1.2),
    Texture("checks", (0.5, 0.62, 0.55), 1.6),
    Texture("stripes", (0.55, 0.55, 0.72), 1.2),
    Texture("waves", (0.74, 0.64, 0.44), 2.0),
    Texture("stripes", (0.72, 0.6, 0.62), 2.2),
)
_WALL_COLOURS = (
    (0.76, 0.52, 0.44),
    (0.6, 0.72, 0.64),
    (0.66, 0.66, 0.82),
    (0.82, 0.73, 0.54),
    (0.8, 0.69, 0.7),
)
_FLOORS = (
    Texture("checks", (0.5, 0.5, 0.5), 2.0),
    Texture("waves", (0.62, 0.47, 0.31), 1.6),
    Texture("stripes", (0.45, 0.55, 0.47), 1.4),
)
_FLOOR_COLOURS = ((0.62, 0.62, 0.62), (0.7, 0.56, 0.4), (0.55, 0.64, 0.56))


def draw(seed: int, index: int) -> tuple[list[Rendering], NDArray[np.float32]]:
    """Draw all views of scene `index`.

    Returns:
        Ten pictures, 64 x 64, whose `entities` are 0 for the room and 1.. for the objects (the published
        format has no place for them), and the cameras, float32 `[10, 5]`: x, y, z, yaw, pitch in radians; a
        yaw of 0 looks along x, a negative pitch down.
    """
    rng = np.random.default_rng((_SALT, seed, index))
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    world = None
    while world is None:
        world = _world(rng, count)
    angles = rng.uniform(0, 2 * np.pi, NUM_VIEWS)
    positions = [ring(angle, _RING, _EYE) for angle in angles]
    target = (0.0, 0.0, _RING_CENTRE)
    renderings = [render(world, Camera(position, target, 62.0, SIDE, SIDE)) for position in positions]
    pitch = -np.arctan2(_EYE - _RING_CENTRE, _RING)
    # it faces the centre, across the circle
    yaws = (angles + 2 * np.pi) % (2 * np.pi) - np.pi
    cameras = np.column_stack([positions, yaws, np.full(NUM_VIEWS, pitch)])
    return renderings, cameras.astype(np.float32)


def record(seed: int, index: int) -> dict[str, list[bytes] | NDArray[np.float32]]:
    """The features of scene `index`: `frames`, ten JPEGs, and `cameras`, float32 `[50]`."""
    renderings, cameras = draw(seed, index)
    return {"frames": [jpeg(rendering.image) for rendering in renderings], "cameras": cameras.reshape(-1)}


def write(folder: Path, sizes: Mapping[str, int], seed: int) -> None:
    """Write `train/0001-of-NNNN.tfrecord` ... and `test/001-of-NNN.tfrecord` ....

    Training scenes come first, validation scenes fill the last training shard or shards; test scenes follow
    in their own folder. Scenes are numbered in this order. A shard has as many scenes as the validation set,
    5,000 at most.

    Args:
        folder: where to.
        sizes: number of scenes for `train`, `val` and `test`; each has ten views.
        seed: another one gives other scenes.
    """
    per_shard = max(1, min(SCENES_PER_SHARD, sizes["val"]))
    shards = {
        split: [
            range(start + first, start + min(first + per_shard, size)) for first in range(0, size, per_shard)
        ]
        for split, start, size in (
            ("train", 0, sizes["train"]),
            ("val", sizes["train"], sizes["val"]),
            ("test", sizes["train"] + sizes["val"], sizes["test"]),
        )
    }
    for place, digits, parts in (
        ("train", 4, shards["train"] + shards["val"]),
        ("test", 3, shards["test"]),
    ):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for number, scenes in enumerate(parts, 1):
            name = f"{number:0{digits}d}-of-{len(parts):0{digits}d}.tfrecord"
            with TFRecordWriter(folder / place / name, compressed=False) as writer:
                for features in in_order(partial(record, seed), scenes, threads=1):
                    writer.write(features)


def _world(rng: np.random.Generator, count: int) -> World | None:
    """A room with objects near its middle, or None if they have no room."""
    hues = spread_hues(rng, count)
    wall, floor = int(rng.integers(len(_WALLS))), int(rng.integers(len(_FLOORS)))
    planes = [Plane((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), _FLOOR_COLOURS[floor], 0, _FLOORS[floor])]
    for x, y in ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)):
        place = (x * _HALF_ROOM, y * _HALF_ROOM, 0.0)
        planes.append(Plane(place, (-x, -y, 0.0), _WALL_COLOURS[wall], 0, _WALLS[wall], top=2.6))
    radii = rng.uniform(0.28, 0.5, count)
    proposed = rng.uniform(-1.3, 1.3, (64, 2))
    near = np.hypot(*proposed.T) + radii[:, None] <= 1.4
    places = place_apart(proposed, radii, near, gap=0.08)
    if places is None:
        return None
    solids = []
    for number, (place, radius) in enumerate(zip(places, radii, strict=True)):
        shape = SHAPES[rng.integers(len(SHAPES))]
        side = 0.75 * radius if shape == "box" else radius
        height = side if shape in ("sphere", "octahedron", *DEPTH_BELOW) else side * rng.uniform(0.8, 1.3)
        solids.append(
            Solid(
                shape,
                vector((*place, height * DEPTH_BELOW.get(shape, 1.0))),
                vector((side, side, height)),
                hue(hues[number], rng.uniform(0.75, 0.95), rng.uniform(0.8, 1.0)),
                1 + number,
                turn_z(rng.uniform(0, 2 * np.pi)),
            )
        )
    light = Light(ring(rng.uniform(0, 2 * np.pi), 1.0, 1.8), sun=0.42, fill=0.2, ambient=0.45)
    return World(solids, planes, light, sky=(0.62, 0.76, 0.92))
