"""Stand-in for ShapeStacks: towers of blocks, stable or not, seen by 16 cameras, in the published layout.

Sizes, colours, places and cameras are the publisher's (defaults of the generator of Groth et al., ECCV 2018,
and the manual of the data); textures and light are ours. What the names call easy and hard is not known:
here both are drawn alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_modules.synthesis.drawing import save_png, save_text
from data_modules.synthesis.scene3d import (
    Camera,
    Colour,
    Light,
    Plane,
    Rendering,
    Solid,
    Texture,
    World,
    render,
    turn_z,
    vector,
)
from data_modules.threads import in_order
from lightning_genesis.storage.files import whole_folder

SIDE = 224
NUM_CAMERAS = 16
MIN_HEIGHT, MAX_HEIGHT = 2, 6
SPLITS = {"train": "train", "val": "eval", "test": "test"}
Kind = Literal["box", "cylinder", "sphere"]
Flaw = Literal["lifted", "apart", "overlapping", "tipping"]
FLAWS: Mapping[Flaw, tuple[float, float]] = {
    "lifted": (1.2, 2.2),
    "apart": (0.4, 1.2),
    "overlapping": (0.7, 1.0),
    "tipping": (0.1, 0.3),
}
"""How much towers are flawed, see `flawed`. A block is 0.5 to 1 high."""

HALF_SIZES = (0.25, 0.5)
"""Half of a block's shortest and longest edge; a cylinder is as wide as it is deep, a sphere round."""
COLOURS: Mapping[str, Colour] = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "cyan": (0.0, 1.0, 1.0),
    "magenta": (1.0, 0.0, 1.0),
}
"""All different in a tower."""
PLACE = 2.0
"""How far from the room's middle, along x and along y, the lowest block may stand."""
FIELD_OF_VIEW = 45.0
CAMERAS: tuple[tuple[float, float, float, float], ...] = (
    (-7, -7, 5, -45),
    (-9, -2, 5, -75),
    (-2, -9, 5, -15),
    (-7, 7, 5, 225),
    (-9, 2, 5, 255),
    (-2, 9, 5, 195),
    (7, 7, 5, 135),
    (9, 2, 5, 105),
    (2, 9, 5, 165),
    (7, -7, 5, 45),
    (9, -2, 5, 75),
    (2, -9, 5, 15),
    (-5, -5, 9, -45),
    (-5, 5, 9, 225),
    (5, 5, 9, 135),
    (5, -5, 9, 45),
)
"""Position of each camera and its turn about the vertical in degrees; at 0 it looks along y."""
NUM_LOW = 12
"""The first cameras look down by 15 degrees, the others by 45."""

_SALT = 0x57AC5
# a block stands at most this share of its half edge off the centre of mass above it, or so far outside
_OFF_CENTRE, _OUTSIDE = 0.5, 0.05
# how far inside, or outside, of the contact a centre of mass has to be, where other blocks' edges count too
_SAFE, _FALLS = 0.04, 0.02
_ROOM, _WALL_TOP = 14.0, 11.0
_WALLS: tuple[tuple[Colour, Texture], ...] = (
    ((0.72, 0.68, 0.62), Texture("bricks", (0.6, 0.56, 0.5), 2.0)),
    ((0.62, 0.68, 0.74), Texture("checks", (0.57, 0.63, 0.69), 4.0)),
    ((0.7, 0.72, 0.62), Texture("stripes", (0.64, 0.66, 0.56), 2.5)),
    ((0.74, 0.66, 0.66), Texture("waves", (0.66, 0.58, 0.58), 5.0)),
    ((0.66, 0.66, 0.66), Texture("bricks", (0.58, 0.58, 0.58), 3.0)),
    ((0.78, 0.74, 0.66), Texture("waves", (0.72, 0.67, 0.58), 8.0)),
)
_FLOORS: tuple[tuple[Colour, Texture], ...] = (
    ((0.56, 0.46, 0.36), Texture("stripes", (0.5, 0.4, 0.31), 1.6)),
    ((0.6, 0.6, 0.6), Texture("checks", (0.53, 0.53, 0.53), 2.4)),
    ((0.5, 0.55, 0.48), Texture("waves", (0.44, 0.49, 0.42), 3.0)),
    ((0.62, 0.55, 0.46), Texture("bricks", (0.54, 0.47, 0.38), 2.0)),
    ((0.48, 0.5, 0.56), Texture("checks", (0.43, 0.45, 0.51), 4.0)),
    ((0.66, 0.6, 0.54), Texture("waves", (0.6, 0.53, 0.47), 6.0)),
)
_LIGHTS = ((1.0, -0.6, 2.2), (-1.0, -0.7, 2.2), (0.5, 1.0, 2.0), (-0.6, 0.9, 2.4), (0.2, -0.3, 3.0))


