"""ObjectsRoom: up to three objects in a room, as in GENESIS and GENESIS-V2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.base import Split
from data_modules.multi_object import BUCKET, MultiObjectDataModule, entity_ids, resize
from data_modules.raw.download import RawFile
from data_modules.raw.example import Example
from data_modules.store import Arrays

SIDE = 64
NUM_ENTITIES = 7
NUM_BACKGROUND = 4
"""Sky, floor, and the two walls."""
_FLOOR, _FIRST_WALL, _SECOND_WALL = 1, 2, 3
_SPAN = 3


def repair_background(segmentations: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Move objects out of the numbers of the background, where only one wall is in view.

    With one wall in view there are three background entities and the objects begin at number 3, so that "the
    first four are background" drops an object. The repair is that of users of the data, not of a paper, in
    our reading: (a) if no entity above 3 has pixels, the highest one that has becomes number 4; (b)
    otherwise, if the last number is free, entity 3 and all above move up by one where entity 3 cannot be a
    wall: it lies directly above or below entity 2 in at least 3 columns, or has floor or sky directly to its
    left and right in at least 3 rows each, or to one side while it does not reach the image's other border.

    Args:
        segmentations: entity numbers, uint8 `[N, H, W]`.

    Returns:
        The same with numbers moved, `[N, H, W]`.
    """
    repaired = segmentations.copy()
    for ids in repaired:
        highest = int(ids.max())
        if highest < NUM_BACKGROUND:
            ids[ids == highest] = NUM_BACKGROUND
        elif highest < NUM_ENTITIES - 1 and _is_object(ids):
            ids[ids >= _SECOND_WALL] += 1
    return repaired


def _is_object(ids: NDArray[np.uint8]) -> bool:
    """Whether entity 3 lies as no wall does."""
    entity, wall, open_space = ids == _SECOND_WALL, ids == _FIRST_WALL, ids <= _FLOOR
    touching = (entity[1:] & wall[:-1]) | (entity[:-1] & wall[1:])
    if touching.any(0).sum() >= _SPAN:
        return True
    left = (entity[:, 1:] & open_space[:, :-1]).any(1).sum() >= _SPAN
    right = (entity[:, :-1] & open_space[:, 1:]).any(1).sum() >= _SPAN
    at_left, at_right = entity[:, 0].any(), entity[:, -1].any()
    return bool((left and right) or (left and not at_right) or (right and not at_left))


class ObjectsRoom(MultiObjectDataModule):
    """ObjectsRoom (Kabra et al., 2019): one to three objects in a room with sky, floor and two walls.

    The published training file holds all splits: its first 10,000 records are the test set, the next 10,000
    the validation set, the rest the training set (GENESIS). `segmentation` has the entity numbers of the
    file: 0 sky, 1 floor, 2 and 3 walls, 4 to 6 objects; GENESIS's labels 0 and 5 to 7 are the same partition
    with all background as one.

    Args:
        background_repair: mend the numbers of scenes with one wall in view (`repair_background`); the papers'
            numbers are without.
        image_size: height and width; other sizes than 64 by Pillow's bilinear filter (masks by nearest).
        num_slots: the paper's K.
        options: the arguments of every data module, of `RawSceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "objects_room"
    file = RawFile(
        "objects_room_train.tfrecords",
        f"{BUCKET}/objects_room/objects_room_train.tfrecords",
        about_bytes=7_000_000_000,
    )
    published: Mapping[Split, int] = {"train": 980_000, "val": 10_000, "test": 10_000}
    order = ("test", "val", "train")

    def __init__(
        self,
        background_repair: bool = False,
        image_size: int = SIDE,
        num_slots: int = 7,
        **options: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            num_slots=num_slots,
            num_background=NUM_BACKGROUND,
            **options,
        )
        self.background_repair = background_repair

    def tags(self) -> list[str]:
        """What differs from the paper's settings."""
        size = [] if self.image_size == SIDE else [f"{self.image_size}px"]
        return [*size, *(["repaired"] if self.background_repair else []), *super().tags()]

    def options(self) -> dict[str, object]:
        """What the data depend on."""
        return {"background_repair": self.background_repair, **super().options()}

    def record_bytes(self) -> int:
        """Bytes per image in the store."""
        return 4 * self.image_size**2

    def convert(self, examples: list[Example]) -> Arrays:
        """Images `[N, H, W, 3]` and entity numbers `[N, H, W]` of some records.

        Raises:
            DataError: if a record is of another schema or its masks do not fit together.
        """
        images = np.stack([example.uint8("image", (SIDE, SIDE, 3)) for example in examples])
        masks = np.stack([example.uint8("mask", (NUM_ENTITIES, SIDE, SIDE)) for example in examples])
        segmentations = entity_ids(masks, [example.where for example in examples], NUM_BACKGROUND)
        if self.background_repair:
            segmentations = repair_background(segmentations)
        return {
            "images": resize(images, self.image_size, Image.Resampling.BILINEAR),
            "segmentations": resize(segmentations, self.image_size, Image.Resampling.NEAREST),
        }

    def synthesise(self, folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
        """Write scenes of our own renderer as `objects_room_train.tfrecords`."""
        from data_modules.synthesis import objects_room

        objects_room.write(folder, {str(split): size for split, size in sizes.items()}, seed)
