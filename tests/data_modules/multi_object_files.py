"""Small files in the formats of the Multi-Object Datasets, and what they show."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.raw.tfrecord import TFRecordWriter


def room_record(number: int) -> dict[str, Any]:
    """A record of ObjectsRoom: stripes of sky, floor and two walls, and up to three squares."""
    rng = np.random.default_rng(number)
    ids = np.repeat([0, 2, 3, 1], 16).astype(np.uint8)[:, None].repeat(64, 1)
    for entity in range(4, 5 + number % 3):
        top, left = rng.integers(0, 50, 2)
        ids[top : top + 12, left : left + 12] = entity
    image = rng.integers(0, 256, (7, 3), dtype=np.uint8)[ids]
    return {"image": image, "mask": as_masks(ids, 7)}


def clevr_record(number: int, num_objects: int) -> dict[str, Any]:
    """A record of CLEVR: a smooth background and squares, every factor a function of number and entity."""
    rng = np.random.default_rng(number)
    ids = np.zeros((240, 320), np.uint8)
    for entity in range(1, num_objects + 1):
        top, left = rng.integers(20, 200), rng.integers(60, 240)
        ids[top : top + 30, left : left + 30] = entity
    rows, columns = np.indices(ids.shape)
    smooth = np.stack([rows, columns // 2, (rows + columns) // 3], -1).astype(np.uint8)
    image = np.where(ids[..., None] > 0, rng.integers(0, 256, (11, 3), dtype=np.uint8)[ids], smooth)
    there = (np.arange(11) <= num_objects) & (np.arange(11) > 0)
    codes = {name: (there * (1 + (number + i) % 3)).astype(np.uint8) for i, name in enumerate(CODES)}
    reals = {
        name: (there * (number + np.arange(11) / 100 + i)).astype(np.float32) for i, name in enumerate("xyz")
    }
    return {
        "image": image,
        "mask": as_masks(ids, 11),
        **codes,
        **reals,
        "rotation": (there * 7.5).astype(np.float32),
        "visibility": (np.arange(11) <= num_objects).astype(np.float32),
        "pixel_coords": np.outer(there, [100.0, 50.0, 9.0]).astype(np.float32),
    }


CODES = ("size", "material", "shape", "color")


def as_masks(ids: NDArray[np.uint8], num_entities: int) -> NDArray[np.uint8]:
    """Entity numbers `[H, W]` as masks `[E, H, W, 1]` of 0 and 255."""
    return (ids == np.arange(num_entities)[:, None, None]).astype(np.uint8)[..., None] * 255


def ids_of(record: dict[str, Any]) -> NDArray[np.uint8]:
    """Entity numbers `[H, W]` by looking at every mask."""
    ids = np.full(record["mask"].shape[1:3], 255, np.uint8)
    for entity, mask in enumerate(record["mask"][..., 0]):
        ids[mask == 255] = entity
    return ids


def write_records(path: Path, records: list[dict[str, Any]], compressed: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with TFRecordWriter(path, compressed) as writer:
        for record in records:
            writer.write(record)
