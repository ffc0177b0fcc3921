"""What the renderers share: colours, places on a floor, files."""

import colorsys
import io
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.synthesis.scene3d import Colour, Vector

JPEG_QUALITY = 92


def hue(angle: float, saturation: float = 0.75, value: float = 0.85) -> Colour:
    """A colour by its place on the wheel, 0 to 1 (periodic)."""
    return colorsys.hsv_to_rgb(angle % 1.0, saturation, value)


def spread_hues(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Places on the wheel that keep their distance from each other, in random order, `[count]`."""
    wheel = (rng.random() + (np.arange(count) + rng.uniform(-0.2, 0.2, count)) / count) % 1.0
    return rng.permutation(wheel)


def place_apart(
    proposed: NDArray[np.float64], radii: NDArray[np.float64], fits: NDArray[np.bool_], gap: float
) -> NDArray[np.float64] | None:
    """Choose places for discs on a floor, each the first one proposed that fits and keeps its distance.

    Args:
        proposed: places, `[m, 2]`.
        radii: of the discs, `[n]`.
        fits: whether disc `i` may be at place `j`, `[n, m]`.
        gap: smallest distance between the rims of two discs.

    Returns:
        `[n, 2]`, or None where there is no place for one of them.
    """
    free = fits.copy()
    places = np.empty((len(radii), 2))
    for number, radius in enumerate(radii):
        if not free[number].any():
            return None
        places[number] = place = proposed[free[number].argmax()]
        distances = np.hypot(*(proposed - place).T)
        free &= distances >= (radii + radius + gap)[:, None]
    return places


def jpeg(image: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """A picture `[H, W, 3]` or `[H, W]` as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def save_png(path: Path, image: NDArray[Any]) -> None:
    """Write a picture as PNG to a path of any name; it is there as a whole or not at all."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    Image.fromarray(image).save(partial, "PNG", compress_level=3)
    os.rename(partial, path)


def save_text(path: Path, text: str) -> None:
    """Write a text file; it is there as a whole or not at all."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    partial.write_text(text, encoding="utf-8")
    os.rename(partial, path)


def ring(angle: float, radius: float, height: float) -> Vector:
    """A point above a circle around the origin; the angle in radians."""
    return float(radius * np.cos(angle)), float(radius * np.sin(angle)), float(height)
