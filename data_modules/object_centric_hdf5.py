"""The HDF5 files that object-centric-library publishes: six multi-object datasets, ready cropped."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from PIL import Image

from data_modules.base import SPLITS, Split
from data_modules.multi_object import resize
from data_modules.raw.download import RawFile
from data_modules.raw.hdf5 import import_h5py, member, opened
from data_modules.raw_source import RawSceneDataModule, share_out
from data_modules.store import Arrays, DataError

Which = Literal["clevr", "multi_dsprites", "objects_room", "shapestacks", "tetrominoes", "clevrtex"]

SCENES_AT_ONCE = 64
MAX_ID = 254
"""Larger values mean nothing: 255 would be "ignore"."""
_URL = "https://data-download.compute.dtu.dk/multi_object_datasets"


class _Layout(NamedTuple):
    """What is known of a file."""

    stem: str
    image_size: int
    num_slots: int
    num_background: int = 1


_LAYOUTS: Mapping[Which, _Layout] = {
    "clevr": _Layout("clevr_10", 128, 11),
    "multi_dsprites": _Layout("multidsprites_colored_on_grayscale", 64, 6),
    "objects_room": _Layout("objects_room_train", 64, 7, 4),
    "shapestacks": _Layout("shapestacks", 64, 9),
    "tetrominoes": _Layout("tetrominoes", 35, 4),
    "clevrtex": _Layout("clevrtex", 128, 11),
}


class ObjectCentricHDF5(RawSceneDataModule):
    """The files of object-centric-library (Dittadi et al., 2022): `<name>-full.hdf5`, as users have them.

    Needs h5py: `pip install lightning-genesis[hdf5]`. The arrays `image` uint8 `[N, H, W, 3]` and `mask`
    `[N, H, W, 1]` (ids, one per pixel) are read, and `num_actual_objects` `[N]` as a label where it is there.
    Images are cropped in the file already. The file's metadata (`<name>-metadata.npy`) are pickled and never
    opened.

    What no document at hand says, and what is done: which scenes are which split (here the last 5,000 are
    the test set, the 5,000 before them the validation set, or a tenth each of fewer; the library's own sizes
    for Multi-dSprites are 90,000 / 5,000 / 5,000); how many ids are background (here 1, and 4 for ObjectsRoom
    as in the publisher's own file: give `num_background` if the preview shows otherwise); how the properties
    of the objects go with the ids (they are left out).

    Args:
        variant: which of the six.
        image_size: height and width; None is the file's (images by Pillow's bilinear filter, masks nearest).
        num_slots: K; None is that of the papers.
        num_background: ids of `segmentation` below this are background; None is as said above.
        options: the arguments of every data module, of `RawSceneDataModule`; synthetic scenes are random
            rectangles in the files' layout.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "object_centric_hdf5"
    licence: ClassVar[str] = "that of the dataset in the file"
    citation: ClassVar[str] = (
        "Dittadi, Papa, De Vita, Schölkopf, Winther, Locatello: Generalization and Robustness Implications "
        "in Object-Centric Learning, ICML 2022; and the dataset in the file"
    )
    # a guess, for the sizes said before the file is seen
    published: Mapping[Split, int] = {"train": 90_000, "val": 5_000, "test": 5_000}

    def __init__(
        self,
        variant: Which = "clevr",
        image_size: int | None = None,
        num_slots: int | None = None,
        num_background: int | None = None,
        **options: Any,
    ) -> None:
        if variant not in _LAYOUTS:
            raise DataError(f"variant: {variant!r}, expected {', '.join(_LAYOUTS)}")
        self.layout = layout = _LAYOUTS[variant]
        background = layout.num_background if num_background is None else num_background
        if not 0 <= background <= MAX_ID:
            raise DataError(f"num_background: {background}, expected 0 to {MAX_ID}")
        super().__init__(
            image_size=layout.image_size if image_size is None else image_size,
            num_slots=layout.num_slots if num_slots is None else num_slots,
            num_background=background,
            **options,
        )
        self.variant: Which = variant

    @property
    def _file(self) -> str:
        return f"{self.layout.stem}-full.hdf5"

    def raw_files(self) -> list[RawFile]:
        """The one file."""
        return [RawFile(self._file, f"{_URL}/{self._file}")]

    def raw_name(self) -> str:
        """Every variant has a folder of its own."""
        return f"{super().raw_name()}-{self.variant}"

    def tags(self) -> list[str]:
        """The variant, and another size than the file's."""
        other = self.image_size != self.layout.image_size
        few = [] if self.subset is None else [f"first{self.subset}"]
        return [self.variant, *([f"{self.image_size}px"] if other else []), *few]

    def options(self) -> dict[str, Any]:
        """What the data depend on."""
        return {"variant": self.variant, "subset": self.subset}

    def record_bytes(self) -> int:
        """Bytes per image in the store."""
        return 4 * self.image_size**2 + 8

    def note(self, sizes: Mapping[Split, int]) -> str | None:
        """What has to be said with results: the split is ours."""
        if self.synthetic is not None:
            return super().note(sizes)
        found = " / ".join(f"{sizes[split]:,}" for split in SPLITS)
        return f"{found} images for training, validation and test, a split of ours; say so with results"

    def _parts(self, folder: Path) -> dict[Split, range]:
        """Places of each split's scenes in the file."""
        path = folder / self._file
        with opened(path) as file:
            count = min(len(member(file, ("image",), path)), self.subset or sys.maxsize)
        if self.synthetic is not None:
            sizes = self.synthetic_sizes
        elif (evaluated := min(5_000, count // 10)) > 0:
            sizes = {"train": count - 2 * evaluated, "val": evaluated, "test": evaluated}
        else:
            sizes = share_out(count, self.published)
        first, second = sizes["train"], sizes["train"] + sizes["val"]
        return {"train": range(first), "val": range(first, second), "test": range(second, count)}

    def split_sizes(self, folder: Path) -> dict[Split, int]:
        """Number of images of each split.

        Raises:
            DataError: if the file is damaged or of another layout.
        """
        return {split: len(places) for split, places in self._parts(folder).items()}

    def read_split(self, split: Split, folder: Path) -> Iterator[Arrays]:
        """One split in chunks.

        Raises:
            DataError: if the file is damaged or of another layout; names file and scene.
        """
        path, places = folder / self._file, self._parts(folder)[split]
        with opened(path) as file:
            images, masks = (member(file, (name,), path) for name in ("image", "mask"))
            count, side = len(images), images.shape[1] if images.ndim == 4 else 0
            _check(path, images, (count, side, side, 3), exact=True)
            _check(path, masks, (count, side, side, 1), exact=False)
            numbers = None
            if "num_actual_objects" in file:
                numbers = member(file, ("num_actual_objects",), path)
                if numbers.size != count or numbers.dtype.kind not in "iuf":
                    raise DataError(
                        f"{path}: num_actual_objects: {numbers.dtype} {list(numbers.shape)}, expected one "
                        f"number for each of {count:,} scenes"
                    )
            for first in range(places.start, places.stop, SCENES_AT_ONCE):
                chunk = slice(first, min(first + SCENES_AT_ONCE, places.stop))
                arrays = {
                    "images": resize(images[chunk], self.image_size, Image.Resampling.BILINEAR),
                    "segmentations": resize(
                        _ids(masks[chunk], path, first), self.image_size, Image.Resampling.NEAREST
                    ),
                }
                if numbers is not None:
                    arrays["labels.num_objects"] = numbers[chunk].reshape(-1).astype(np.int64)
                yield arrays

    def synthesise(self, folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
        """Write scenes of rectangles on grey in the layout of the file."""
        side, objects = self.layout.image_size, self.layout.num_slots - 1
        rng = np.random.default_rng(seed)
        count = sum(sizes.values())
        with import_h5py().File(folder / self._file, "w") as file:
            images = file.create_dataset("image", (count, side, side, 3), np.uint8)
            masks = file.create_dataset("mask", (count, side, side, 1), np.uint8)
            numbers = file.create_dataset("num_actual_objects", (count, 1), np.int64)
            for scene in range(count):
                image, ids = np.full((side, side, 3), 127, np.uint8), np.zeros((side, side), np.uint8)
                numbers[scene] = number = int(rng.integers(1, objects + 1))
                for i in range(number):
                    top, left = rng.integers(0, side - side // 4, 2)
                    place = slice(top, top + side // 4), slice(left, left + side // 4)
                    image[place], ids[place] = rng.integers(0, 256, 3), max(1, self.num_background) + i
                images[scene], masks[scene] = image, ids[..., None]


def _check(path: Path, array: Any, shape: tuple[int, ...], exact: bool) -> None:
    """Compare type and shape of an array.

    Raises:
        DataError: if they are others.
    """
    kind = array.dtype == np.uint8 if exact else array.dtype.kind in "iub"
    if not kind or array.shape != shape or shape[1] < 1:
        expected = ("uint8" if exact else "whole numbers", list(shape))
        raise DataError(
            f"{path}: {array.name}: {array.dtype} {list(array.shape)}, expected {expected[0]} {expected[1]}"
        )


def _ids(masks: Any, path: Path, first: int) -> Any:
    """Ids `[n, H, W]` of masks `[n, H, W, 1]`.

    Raises:
        DataError: if one is out of range; names the scene.
    """
    wrong = ((masks < 0) | (masks > MAX_ID)).reshape(len(masks), -1)
    if wrong.any():
        scene = int(wrong.any(axis=1).argmax())
        value = masks[scene].reshape(-1)[wrong[scene].argmax()]
        raise DataError(f"{path}: mask {first + scene}: id {value}, expected 0 to {MAX_ID}")
    return np.ascontiguousarray(masks[..., 0].astype(np.uint8))
