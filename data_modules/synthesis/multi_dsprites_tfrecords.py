"""Stand-in for the published Multi-dSprites TFRecords: sprites drawn by formula, in the published format."""

import colorsys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_modules.base import Split
from data_modules.raw.tfrecord import TFRecordWriter
from data_modules.synthesis.sprites import FRAME, NUM_SPRITES, SCALES, RenderedSprites, latents_from_index

NUM_SPRITES_PER_SCENE = {
    "colored_on_grayscale": (2, 5),
    "colored_on_colored": (1, 4),
    "binarized": (2, 3),
}
"""Fewest and most sprites of a scene."""


def draw(seed: int, index: int, variant: str) -> dict[str, NDArray[np.generic]]:
    """Draws scene `index`; later sprites cover earlier ones.

    Returns:
        The features of a record, with E entities of which the first is the background: `image` uint8
        `[64, 64, 3]`, or `[64, 64, 1]` if binarized; `mask` uint8 `[64, 64, E, 1]` of 0 and 255, the entity
        axis third; float32 `x`, `y`, `shape`, `orientation`, `scale`, `visibility` `[E]`, and `color`
        `[E, 3]` unless binarized.
    """
    rng = np.random.default_rng((seed, index))
    fewest, most = NUM_SPRITES_PER_SCENE[variant]
    count = int(rng.integers(fewest, most + 1))
    chosen = rng.integers(NUM_SPRITES, size=count)
    ids = np.zeros((FRAME, FRAME), np.uint8)
    masks, top, left = RenderedSprites().masks(chosen)
    for order, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        ids[top[order] + rows, left[order] + columns] = order + 1
    colours = np.zeros((most + 1, 3))
    colours[: count + 1] = _colours(rng, variant, count)
    shape, scale, orientation, x, y = np.moveaxis(latents_from_index(chosen), -1, 0)
    factors = {
        "x": x / 31,
        "y": y / 31,
        "shape": shape + 1,
        "orientation": 2 * np.pi * orientation / 39,
        "scale": np.asarray(SCALES)[scale],
    }
    features: dict[str, NDArray[np.generic]] = {
        name: np.pad(values.astype(np.float32), (1, most - count)) for name, values in factors.items()
    }
    image = np.round(colours * 255).astype(np.uint8)[ids]
    if variant == "binarized":
        image = image[..., :1]
    else:
        features["color"] = colours.astype(np.float32)
    entities = np.arange(most + 1)
    features["visibility"] = (entities <= count).astype(np.float32)
    return {
        "image": image,
        "mask": ((ids[..., None] == entities) * np.uint8(255))[..., None].astype(np.uint8),
        **features,
    }


def _colours(rng: np.random.Generator, variant: str, count: int) -> NDArray[np.float64]:
    """Colours of background and sprites in [0, 1], `[1 + count, 3]`."""
    if variant == "binarized":
        return np.concatenate((np.zeros((1, 3)), np.ones((count, 3))))
    if variant == "colored_on_colored":
        return rng.random((1 + count, 3))
    hues = [colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.5, 1), rng.uniform(0.5, 1)) for _ in range(count)]
    return np.array([(rng.random(),) * 3, *hues])


def write(folder: Path, sizes: Mapping[Split, int], seed: int, variant: str) -> None:
    """Write `multi_dsprites_<variant>.tfrecords` with as many records as `sizes` has in all."""
    with TFRecordWriter(folder / f"multi_dsprites_{variant}.tfrecords", compressed=True) as writer:
        for index in range(sum(sizes.values())):
            writer.write(draw(seed, index, variant))