@dataclass(frozen=True)
class Block:
    """One block of a tower."""

    kind: Kind
    half_size: tuple[float, float, float]
    centre: tuple[float, float, float]
    angle: float
    """Turn about the vertical, radians."""

    @property
    def volume(self) -> float:
        """In cubic world units; blocks are of one material."""
        x, y, z = self.half_size
        return {"box": 8.0, "cylinder": 2 * np.pi, "sphere": 4 / 3 * np.pi}[self.kind] * x * y * z

    def extent(self, direction: NDArray[np.float64]) -> float:
        """How far it reaches from its middle along a level direction of length 1."""
        x, y, _ = self.half_size
        if self.kind != "box":
            return x
        return float(np.abs(turn_z(self.angle).T[:2] @ direction) @ (x, y))

    def inset(self, point: NDArray[np.float64]) -> float:
        """How far inside the block's outline, seen from above, a point `[2]` is; negative outside."""
        dx, dy = point - np.asarray(self.centre[:2])
        if self.kind != "box":
            return float(self.half_size[0] - np.hypot(dx, dy))
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        u, v = abs(cos * dx + sin * dy), abs(-sin * dx + cos * dy)
        return float(min(self.half_size[0] - u, self.half_size[1] - v))


@dataclass(frozen=True)
class Tower:
    """The blocks from the lowest up, and what is wrong with them."""

    blocks: tuple[Block, ...]
    com_violation: int
    """From 1 for the lowest: what stands on this block has its centre of mass beside it; 0 for none."""
    surface_violation: int
    """From 1 for the lowest: this block is round and something stands on it; 0 for none."""
    name: str
    """Folder of the scenario."""
    texture: tuple[int, int, int]
    """Numbers of wall, floor and light."""
    colours: tuple[Colour, ...]

    @property
    def stable(self) -> bool:
        """Whether it stands."""
        return self.com_violation == 0 and self.surface_violation == 0

    def frame_name(self, camera: int) -> str:
        """File name of the picture of camera 1..16."""
        wall, floor, light = self.texture
        return f"rgb-w={wall}-f={floor}-l={light}-c=original-cam_{camera}-mono-0.png"


def map_name(camera: int) -> str:
    """File name of the instance map of camera 1..16."""
    return f"iseg-w=0-f=0-l=0-c=original-cam_{camera}-mono-0.map"


def tower(seed: int, index: int) -> Tower:
    """Draw the tower of scenario `index`: half of them stand, 2 to 6 blocks."""
    rng = np.random.default_rng((_SALT, seed, index))
    stands = bool(rng.random() < 0.5)
    blocks = None
    # what is asked for may be impossible: five blocks beside one would tip that one as well
    while blocks is None:
        height = int(rng.integers(MIN_HEIGHT, MAX_HEIGHT + 1))
        mixed = bool(rng.random() < 0.5)
        com, surface = 0, 0
        if not stands:
            wrong = int(rng.integers(1, height))
            com, surface = (0, wrong) if mixed and rng.random() < 0.5 else (wrong, 0)
        for _ in range(8):
            blocks = _stack(rng, height, mixed, com, surface)
            if blocks is not None:
                break
    kind, level = "ccs" if mixed else "blocks", ("easy", "hard")[rng.integers(2)]
    wall, floor, light = (int(rng.integers(len(choices))) for choices in (_WALLS, _FLOORS, _LIGHTS))
    colours = tuple(list(COLOURS.values())[number] for number in rng.permutation(len(COLOURS))[:height])
    name = f"env_{kind}-{level}-h={height}-vcom={com}-vpsf={surface}-v={index}"
    return Tower(blocks, com, surface, name, (wall, floor, light), colours)


def camera_number(number: int) -> Camera:
    """Camera 1..16: twelve around the room at a height of 5, four at 9."""
    x, y, z, turn = CAMERAS[number - 1]
    turn, down = np.radians(turn), np.radians(15.0 if number <= NUM_LOW else 45.0)
    ahead = np.array((-np.sin(turn) * np.cos(down), np.cos(turn) * np.cos(down), -np.sin(down)))
    return Camera((x, y, z), vector(np.add(ahead, (x, y, z))), FIELD_OF_VIEW, SIDE, SIDE)


def draw(seed: int, index: int, camera: int) -> Rendering:
    """What camera 1..16 sees of a scenario: 224 x 224, `entities` 1.. for the blocks from the lowest up."""
    return look(tower(seed, index), camera)


