"""What the renderers share: the order of the work, colours, places on a floor, files and folders."""

import colorsys
import io
import os
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.synthesis.scene3d import Colour, Vector

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741

THREADS = min(8, os.cpu_count() or 1)
JPEG_QUALITY = 92


def in_order(draw: Callable[[I], T], items: Iterable[I], threads: int = THREADS) -> Iterator[T]:
    """`draw` of every item, in order, some of them at work side by side.

    NumPy, zlib and Pillow let threads run side by side on large pictures; on small ones one thread is faster.
    """
    if threads == 1:
        yield from map(draw, items)
        return
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(draw, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


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


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is full; an unfinished one is removed.

    Raises:
        OSError: if there is such a folder already, with something in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        yield partial
        os.rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def ring(angle: float, radius: float, height: float) -> Vector:
    """A point above a circle around the origin; the angle in radians."""
    return float(radius * np.cos(angle)), float(radius * np.sin(angle)), float(height)
