"""Stand-in for Sketchy: an arm that lifts blocks out of a basket, in the published form of an episode."""

import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_modules.raw.example import Value
from data_modules.raw.tfrecord import TFRecordWriter
from data_modules.synthesis.drawing import jpeg, place_apart, ring
from data_modules.synthesis.scene3d import (
    Camera,
    Colour,
    Light,
    Plane,
    Rendering,
    Solid,
    Texture,
    Vector,
    World,
    along,
    render,
    turn_z,
    unit,
    vector,
)
from data_modules.threads import in_order

HEIGHT, WIDTH = 600, 960
TIMESTEPS = 8
ARM = 4
"""Entity of the arm; 1 to 3 are the red, the green and the blue block, 0 is all else."""

_SALT = 0x5CE7
_BASKET = 0.25
_BLOCK = 0.035
_COLOURS: tuple[Colour, ...] = ((0.86, 0.16, 0.14), (0.2, 0.7, 0.22), (0.16, 0.32, 0.86))
_FRONT: dict[str, Vector] = {"front_left": (-0.42, -0.72, 0.6), "front_right": (0.42, -0.72, 0.6)}
# the publisher's sizes of these are not known to us
_OTHERS: dict[str, Camera] = {
    "basket_back_left": Camera((-0.5, 0.75, 0.6), (0.0, 0.0, 0.08), 45.0, 120, 192),
    "usbcam0": Camera((0.9, 0.1, 0.7), (0.0, 0.0, 0.1), 45.0, 120, 160),
    "usbcam1": Camera((-0.9, 0.1, 0.7), (0.0, 0.0, 0.1), 45.0, 120, 160),
}
_DEPTH_CAMERA = Camera((0.0, -0.62, 0.75), (0.0, 0.0, 0.05), 45.0, 171, 224)


def front_camera(view: str) -> Camera:
    """The camera `front_left` or `front_right`, 600 x 960."""
    return Camera(_FRONT[view], (0.0, 0.0, 0.07), 44.0, HEIGHT, WIDTH)


def episode_name(seed: int, episode: int) -> str:
    """File name of an episode: digits that rise with its number, and a UUID."""
    rng = np.random.default_rng((_SALT, seed, episode, 1))
    return f"{10_000_000 + episode}_{uuid.UUID(bytes=rng.bytes(16), version=4)}"


def draw(seed: int, episode: int, timestep: int, view: str, timesteps: int = TIMESTEPS) -> Rendering:
    """What `front_left` or `front_right` sees, 600 x 960, before it becomes a JPEG.

    Its `entities` are 0 for the background, 1 to 3 for the blocks, 4 for the arm (the published format has no
    place for them).
    """
    return render(_Episode(seed, episode, timesteps).world(timestep), front_camera(view))


