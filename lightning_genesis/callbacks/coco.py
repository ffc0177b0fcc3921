"""Segmentations as COCO has them: an annotation for every slot of every picture."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CATEGORY = 1
"""The only one: a slot does not say what it shows."""


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of runs of a mask `[H, W]`, column after column, zeros and ones in turn, zeros first."""
    pixels = mask.flatten(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
    return [0, *lengths] if pixels.size and pixels[0] else lengths


def compressed(lengths: Sequence[int]) -> str:
    """Run lengths as COCO writes them: differences to the run before the last, five bits a character."""
    text = []
    for position, length in enumerate(lengths):
        value = length - lengths[position - 2] if position > 2 else length
        while True:
            bits, value = value & 31, value >> 5  # the sign goes on to the left
            if value == (-1 if bits & 16 else 0):
                text.append(chr(48 + bits))
                break
            text.append(chr(48 + bits + 32))
    return "".join(text)


def annotations(ids: NDArray[np.integer[Any]], image_id: int) -> Iterator[dict[str, Any]]:
    """One for every slot that has a pixel, without an id of its own.

    Args:
        ids: slots from 1, `[H, W]`; 0 is none.
        image_id: of the picture.
    """
    for slot in np.unique(ids[ids > 0]).tolist():
        mask = ids == slot
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, left = int(rows[0]), int(columns[0])
        yield {
            "image_id": image_id,
            "category_id": CATEGORY,
            "slot": slot,
            "segmentation": {"size": [*mask.shape], "counts": compressed(run_lengths(mask))},
            "area": int(mask.sum()),
            "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
            "iscrowd": 0,
        }


def whole(pictures: Sequence[Mapping[str, Any]], description: str) -> dict[str, Any]:
    """The contents of a file: pictures, each with its `annotations`, in order of their ids."""
    by_id = {picture["id"]: picture for picture in pictures}
    ordered = [by_id[number] for number in sorted(by_id)]
    found = [found for picture in ordered for found in picture["annotations"]]
    return {
        "info": {"description": description},
        "images": [{k: v for k, v in picture.items() if k != "annotations"} for picture in ordered],
        "categories": [{"id": CATEGORY, "name": "slot"}],
        "annotations": [{"id": number, **entry} for number, entry in enumerate(found, start=1)],
    }