def look(drawn: Tower, camera: int) -> Rendering:
    """What camera 1..16 sees of a tower, as in `draw`."""
    return render(_world(drawn), camera_number(camera))


def flawed(
    drawn: Tower, flaw: Flaw, camera: int, rng: np.random.Generator, amount: float | None = None
) -> Tower:
    """A tower of which a block and all above it are moved.

    - `lifted`: upwards by `amount`.
    - `apart`: sideways, as camera 1..16 sees it, until `amount` is free between it and the one below.
    - `overlapping`: into the one below, by the share `amount` of the way to the same height, and sideways, so
      that neither hides the other.
    - `tipping`: sideways, until the centre of mass is `amount` beside the block below.

    Args:
        drawn: with two blocks or more.
        flaw: what is wrong.
        camera: whose left and right count.
        rng: draws the block, the side, and `amount` from `FLAWS` if that is None.
        amount: how much, in world units or as a share.
    """
    number = int(rng.integers(1, len(drawn.blocks)))
    below, above = drawn.blocks[number - 1 : number + 1]
    amount = float(rng.uniform(*FLAWS[flaw])) if amount is None else amount
    side = camera_number(camera).axes[0] * rng.choice([-1, 1])
    # to where its middle is over that of the one below
    start = float(side @ np.subtract(below.centre, above.centre))
    if flaw == "lifted":
        shift = np.array([0.0, 0.0, amount])
    elif flaw == "apart":
        shift = (start + below.extent(side) + amount + above.extent(side)) * side
    elif flaw == "overlapping":
        across = rng.uniform(0.5, 0.9) * (below.extent(side) + above.extent(side))
        shift = (start + across) * side
        shift[2] = -amount * (below.half_size[2] + above.half_size[2])
    else:
        mass = _centre_of_mass(drawn.blocks[number:]) - below.centre[:2]
        shift = (below.extent(side) + amount - float(side[:2] @ mass)) * side
    moved = (replace(block, centre=vector(block.centre + shift)) for block in drawn.blocks[number:])
    return replace(drawn, blocks=(*drawn.blocks[:number], *moved))


def write(
    folder: Path,
    sizes: Mapping[str, int],
    seed: int,
    layout: Literal["recordings", "iseg"] = "recordings",
) -> None:
    """Write `recordings`, `splits` and `meta`.

    Args:
        folder: where to.
        sizes: number of scenarios (of 16 pictures) for `train`, `val` and `test`, numbered in this order.
        seed: another one gives other towers.
        layout: whether the instance maps are beside the pictures in `recordings`, as in the published
            archive, or in a tree `iseg` of their own, as GENESIS had them.
    """
    names = list(in_order(partial(_write_scenario, folder, seed, layout), range(sum(sizes.values()))))
    first = 0
    for split, published in SPLITS.items():
        part = names[first : first + sizes[split]]
        first += sizes[split]
        for subset, prefix in (("default", "env_"), ("blocks_all", "env_blocks"), ("ccs_all", "env_ccs")):
            lines = [name for name in part if name.startswith(prefix)]
            (folder / "splits" / subset).mkdir(parents=True, exist_ok=True)
            save_text(folder / "splits" / subset / f"{published}.txt", "".join(f"{line}\n" for line in lines))
    (folder / "meta").mkdir(exist_ok=True)
    for kind in ("stable", "unstable"):
        save_text(folder / "meta" / f"blacklist_{kind}.txt", "")


def _write_scenario(folder: Path, seed: int, layout: str, index: int) -> str:
    drawn = tower(seed, index)
    world = _world(drawn)
    renderings = {number: render(world, camera_number(number)) for number in range(1, NUM_CAMERAS + 1)}
    with whole_folder(folder / "recordings" / drawn.name) as place:
        for number, rendering in renderings.items():
            save_png(place / drawn.frame_name(number), rendering.image)
            if layout == "recordings":
                save_png(place / map_name(number), _coded(rendering.entities))
    if layout == "iseg":
        with whole_folder(folder / "iseg" / drawn.name) as place:
            for number, rendering in renderings.items():
                save_png(place / map_name(number), _coded(rendering.entities))
    return drawn.name


