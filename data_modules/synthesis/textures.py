"""Textures of surfaces: a second colour and where it goes, as a function of places in space."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]
Pattern = Literal["checks", "stripes", "waves", "bricks", "clouds", "marble", "grain", "spots"]

_OCTAVES = 3


@dataclass(frozen=True)
class Texture:
    """A second colour and where it goes."""

    pattern: Pattern
    colour: Colour
    period: float
    """Length of a repetition in world units."""


def paint(colour: Colour, texture: Texture | None, coordinates: Floats) -> Floats:
    """Colours at points of a surface, given by two or three coordinates, as `[3, n]`."""
    first = np.asarray(colour, np.float32)[:, None]
    if texture is None:
        return np.broadcast_to(first, (3, coordinates.shape[1]))
    # a face through the origin must not lie on the border between two cells
    cells = coordinates / np.float32(texture.period) + np.float32(0.013)
    if texture.pattern == "checks":
        weight = np.floor(2 * cells).sum(axis=0) % 2
    elif texture.pattern == "stripes":
        weight = np.floor(2 * cells[-1]) % 2
    elif texture.pattern == "waves":
        angles = 2 * np.pi * cells
        weight = 0.5 + 0.5 * np.sin(angles[0] + 1.5 * np.sin(angles[1]) + angles[2:].sum(axis=0))
    elif texture.pattern == "clouds":
        weight = np.clip(2.2 * fractal_noise(2 * cells) - 0.6, 0.0, 1.0)
    elif texture.pattern == "marble":
        veins = 0.5 + 0.5 * np.sin(2 * np.pi * (cells.sum(axis=0) + 2.5 * fractal_noise(cells)))
        weight = veins**3
    elif texture.pattern == "grain":
        rings = np.hypot(cells[0] + 0.3, cells[-1] + 0.2) + 0.35 * fractal_noise(0.7 * cells)
        weight = (3 * rings) % 1
    elif texture.pattern == "spots":
        weight = np.clip(14 * (noise(3 * cells) - 0.58), 0.0, 1.0)
    else:
        row = np.floor(2 * cells[-1])
        across = cells[0] + cells[1:-1].sum(axis=0) + 0.5 * (row % 2)
        weight = (((2 * cells[-1]) % 1 < 0.16) | (across % 1 < 0.08)).astype(np.float32)
    return first + weight.astype(np.float32) * (np.asarray(texture.colour, np.float32)[:, None] - first)


def noise(points: Floats) -> Floats:
    """A smooth random function of space, 0 to 1, that changes over a distance of 1.

    Args:
        points: two or three coordinates, `[d, n]`.

    Returns:
        `[n]`; the same everywhere and always.
    """
    corner = np.floor(points)
    near = (points - corner).astype(np.float32)
    near = near * near * (3 - 2 * near)
    corner = corner.astype(np.int64)
    total = np.zeros(points.shape[1], np.float32)
    for step in np.ndindex(*(2,) * len(points)):
        weight = np.ones(points.shape[1], np.float32)
        for axis, side in enumerate(step):
            weight *= near[axis] if side else 1 - near[axis]
        total += weight * _hashed(corner + np.array(step)[:, None])
    return total


def fractal_noise(points: Floats) -> Floats:
    """Noise with details: the sum of octaves, each half as large and half as strong, 0 to 1, `[n]`."""
    total = np.zeros(points.shape[1], np.float32)
    for octave in range(_OCTAVES):
        total += 0.5**octave * noise(points * np.float32(2**octave))
    return total / np.float32(2 - 0.5 ** (_OCTAVES - 1))


def _hashed(corners: NDArray[np.int64]) -> Floats:
    """A number from 0 to 1 for every place with whole coordinates, `[n]`."""
    mixed = np.zeros(corners.shape[1], np.uint32)
    for axis, factor in enumerate((0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)[: len(corners)]):
        mixed ^= corners[axis].astype(np.uint32) * np.uint32(factor)
        mixed ^= mixed >> np.uint32(15)
        mixed *= np.uint32(0x2C1B3C6D)
        mixed ^= mixed >> np.uint32(12)
    return (mixed >> np.uint32(8)).astype(np.float32) / np.float32(2**24)
