"""Tetrominoes: three pieces of four squares each on black, as in IODINE, Slot Attention and EMORL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_modules.base import Split
from data_modules.multi_object import BUCKET, MultiObjectDataModule, entity_ids, object_factors, resize
from data_modules.raw.download import RawFile
from data_modules.raw.example import Example
from data_modules.store import Arrays

SIDE, NUM_ENTITIES = 35, 4
FACTORS = {
    **dict.fromkeys(("x", "y", "shape", "visibility"), (NUM_ENTITIES,)),
    "color": (NUM_ENTITIES, 3),
}


class Tetrominoes(MultiObjectDataModule):
    """Tetrominoes (Kabra et al., 2019): images of 35 x 35 with three pieces.

    The published file has no splits. Ours: the first 60,000 records, which IODINE and Slot Attention train
    on, then 5,000 for validation and 5,000 for testing. Ids of `segmentation` are entity numbers: 0
    background, `i` the piece whose factors are `objects[...][i - 1]` (`present`, `x`, `y`, `shape`, `color`).

    Args:
        image_size: height and width; other sizes than 35 by Pillow's bilinear filter (masks by nearest).
        num_slots: the paper's K.
        options: the arguments of every data module, of `RawSceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "tetrominoes"
    has_objects = True
    file = RawFile("tetrominoes_train.tfrecords", f"{BUCKET}/tetrominoes/tetrominoes_train.tfrecords")
    published: Mapping[Split, int] = {"train": 60_000, "val": 5_000, "test": 5_000}

    def __init__(
        self,
        image_size: int = SIDE,
        num_slots: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            num_slots=num_slots,
            num_background=1,
            **options,
        )

    def tags(self) -> list[str]:
        """What differs from the paper's settings."""
        return [*([] if self.image_size == SIDE else [f"{self.image_size}px"]), *super().tags()]

    def record_bytes(self) -> int:
        """Bytes per image in the store."""
        return 4 * self.image_size**2 + (NUM_ENTITIES - 1) * (1 + 3 * 4 + 12)

    def convert(self, examples: list[Example]) -> Arrays:
        """Images `[N, S, S, 3]`, entity numbers `[N, S, S]`, and factors of the objects.

        Raises:
            DataError: if a record is of another schema or its masks do not fit together.
        """
        images = np.stack([example.uint8("image", (SIDE, SIDE, 3)) for example in examples])
        masks = np.stack([example.uint8("mask", (NUM_ENTITIES, SIDE, SIDE)) for example in examples])
        segmentations = entity_ids(masks, [example.where for example in examples], num_background=1)
        return {
            "images": resize(images, self.image_size, Image.Resampling.BILINEAR),
            "segmentations": resize(segmentations, self.image_size, Image.Resampling.NEAREST),
            **object_factors(examples, FACTORS),
        }

    def synthesise(self, folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
        """Write scenes drawn here as `tetrominoes_train.tfrecords`."""
        from data_modules.synthesis import tetrominoes

        tetrominoes.write(folder, sizes, seed)