def _coded(entities: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Ids as the published maps have them: grey of 32 times the id, opaque, `[H, W, 4]`."""
    grey = np.uint8(32) * entities
    return np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1)


def _stack(
    rng: np.random.Generator, height: int, mixed: bool, com: int, surface: int
) -> tuple[Block, ...] | None:
    """Put blocks together from the top down, each relative to the centre of mass of what stands on it.

    Returns:
        The blocks from the lowest up, or None if these do not have exactly the violation asked for.
    """
    kinds: list[Kind] = ["box"] * height
    if mixed:
        kinds = [("box", "cylinder")[number] for number in rng.integers(2, size=height)]  # type: ignore[misc]
        if surface:
            kinds[surface - 1] = "sphere"
        elif rng.random() < 0.4:
            kinds[-1] = "sphere"
    sizes = rng.uniform(*HALF_SIZES, (height, 3))
    for number, kind in enumerate(kinds):
        if kind == "sphere":
            sizes[number] = sizes[number, 0]
        elif kind == "cylinder":
            sizes[number, 1] = sizes[number, 0]
    angles = rng.uniform(0, 2 * np.pi, height)
    bottoms = np.concatenate([[0.0], 2 * np.cumsum(sizes[:, 2])])
    placed: list[Block] = []
    for number in reversed(range(height)):
        middle = np.zeros(2)
        if placed:
            off = _offset(rng, kinds[number], sizes[number, :2], falls=com == number + 1)
            middle = _centre_of_mass(placed) + turn_z(angles[number])[:2, :2] @ off
        x, y, z = *middle, bottoms[number] + sizes[number, 2]
        placed.insert(
            0, Block(kinds[number], vector(sizes[number]), vector((x, y, z)), float(angles[number]))
        )
    shift = rng.uniform(-PLACE, PLACE, 2) - np.asarray(placed[0].centre[:2])
    blocks = tuple(
        Block(b.kind, b.half_size, vector((*(b.centre[:2] + shift), b.centre[2])), b.angle) for b in placed
    )
    return blocks if _as_asked(blocks, com, surface) else None


def _offset(
    rng: np.random.Generator, kind: Kind, half_size: NDArray[np.float64], falls: bool
) -> NDArray[np.float64]:
    """How far a block's middle is from the centre of mass above it, along its own edges, `[2]`."""
    if kind == "sphere":  # it touches in one point
        return np.zeros(2)
    off = rng.uniform(-_OFF_CENTRE, _OFF_CENTRE, 2) * half_size
    if falls:
        side = int(rng.integers(2))
        off[side] = rng.choice([-1, 1]) * (half_size[side] + _OUTSIDE)
        if kind == "cylinder":
            off[1 - side] = 0.0
    return np.asarray(off)


def _as_asked(blocks: tuple[Block, ...], com: int, surface: int) -> bool:
    """Whether exactly the contact asked for fails, and clearly."""
    for number in range(1, len(blocks)):
        below, above = blocks[number - 1], blocks[number]
        mass = _centre_of_mass(blocks[number:])
        # the contact is where both outlines overlap: convex, so inside of it is inside of both
        inset = min(below.inset(mass), above.inset(mass))
        # the one above must not hang in the air
        touching = min(below.inset(middle := _between(below, above)), above.inset(middle)) > 0.02
        right = inset < -_FALLS if number == com else inset > _SAFE
        if not touching or not right:
            return False
        if (below.kind == "sphere") != (number == surface):
            return False
    return True


def _between(one: Block, other: Block) -> NDArray[np.float64]:
    """A point between the middles of two blocks, nearer to the smaller one."""
    sizes = np.array([min(one.half_size[:2]), min(other.half_size[:2])])
    weights = sizes[::-1] / sizes.sum()
    return np.asarray(weights @ np.array([one.centre[:2], other.centre[:2]]))


def _centre_of_mass(blocks: tuple[Block, ...] | list[Block]) -> NDArray[np.float64]:
    """Of blocks of one material, seen from above, `[2]`."""
    volumes = np.array([block.volume for block in blocks])
    middles = np.array([block.centre[:2] for block in blocks])
    return np.asarray((volumes[:, None] * middles).sum(axis=0) / volumes.sum())


def _world(drawn: Tower) -> World:
    solids = [
        Solid(block.kind, block.centre, block.half_size, colour, number, turn_z(block.angle))
        for number, (block, colour) in enumerate(zip(drawn.blocks, drawn.colours, strict=True), 1)
    ]
    wall, floor, light = drawn.texture
    planes = [Plane((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), _FLOORS[floor][0], 0, _FLOORS[floor][1])]
    for x, y in ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)):
        place = (x * _ROOM, y * _ROOM, 0.0)
        planes.append(Plane(place, (-x, -y, 0.0), _WALLS[wall][0], 0, _WALLS[wall][1], _WALL_TOP))
    x, y, z = _LIGHTS[light]
    # the other lamp hangs across, so that no side is black
    return World(solids, planes, Light((x, y, z), 0.36, (-x, -y, 1.0), fill=0.2, ambient=0.6))
