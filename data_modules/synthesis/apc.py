"""Stand-in for the APC training set: one object on a shelf or in a tote, in the published tree."""

import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from data_modules.synthesis.drawing import hue, save_png, save_text
from data_modules.synthesis.scene3d import (
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
    turn_x,
    turn_z,
    vector,
)
from data_modules.threads import in_order
from lightning_genesis.storage.files import whole_folder

HEIGHT, WIDTH = 480, 640
VIEWS = 4
"""Pictures per scene; the published scenes have up to 15 on the shelf and 18 in the tote."""
MAX_VIEWS = {"shelf": 15, "tote": 18}
PLACES = ("shelf", "tote")
EMPTY = "scene-empty"
SCENES_PER_OBJECT = 20
"""About so many scenes of an object in a place, one of them empty, as long as there are objects."""
# the items of the Amazon Picking Challenge 2016
OBJECTS = (
    "barkely_hide_bones",
    "cherokee_easy_tee_shirt",
    "clorox_utility_brush",
    "cloud_b_plush_bear",
    "command_hooks",
    "cool_shot_glue_sticks",
    "crayola_24_ct",
    "creativity_chenille_stems",
    "dasani_water_bottle",
    "dove_beauty_bar",
    "dr_browns_bottle_brush",
    "easter_turtle_sippy_cup",
    "elmers_washable_no_run_school_glue",
    "expo_dry_erase_board_eraser",
    "fiskars_scissors_red",
    "fitness_gear_3lb_dumbbell",
    "folgers_classic_roast_coffee",
    "hanes_tube_socks",
    "i_am_a_bunny_book",
    "jane_eyre_dvd",
    "kleenex_paper_towels",
    "kleenex_tissue_box",
    "kyjen_squeakin_eggs_plush_puppies",
    "laugh_out_loud_joke_book",
    "oral_b_toothbrush_green",
    "oral_b_toothbrush_red",
    "peva_shower_curtain_liner",
    "platinum_pets_dog_bowl",
    "rawlings_baseball",
    "rolodex_jumbo_pencil_cup",
    "safety_first_outlet_plugs",
    "scotch_bubble_mailer",
    "scotch_duct_tape",
    "soft_white_lightbulb",
    "staples_index_cards",
    "ticonderoga_12_pencils",
    "up_glucose_bottle",
    "womens_knit_gloves",
    "woods_extension_cord",
)
_SALT = 0xA9C
# width and height of a bin, and half the size of the tote's floor, in metres
_BIN, _BIN_HEIGHT, _BIN_DEPTH = 0.3, 0.25, 0.42
_TOTE = (0.26, 0.18)
_KINDS: tuple[tuple[Shape, tuple[float, float, float]], ...] = (
    ("box", (0.06, 0.035, 0.05)),
    ("box", (0.075, 0.05, 0.018)),
    ("cylinder", (0.035, 0.035, 0.075)),
    ("cylinder", (0.055, 0.055, 0.035)),
    ("sphere", (0.042, 0.042, 0.042)),
    ("hexagon", (0.04, 0.04, 0.06)),
)
_PATTERNS: tuple[Pattern, ...] = ("stripes", "checks", "waves")