def record(seed: int, episode: int, timesteps: int, timestep: int) -> dict[str, Value]:
    """All features of a timestep: pictures, depth, and the state of an arm that moves by a script."""
    scene = _Episode(seed, episode, timesteps)
    world = scene.world(timestep)
    features: dict[str, Value] = {
        f"pixels/basket_{view}": [jpeg(render(world, front_camera(view)).image)] for view in _FRONT
    }
    for name, camera in _OTHERS.items():
        features[f"pixels/{name}"] = [jpeg(render(world, camera).image)]
    deep = render(world, _DEPTH_CAMERA)
    grey = np.rint(deep.image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    features["pixels/royale_camera_driver_gray"] = [jpeg(grey)]
    features["pixels/royale_camera_driver_depth"] = deep.depth[..., None]
    return features | scene.state(timestep)


def write(folder: Path, sizes: Mapping[str, int], seed: int, timesteps: int = TIMESTEPS) -> None:
    """Write one file per episode, as they are after unpacking the published archives.

    By the published rule the first ones by name are for validation, the next ones for test and the rest for
    training, which is the order that they are numbered in.

    Args:
        folder: where to.
        sizes: number of episodes per split.
        seed: another one gives other episodes.
        timesteps: of an episode; each gives 14 crops.
    """
    for episode in range(sum(sizes.values())):
        with TFRecordWriter(folder / episode_name(seed, episode), compressed=False) as writer:
            for features in in_order(partial(record, seed, episode, timesteps), range(timesteps)):
                writer.write(features)


class _Episode:
    """A basket with three blocks, and a gripper that goes to one of them, closes and lifts it."""

    def __init__(self, seed: int, episode: int, timesteps: int) -> None:
        rng = np.random.default_rng((_SALT, seed, episode))
        self.timesteps = timesteps
        places = None
        while places is None:
            proposed = rng.uniform(-_BASKET + 0.07, _BASKET - 0.07, (64, 2))
            radii = np.full(len(_COLOURS), _BLOCK * 1.42)
            places = place_apart(proposed, radii, np.ones((len(radii), 64), np.bool_), gap=0.02)
        self.places = np.column_stack([places, np.full(len(places), _BLOCK)])
        self.angles = rng.uniform(0, np.pi / 2, len(places))
        self.chosen = int(rng.integers(len(places)))
        self.start = np.array([*rng.uniform(-0.12, 0.12, 2), rng.uniform(0.24, 0.32)])
        self.lifted = np.array([*rng.uniform(-0.08, 0.08, 2), rng.uniform(0.2, 0.28)])
        self.tone = float(rng.uniform(0.42, 0.58))

    def tip(self, timestep: int) -> tuple[NDArray[np.float64], float]:
        """Where the gripper is, `[3]`, and how far open, 0 to 1."""
        phase = timestep / max(self.timesteps - 1, 1)
        block = self.places[self.chosen]
        if phase < 0.5:
            # over it first, then down
            across, down = min(phase / 0.3, 1.0), max((phase - 0.25) / 0.25, 0.0)
            level = self.start + across * (block - self.start)
            level[2] = self.start[2] + down * (block[2] - self.start[2])
            return level, 1.0
        up = max((phase - 0.6) / 0.4, 0.0)
        return block + up * (self.lifted - block), max(0.0, 1.0 - (phase - 0.5) / 0.1)

    def joints(self, timestep: int) -> list[NDArray[np.float64]]:
        """Shoulder, elbow, wrist and tool of the arm, each `[3]`."""
        tip, _ = self.tip(timestep)
        shoulder = np.array([0.0, 0.95, 0.45])
        wrist = tip + np.array([0.0, 0.0, 0.3])
        elbow = (shoulder + wrist) / 2 + np.array([0.0, 0.0, 0.28])
        return [shoulder, elbow, wrist, tip + np.array([0.0, 0.0, 0.11])]

    def world(self, timestep: int) -> World:
        """All there is at a timestep."""
        tip, opening = self.tip(timestep)
        solids = []
        for number, (place, angle) in enumerate(zip(self.places, self.angles, strict=True)):
            held = number == self.chosen and opening == 0.0
            solids.append(_block(tip if held else place, angle, number))
        solids += self._arm(tip, opening, self.joints(timestep)) + _basket(self.tone)
        boards = Texture("stripes", (0.66, 0.56, 0.44), 0.3)
        planes = [
            Plane((0.0, 0.0, -0.04), (0.0, 0.0, 1.0), (0.7, 0.6, 0.48), 0, boards),
            Plane((0.0, 1.6, 0.0), (0.0, -1.0, 0.0), (0.72, 0.74, 0.76), 0),
        ]
        light = Light((-0.5, -0.8, 2.0), sun=0.45, fill_direction=(0.6, -1.0, 0.6), fill=0.2, ambient=0.42)
        return World(solids, planes, light, (0.75, 0.78, 0.82))

    def _arm(
        self, tip: NDArray[np.float64], opening: float, joints: list[NDArray[np.float64]]
    ) -> list[Solid]:
        shoulder, elbow, wrist, tool = joints
        red, dark, steel = (0.62, 0.1, 0.12), (0.2, 0.2, 0.22), (0.55, 0.57, 0.6)
        solids = [
            _link(shoulder, elbow, 0.06, red),
            _link(elbow, wrist, 0.05, red),
            _link(wrist, tool, 0.035, dark),
            Solid("sphere", vector(elbow), (0.075, 0.075, 0.075), dark, ARM),
            Solid("sphere", vector(wrist), (0.06, 0.06, 0.06), dark, ARM),
            Solid(
                "box", vector(tool - np.array([0.0, 0.0, 0.02])), (0.075, 0.03, 0.02), steel, ARM, self._grip
            ),
        ]
        for side in (-1, 1):
            offset = self._grip @ (side * (_BLOCK + 0.012 + 0.022 * opening), 0.0, 0.035)
            solids.append(Solid("box", vector(tip + offset), (0.01, 0.014, 0.055), steel, ARM, self._grip))
        return solids

    @property
    def _grip(self) -> NDArray[np.float64]:
        """The gripper's turn: its fingers are along the block's sides."""
        return turn_z(self.angles[self.chosen])

    def state(self, timestep: int) -> dict[str, Value]:
        """Positions and their differences, in the published names, shapes and types."""
        joints, opening = self._joint_angles(timestep), self.tip(timestep)[1]
        later, later_opening = self._joint_angles(timestep + 1), self.tip(timestep + 1)[1]
        tip, next_tip = self.tip(timestep)[0], self.tip(timestep + 1)[0]
        turn = self.angles[self.chosen] / 2
        # a quaternion that points down, turned about the vertical
        pose = np.array([*tip, 0.0, np.cos(turn), np.sin(turn), 0.0])
        velocity = np.concatenate([(next_tip - tip) * 10, np.zeros(3)])
        load = np.array([0.0, 0.0, -9.81 * (1.0 + 0.2 * (opening == 0.0))])
        floats: dict[str, ArrayLike] = {
            "actions": np.concatenate([velocity, [later_opening - opening]]),
            "sawyer/joints/angle": joints,
            "sawyer/joints/velocity": (later - joints) * 10,
            "sawyer/joints/torque": 8.0 * np.cos(joints),
            "sawyer/pinch/pose": pose,
            "sawyer/tcp/pose": pose + 0.11 * np.eye(7)[2],
            "sawyer/tcp/velocity": velocity,
            "sawyer/tcp/effort": np.concatenate([load, np.zeros(3)]),
            "wrist/force": load,
            "wrist/torque": np.zeros(3),
            "gripper/joints/angle": [opening],
            "gripper/joints/velocity": [(later_opening - opening) * 10],
            "gripper/joints/torque": [float(opening == 0.0)],
        }
        features: dict[str, Value] = {name: np.asarray(value, np.float32) for name, value in floats.items()}
        features["gripper/grasp"] = np.array([opening == 0.0], np.int64)
        return features

    def _joint_angles(self, timestep: int) -> NDArray[np.float64]:
        """Seven angles that follow the links, in radians, `[7]`."""
        shoulder, elbow, wrist, _ = self.joints(timestep)
        upper, lower = unit(elbow - shoulder), unit(wrist - elbow)
        return np.array(
            [
                np.arctan2(upper[0], -upper[1]),
                np.arcsin(upper[2]),
                0.0,
                np.arccos(np.clip(upper @ lower, -1.0, 1.0)),
                0.0,
                np.arcsin(np.clip(-lower[2], -1.0, 1.0)),
                self.angles[self.chosen],
            ]
        )


def _block(place: NDArray[np.float64], angle: float, number: int) -> Solid:
    return Solid("box", vector(place), (_BLOCK, _BLOCK, _BLOCK), _COLOURS[number], 1 + number, turn_z(angle))


def _link(start: NDArray[np.float64], end: NDArray[np.float64], radius: float, colour: Colour) -> Solid:
    length = float(np.sqrt(((end - start) ** 2).sum()))
    middle = vector((start + end) / 2)
    return Solid("cylinder", middle, (radius, radius, length / 2), colour, ARM, along(end - start))


def _basket(tone: float) -> list[Solid]:
    """A tray with four low walls."""
    colour, weave = (tone, tone, tone + 0.02), Texture("checks", (tone - 0.05,) * 3, 0.08)
    solids = [Solid("box", (0.0, 0.0, -0.02), (_BASKET, _BASKET, 0.02), colour, 0, texture=weave)]
    for number in range(4):
        turned = ring(number * np.pi / 2, _BASKET + 0.01, 0.01)
        wall = turn_z(number * np.pi / 2)
        rim = (tone - 0.12, tone - 0.12, tone - 0.1)
        solids.append(Solid("box", turned, (0.01, _BASKET + 0.02, 0.05), rim, 0, wall))
    return solids
