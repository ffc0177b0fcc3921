"""The published Multi-dSprites TFRecords, which IODINE, Slot Attention and EMORL use; not GENESIS's data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from data_modules.base import Split
from data_modules.multi_object import BUCKET, MultiObjectDataModule, entity_ids, object_factors, resize
from data_modules.raw.download import RawFile
from data_modules.raw.example import Example
from data_modules.store import Arrays, DataError

PublishedVariant = Literal["colored_on_grayscale", "colored_on_colored", "binarized"]

SIDE = 64
NUM_ENTITIES: Mapping[PublishedVariant, int] = {
    "colored_on_grayscale": 6,
    "colored_on_colored": 5,
    "binarized": 4,
}
FACTORS = ("x", "y", "shape", "orientation", "scale", "visibility")


class MultiDSpritesTFRecords(MultiObjectDataModule):
    """Multi-dSprites as published by Kabra et al. (2019), in three variants.

    `colored_on_grayscale` has 2 to 5 sprites on grey (EMORL's, K = 6), `colored_on_colored` 1 to 4 on a
    colour (nearest to GENESIS's generated set, which `MultiDSprites` makes), `binarized` 2 to 3 white ones on
    black. The published files have no splits. Ours: the first 60,000 records, which IODINE and Slot Attention
    train on, then 5,000 for validation and 5,000 for testing.

    Ids of `segmentation` are entity numbers: 0 background, `i` the sprite whose factors are
    `objects[...][i - 1]` (`present`, `x`, `y`, `shape`, `orientation`, `scale`, `color`). `present` means "in
    the scene", even if fully covered.

    Args:
        variant: which of the three files.
        image_size: height and width; other sizes than 64 by nearest neighbour, as in GENESIS.
        num_slots: the paper's K; None is the number of entities in the file.
        options: the arguments of every data module, of `RawSceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "multi_dsprites_tfrecords"
    has_objects = True
    published: Mapping[Split, int] = {"train": 60_000, "val": 5_000, "test": 5_000}

    def __init__(
        self,
        variant: PublishedVariant = "colored_on_grayscale",
        image_size: int = SIDE,
        num_slots: int | None = None,
        **options: Any,
    ) -> None:
        if variant not in NUM_ENTITIES:
            raise DataError(f"variant: {variant!r}, expected {', '.join(NUM_ENTITIES)}")
        self.num_entities = NUM_ENTITIES[variant]
        super().__init__(
            image_size=image_size,
            num_slots=self.num_entities if num_slots is None else num_slots,
            num_background=1,
            **options,
        )
        self.variant: PublishedVariant = variant
        file = f"multi_dsprites_{variant}.tfrecords"
        self.file = RawFile(file, f"{BUCKET}/multi_dsprites/{file}", about_bytes=1_000_000_000)

    def tags(self) -> list[str]:
        """The variant, and what differs from the paper's settings."""
        size = [] if self.image_size == SIDE else [f"{self.image_size}px"]
        return [self.variant, *size, *super().tags()]

    def options(self) -> dict[str, object]:
        """What the data depend on."""
        return {"variant": self.variant, **super().options()}

    def raw_name(self) -> str:
        """Every variant is synthesised to a folder of its own."""
        return super().raw_name() if self.synthetic is None else f"{super().raw_name()}-{self.variant}"

    def record_bytes(self) -> int:
        """Bytes per image in the store."""
        return 4 * self.image_size**2 + (self.num_entities - 1) * (1 + 5 * 4 + 12)

    def convert(self, examples: list[Example]) -> Arrays:
        """Images `[N, S, S, 3]`, entity numbers `[N, S, S]`, and factors of the objects.

        Raises:
            DataError: if a record is of another schema or its masks do not fit together.
        """
        channels = 1 if self.variant == "binarized" else 3
        images = np.stack([example.uint8("image", (SIDE, SIDE, channels)) for example in examples])
        # unlike in the other files, the entity axis comes third
        masks = np.stack([example.uint8("mask", (SIDE, SIDE, self.num_entities)) for example in examples])
        segmentations = entity_ids(
            masks.transpose(0, 3, 1, 2), [example.where for example in examples], num_background=1
        )
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(FACTORS, (self.num_entities,))
        if channels == 3:
            shapes["color"] = (self.num_entities, 3)
        return {
            "images": resize(np.repeat(images, 3 // channels, 3), self.image_size, Image.Resampling.NEAREST),
            "segmentations": resize(segmentations, self.image_size, Image.Resampling.NEAREST),
            **object_factors(examples, shapes),
        }

    def synthesise(self, folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
        """Write scenes drawn here as `multi_dsprites_<variant>.tfrecords`."""
        from data_modules.synthesis import multi_dsprites_tfrecords

        multi_dsprites_tfrecords.write(folder, sizes, seed, self.variant)