def scenes(count: int) -> list[str]:
    """Folders of so many scenes below `training`, such as `shelf/dove_beauty_bar/scene-0000`."""
    pairs = [f"{place}/{name}" for name in OBJECTS for place in PLACES]
    used = pairs[: min(len(pairs), max(count // SCENES_PER_OBJECT, 2))]
    rounds = [divmod(number, len(used)) for number in range(count)]
    return [f"{used[pair]}/{EMPTY if turn == 0 else f'scene-{turn - 1:04d}'}" for turn, pair in rounds]


def frame_names(view: int) -> tuple[str, str, str]:
    """Names of the picture, the depth and the mask of a view, below the scene's folder."""
    return (
        f"frame-{view:06d}.color.png",
        f"frame-{view:06d}.depth.png",
        f"masks/frame-{view:06d}.mask.png",
    )


def draw(seed: int, scene: str, view: int) -> Rendering:
    """View 0.. of a scene as `scenes` names them: 480 x 640, `entities` 1 for the object, 0 for the rest."""
    return render(_world(seed, scene), _camera(seed, scene, view))


def write(folder: Path, sizes: Mapping[str, int], seed: int, views: int = VIEWS) -> None:
    """Write `training/{shelf,tote}/<object>/scene-*` with pictures, depth and masks.

    Empty scenes count as scenes and have no masks. `HHA` and `raw` are not written.

    Args:
        folder: where to.
        sizes: number of scenes per split; the tree does not say which is which.
        seed: another one gives other scenes.
        views: pictures per scene, 15 on the shelf and 18 in the tote at most.
    """
    for _ in in_order(partial(_write_scene, folder, seed, views), scenes(sum(sizes.values()))):
        pass


def _write_scene(folder: Path, seed: int, views: int, scene: str) -> None:
    world = _world(seed, scene)
    empty = scene.endswith(EMPTY)
    lines = []
    with whole_folder(folder / "training" / scene) as place:
        if not empty:
            (place / "masks").mkdir()
        for view in range(min(views, MAX_VIEWS[scene.partition("/")[0]])):
            camera = _camera(seed, scene, view)
            rendering = render(world, camera)
            colour, depth, mask = frame_names(view)
            save_png(place / colour, rendering.image)
            # tenths of a millimetre
            save_png(place / depth, np.rint(rendering.depth * 10_000).astype(np.uint16))
            if not empty:
                save_png(place / mask, rendering.entities * np.uint8(255))
            lines.append(_camera_text(view, camera))
        save_text(place / "cam.info.txt", "".join(lines))


def _camera_text(view: int, camera: Camera) -> str:
    pose = "\n".join(
        " ".join(f"{value:.6f}" for value in (*row, place))
        for row, place in zip(camera.axes.T, camera.position, strict=True)
    )
    focal = camera.focal_length
    return (
        f"# frame-{view:06d}: camera intrinsic matrix, then camera-to-world pose\n"
        f"{focal:.6f} 0 {camera.width / 2}\n0 {focal:.6f} {camera.height / 2}\n0 0 1\n{pose}\n0 0 0 1\n"
    )


def _stream(seed: int, scene: str, view: int = -1) -> np.random.Generator:
    return np.random.default_rng((_SALT, seed, zlib.crc32(scene.encode()), view + 1))


def _camera(seed: int, scene: str, view: int) -> Camera:
    """In front of the shelf, or above the tote, a little elsewhere in every view."""
    rng = _stream(seed, scene, view)
    x, y, z = rng.uniform(-1, 1, 3)
    if scene.startswith("shelf"):
        position = (0.1 * x, -0.52 + 0.05 * y, 0.16 + 0.05 * z)
        return Camera(position, (0.02 * y, 0.12, 0.09), 44.0, HEIGHT, WIDTH)
    return Camera((0.14 * x, -0.2 + 0.1 * y, 0.68 + 0.05 * z), (0.01 * z, 0.0, 0.04), 46.0, HEIGHT, WIDTH)


def _world(seed: int, scene: str) -> World:
    place, name, number = scene.split("/")
    rng = _stream(seed, scene)
    light = Light(
        direction=vector((rng.uniform(-0.4, 0.4), -1.0, rng.uniform(0.9, 1.6))),
        sun=0.42,
        fill_direction=(0.5, -1.0, 0.4),
        fill=0.2,
        # a bin is dark but for the lamp at the camera
        ambient=rng.uniform(0.52, 0.6) if place == "shelf" else rng.uniform(0.42, 0.5),
    )
    surroundings = _shelf() if place == "shelf" else _tote()
    planes = [
        Plane((0.0, 0.0, -0.3), (0.0, 0.0, 1.0), (0.4, 0.4, 0.42), 0),
        Plane((0.0, 0.6, 0.0), (0.0, -1.0, 0.0), (0.3, 0.3, 0.32), 0),
    ]
    solids = surroundings if number == EMPTY else [*surroundings, _object(rng, place, name)]
    return World(solids, planes, light, (0.5, 0.5, 0.5))


def _object(rng: np.random.Generator, place: str, name: str) -> Solid:
    """An item as its number says, standing or lying somewhere."""
    number = OBJECTS.index(name)
    shape, size = _KINDS[number % len(_KINDS)]
    # hues far from the tote's red, and never two alike
    tone = 0.09 + 0.8 * ((number * 0.618) % 1.0)
    label = Texture(_PATTERNS[number % len(_PATTERNS)], hue(tone + 0.12, 0.5, 0.95), 0.05)
    rotation, height = turn_z(rng.uniform(0, 2 * np.pi)), size[2]
    if shape in ("box", "cylinder") and rng.random() < 0.4:
        rotation, height = rotation @ turn_x(np.pi / 2), size[1]
    if place == "shelf":
        spot = rng.uniform((-0.05, 0.07), (0.05, 0.2))
    else:
        spot = rng.uniform((-0.16, -0.08), (0.16, 0.08))
    centre = vector((*spot, height))
    return Solid(shape, centre, size, hue(tone, 0.8, 0.85), 1, rotation, label)


def _shelf() -> list[Solid]:
    """A bin of cardboard between its neighbours, open to the front."""
    pale, edge = (0.78, 0.76, 0.72), (0.6, 0.57, 0.52)
    middle = _BIN_DEPTH / 2
    solids = [
        Solid("box", (0.0, middle, height), (0.8, middle, 0.006), pale, 0)
        for height in (-0.006, _BIN_HEIGHT + 0.006)
    ]
    for x in (-1.5, -0.5, 0.5, 1.5):
        wall = (0.006, middle, _BIN_HEIGHT / 2)
        solids.append(Solid("box", (x * (_BIN + 0.012), middle, _BIN_HEIGHT / 2), wall, edge, 0))
    back = (0.0, _BIN_DEPTH + 0.006, _BIN_HEIGHT / 2)
    solids.append(Solid("box", back, (0.8, 0.006, _BIN_HEIGHT / 2), (0.68, 0.66, 0.62), 0))
    return solids


def _tote() -> list[Solid]:
    """A red box, open to the top."""
    red, x, y = (0.72, 0.16, 0.14), *_TOTE
    solids = [Solid("box", (0.0, 0.0, -0.006), (x, y, 0.006), (0.62, 0.14, 0.12), 0)]
    for side in (-1.0, 1.0):
        solids.append(Solid("box", (side * (x + 0.006), 0.0, 0.05), (0.006, y + 0.012, 0.056), red, 0))
        solids.append(Solid("box", (0.0, side * (y + 0.006), 0.05), (x + 0.012, 0.006, 0.056), red, 0))
    return solids
