"""Stand-in for CLEVRTEX: textured objects on a textured floor, in the publisher's tree of files.

Materials are patterns computed in space, where the publisher has photographs with relief; shapes, sizes,
camera and lights are ours.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.synthesis.drawing import hue, place_apart, save_text
from data_modules.synthesis.scene3d import (
    DEPTH_BELOW,
    Camera,
    Colour,
    Light,
    Plane,
    Rendering,
    Shape,
    Solid,
    World,
    render,
    turn_z,
    vector,
)
from data_modules.synthesis.textures import Pattern, Texture
from data_modules.threads import in_order

HEIGHT, WIDTH = 240, 320
MIN_OBJECTS, MAX_OBJECTS = 3, 10
MIN_PIXELS = 80
"""Every object shows at least this many pixels of 240 x 320."""
SIZES = {"small": 0.38, "medium": 0.52, "large": 0.7}
SHAPES: Mapping[str, tuple[Shape, ...]] = {
    "full": ("box", "sphere", "cylinder", "icosahedron"),
    "camo": ("box", "sphere", "cylinder", "icosahedron"),
    "outd": ("octahedron", "dodecahedron", "hexagon"),
}
MATERIALS: Mapping[str, range] = {"full": range(60), "camo": range(60), "outd": range(60, 85)}
"""Numbers of the materials: `outd` has none of the others'."""
SCENES_PER_FOLDER = 1000
_SALT = 0xC7E8
_REACH = 3.0


@dataclass(frozen=True)
class Material:
    """Two colours and a pattern."""

    name: str
    colour: Colour
    texture: Texture


@dataclass(frozen=True)
class Scene:
    """A scene's picture, its ids, and what its JSON says."""

    rendering: Rendering
    description: dict[str, Any]


def material(number: int) -> Material:
    """Material `number`, the same always."""
    rng = np.random.default_rng((_SALT, number))
    patterns: tuple[Pattern, ...] = get_args(Pattern)
    pattern = patterns[number % len(patterns)]
    tone, saturation, value = rng.random(), rng.uniform(0.1, 0.6), rng.uniform(0.35, 0.85)
    other = hue(tone + rng.uniform(-0.12, 0.12), rng.uniform(0.1, 0.6), value * rng.uniform(0.3, 0.7))
    texture = Texture(pattern, other, float(rng.uniform(0.35, 0.9)))
    return Material(f"{pattern}_{number:02d}", hue(tone, saturation, value), texture)


def draw(seed: int, variant: str, index: int) -> Scene:
    """Scene `index` of a variant."""
    rng = np.random.default_rng((_SALT, seed, sorted(SHAPES).index(variant), index))
    found = None
    while found is None:
        found = _try(rng, variant, int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1)))
    return found


def write(folder: Path, sizes: Mapping[str, int], seed: int, variant: str) -> None:
    """Write `clevrtex_<variant>/<folder>/CLEVRTEX_<variant>_NNNNNN.png`, `_flat.png` and `.json`.

    Numbers run through the test set, the validation set and the training set, as the splits do.
    """
    palette = [value for number in range(256) for value in _palette_colour(number)]
    scenes = in_order(partial(draw, seed, variant), range(sum(sizes.values())))
    for index, scene in enumerate(scenes):
        place = folder / f"clevrtex_{variant}" / f"{index // SCENES_PER_FOLDER}"
        place.mkdir(parents=True, exist_ok=True)
        stem = f"CLEVRTEX_{variant}_{index:06d}"
        Image.fromarray(scene.rendering.image).save(place / f"{stem}.png", compress_level=3)
        flat = Image.fromarray(scene.rendering.entities, "P")
        flat.putpalette(palette)
        flat.save(place / f"{stem}_flat.png", compress_level=3)
        save_text(place / f"{stem}.json", json.dumps(scene.description))


def _palette_colour(number: int) -> tuple[int, ...]:
    return tuple(round(255 * value) for value in hue(number * 0.618, 0.8, 0.9)) if number else (0, 0, 0)


def _try(rng: np.random.Generator, variant: str, count: int) -> Scene | None:
    """A scene, or None if its objects have no room or one is hardly seen."""
    shift = rng.uniform(-0.5, 0.5, 3)
    camera = Camera(
        vector((7.5 + shift[0], -6.5 + shift[1], 5.6 + shift[2])), (0.0, 0.0, 0.2), 36.0, HEIGHT, WIDTH
    )
    shapes = [SHAPES[variant][number] for number in rng.integers(0, len(SHAPES[variant]), count)]
    sizes = [list(SIZES)[number] for number in rng.integers(0, len(SIZES), count)]
    numbers = rng.choice(np.array(MATERIALS[variant]), count + 1)
    if variant == "camo":
        numbers[:] = numbers[0]
    ground, *materials = (material(int(number)) for number in numbers)
    rotations = rng.uniform(0, 360, count)
    radii = np.array([SIZES[size] for size in sizes])
    # a cube has the diagonal of the others' diameter
    halves = np.where(np.array(shapes) == "box", radii / np.sqrt(2), radii)
    centres = _places(rng, camera, radii, halves * [DEPTH_BELOW.get(shape, 1.0) for shape in shapes])
    if centres is None:
        return None
    solids = [
        Solid(
            shape=shapes[number],
            centre=vector(centres[number]),
            half_size=vector(np.full(3, halves[number])),
            colour=of.colour,
            entity=1 + number,
            rotation=turn_z(np.radians(rotations[number])),
            texture=of.texture,
        )
        for number, of in enumerate(materials)
    ]
    light = Light(
        direction=vector((-1.0 + 0.6 * shift[1], -1.2 + 0.6 * shift[2], 2.0)),
        sun=0.6,
        fill_direction=(1.0, -0.6, 0.7),
        fill=0.3,
        ambient=0.4,
    )
    offset = (float(rng.uniform(-20, 20)), float(rng.uniform(-20, 20)), 0.0)
    floor = Plane(offset, (0.0, 0.0, 1.0), ground.colour, 0, ground.texture)
    rendering = render(World(solids, [floor], light, (0.5, 0.5, 0.5), 0), camera)
    pixels = np.bincount(rendering.entities.reshape(-1), minlength=count + 1)
    if pixels[1:].min() < MIN_PIXELS:
        return None
    places = camera.project(centres)
    objects = [
        {
            "shape": shapes[number],
            "size": sizes[number],
            "material": of.name,
            "rotation": float(rotations[number]),
            "pixel_coords": [float(value) for value in places[number]],
        }
        for number, of in enumerate(materials)
    ]
    return Scene(rendering, {"ground_material": ground.name, "objects": objects})


def _places(
    rng: np.random.Generator, camera: Camera, radii: NDArray[np.float64], heights: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Centres of the objects, apart from each other and in the frame, `[n, 3]`; None if there is no room."""
    proposed = rng.uniform(-_REACH, _REACH, (256, 2))
    middles = np.empty((len(radii), 256, 3))
    middles[..., :2], middles[..., 2] = proposed, heights[:, None]
    in_frame = camera.holds(middles, 1.2 * radii[:, None])
    places = place_apart(proposed, radii, in_frame, gap=0.2)
    return None if places is None else np.column_stack([places, heights])
