"""CLEVR6: the scenes of CLEVR (with masks) that have at most six objects."""

import math
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

Protocol = Literal["emorl", "genesis"]
Interpolation = Literal["bicubic", "bilinear"]

HEIGHT, WIDTH, NUM_ENTITIES = 240, 320, 11
CROP = 192
KEPT_FRACTION = 0.535
"""Share of the published records with at most six objects: 53,483 of 100,000."""
_LEFT = 64
_TOP: Mapping[Protocol, int] = {"emorl": 29, "genesis": 24}
_FACTORS = {
    **dict.fromkeys(("size", "material", "shape", "color"), (NUM_ENTITIES,)),
    **dict.fromkeys(("x", "y", "z", "rotation", "visibility"), (NUM_ENTITIES,)),
    "pixel_coords": (NUM_ENTITIES, 3),
}


class Clevr6(MultiObjectDataModule):
    """CLEVR with masks (Kabra et al., 2019), cropped to the middle 192 x 192 pixels.

    Two protocols:

    - `emorl`, of EfficientMORL and SRI: the scenes of at most six objects, rows 29 to 220 and columns 64 to
      255, Pillow's bicubic filter (masks nearest) to 96 pixels, K = 7. A scene counts as one of at most six
      objects if `sum(visibility) <= 7`: the background is counted as visible. No paper publishes an exact
      split; ours takes the scenes in file order, the last 10,000 being validation and test set.
    - `genesis`, of the GENESIS code: all scenes, rows 24 to 215, nearest pixels to 128, K = 11; the first
      10,000 records are the test set, the next 10,000 the validation set, all others the training set.

    Ids of `segmentation` are entity numbers: 0 background, `i` the object whose factors are
    `objects[...][i - 1]`. `objects` has `present`, `size`, `material`, `shape`, `color` (integer codes, 0 is
    none), `x`, `y`, `z`, `rotation` and `pixel_coords` (in the uncropped image of 320 x 240: column, row,
    depth). `present` means "in the scene": after the crop, an object may have no pixel.

    Args:
        protocol: `emorl` or `genesis`.
        interpolation: how `emorl` resizes images: `bicubic`, or `bilinear` as later versions of Slot
            Attention's readers do.
        full_masks: keep masks at the crop's 192 x 192, at which EMORL computes its ARI.
        max_objects: `emorl` keeps scenes of at most this many objects.
        image_size: height and width; None is the protocol's.
        num_slots: the paper's K; None is the protocol's.
        options: the arguments of every data module, of `RawSceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "clevr6"
    has_objects = True
    file = RawFile(
        "clevr_with_masks_train.tfrecords",
        f"{BUCKET}/clevr_with_masks/clevr_with_masks_train.tfrecords",
        about_bytes=10_500_000_000,
    )
    records_at_once = 16

    def __init__(
        self,
        protocol: Protocol = "emorl",
        interpolation: Interpolation = "bicubic",
        full_masks: bool = False,
        max_objects: int = 6,
        image_size: int | None = None,
        num_slots: int | None = None,
        **options: Any,
    ) -> None:
        emorl = protocol == "emorl"
        super().__init__(
            image_size=(96 if emorl else 128) if image_size is None else image_size,
            num_slots=(7 if emorl else NUM_ENTITIES) if num_slots is None else num_slots,
            num_background=1,
            **options,
        )
        if protocol not in _TOP:
            raise DataError(f"protocol: {protocol!r}, expected {' or '.join(_TOP)}")
        if interpolation not in ("bicubic", "bilinear"):
            raise DataError(f"interpolation: {interpolation!r}, expected bicubic or bilinear")
        if not 3 <= max_objects < NUM_ENTITIES:
            raise DataError(f"max_objects: {max_objects}, expected 3 to {NUM_ENTITIES - 1}")
        if not emorl and (interpolation != "bicubic" or full_masks or max_objects != 6):
            raise DataError(
                "protocol: genesis resizes by nearest pixels and keeps all scenes, expected `interpolation`, "
                "`full_masks` and `max_objects` to be left out"
            )
        self.protocol: Protocol = protocol
        self.interpolation: Interpolation = interpolation
        self.full_masks = full_masks
        self.max_objects = max_objects
        self.filters = emorl
        if emorl:
            self.published = {"train": 43_483, "val": 5_000, "test": 5_000}
        else:
            self.order = ("test", "val", "train")
            self.published = {"train": 80_000, "val": 10_000, "test": 10_000}

    def tags(self) -> list[str]:
        """What differs from EMORL's settings."""
        differing = {
            "genesis": self.protocol == "genesis",
            f"{self.image_size}px": self.image_size != (96 if self.protocol == "emorl" else 128),
            self.interpolation: self.interpolation != "bicubic",
            "full_masks": self.full_masks,
            f"max{self.max_objects}": self.max_objects != 6,
        }
        return [*(tag for tag, differs in differing.items() if differs), *super().tags()]

    def options(self) -> dict[str, object]:
        """What the data depend on."""
        return {
            "protocol": self.protocol,
            "interpolation": self.interpolation if self.protocol == "emorl" else "nearest",
            "full_masks": self.full_masks,
            "max_objects": self._num_objects(),
            **super().options(),
        }

    def _num_objects(self) -> int:
        return self.max_objects if self.protocol == "emorl" else NUM_ENTITIES - 1

    def raw_name(self) -> str:
        """Fewer objects need a longer synthetic file."""
        longer = self.synthetic is not None and self.max_objects < 6
        return f"{super().raw_name()}-max{self.max_objects}" if longer else super().raw_name()

    def record_bytes(self) -> int:
        """Bytes per image in the store."""
        factors = self._num_objects() * (1 + 4 + 4 * 4 + 12)
        return 3 * self.image_size**2 + (CROP if self.full_masks else self.image_size) ** 2 + factors

    def keep(self, example: Example) -> bool:
        """Whether a scene has few enough objects; its background counts as visible."""
        return bool(example.floats("visibility", (NUM_ENTITIES,)).sum() <= self.max_objects + 1)

    def split_sizes(self, folder: Path) -> dict[Split, int]:
        """Number of images of each split in the file.

        Raises:
            DataError: if the file is damaged or of another dataset, or if far more or fewer of its scenes
                than published have at most six objects.
        """
        kept = self.kept_records(folder)
        if self.synthetic is None and self.filters and self.max_objects == 6 and len(kept):
            seen = int(kept[-1]) + 1
            # four standard deviations, and two percent for what nobody has counted
            tolerance = 0.02 + 4 * math.sqrt(0.25 / seen)
            if abs((share := len(kept) / seen) - KEPT_FRACTION) > tolerance:
                raise DataError(
                    f"{folder / self.file.name}: {share:.1%} of {seen:,} records have at most 6 objects, "
                    f"expected {KEPT_FRACTION:.1%} or so; is it the published file?"
                )
        return super().split_sizes(folder)

    def convert(self, examples: list[Example]) -> Arrays:
        """Images `[N, S, S, 3]`, entity numbers `[N, S, S]` or `[N, 192, 192]`, and factors of the objects.

        Raises:
            DataError: if a record is of another schema or its masks do not fit together.
        """
        rows = slice(_TOP[self.protocol], _TOP[self.protocol] + CROP)
        columns = slice(_LEFT, _LEFT + CROP)
        images = np.stack([e.uint8("image", (HEIGHT, WIDTH, 3))[rows, columns] for e in examples])
        masks = np.stack([e.uint8("mask", (NUM_ENTITIES, HEIGHT, WIDTH))[:, rows, columns] for e in examples])
        segmentations = entity_ids(masks, [example.where for example in examples], num_background=1)
        if self.protocol == "genesis":
            # PyTorch's nearest: floor(i * 192 / S)
            nearest = np.arange(self.image_size) * CROP // self.image_size
            images = images[:, nearest[:, None], nearest]
            segmentations = segmentations[:, nearest[:, None], nearest]
        else:
            images = resize(images, self.image_size, Image.Resampling[self.interpolation.upper()])
            if not self.full_masks:
                segmentations = resize(segmentations, self.image_size, Image.Resampling.NEAREST)
        factors = object_factors(examples, _FACTORS)
        num_objects = self._num_objects()
        factors = {name: values[:, :num_objects] for name, values in factors.items()}
        return {"images": images, "segmentations": segmentations, **factors}

    def synthesise(self, folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
        """Write scenes of our own renderer as `clevr_with_masks_train.tfrecords`."""
        from data_modules.synthesis import clevr

        # so many that the scenes with few enough objects suffice, but for once in a lifetime
        needed = sum(sizes.values())
        share = _share_of_scenes(self.max_objects)
        total = math.ceil((needed + 6 * math.sqrt(needed) + 16) / share)
        clevr.write(folder, {"train": total, "val": 0, "test": 0}, seed)


def _share_of_scenes(max_objects: int) -> float:
    """Share of the scenes, of 3 to 10 objects, that have at most `max_objects`."""
    few = KEPT_FRACTION
    return few * (max_objects - 2) / 4 if max_objects <= 6 else few + (1 - few) * (max_objects - 6) / 4
