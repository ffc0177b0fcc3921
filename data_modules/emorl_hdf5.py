"""The HDF5 files that EfficientMORL published: three of the Multi-Object Datasets, with their splits."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console

from data_modules.base import SPLITS, Split
from data_modules.clevr6 import CROP, Clevr6, Interpolation
from data_modules.multi_dsprites_tfrecords import MultiDSpritesTFRecords
from data_modules.multi_object import CITATION, MultiObjectDataModule, entity_ids, resize
from data_modules.raw.download import RawFile
from data_modules.raw.hdf5 import import_h5py, member, opened
from data_modules.raw.tfrecord import read_examples
from data_modules.raw_source import RawSceneDataModule
from data_modules.store import Arrays, DataError
from data_modules.tetrominoes import Tetrominoes

Which = Literal["clevr6", "multi_dsprites", "tetrominoes"]

ARCHIVE = "https://doi.org/10.5281/zenodo.4895643"
SCENES_AT_ONCE = 32
_TOP, _LEFT = 29, 64


class _Layout(NamedTuple):
    """How a file looks inside."""

    files: tuple[str, ...]
    height: int
    width: int
    num_entities: int
    image_size: int
    source: Callable[..., MultiObjectDataModule]


_LAYOUTS: Mapping[Which, _Layout] = {
    "clevr6": _Layout(
        ("clevr6_with_masks_train.h5", "clevr6_with_masks_and_factors_test.h5"), 240, 320, 11, 96, Clevr6
    ),
    "multi_dsprites": _Layout(
        (
            "multi_dsprites_colored_on_grayscale.h5",
            "multi_dsprites_colored_on_grayscale_test.h5",
        ),
        64,
        64,
        6,
        64,
        MultiDSpritesTFRecords,
    ),
    "tetrominoes": _Layout(("tetrominoes.h5",), 35, 35, 4, 35, Tetrominoes),
}
_SLOTS: Mapping[Which, int] = {"clevr6": 7, "multi_dsprites": 6, "tetrominoes": 4}


class EmorlHDF5(RawSceneDataModule):
    """The files of EfficientMORL (Emami et al., 2021): groups `train`, `val`, `test` with `imgs` and `masks`.

    Needs h5py: `pip install lightning-genesis[hdf5]`. The archive is not downloaded from here; unpack it and
    give its folder as `raw`. Where no file has a group `val`, the last tenth of `train` (5,000 at most) is
    the validation set. CLEVR6 is stored at 240 x 320 and cropped here as EMORL does (rows 29 to 220, columns
    64 to 255, Pillow's bicubic filter to 96). `segmentation` has entity numbers, 0 is the background.

    Args:
        variant: which of the three.
        interpolation: how images are resized: `bicubic` or `bilinear`.
        full_masks: keep masks at the size of the (cropped) files, at which EMORL computes its ARI.
        image_size: height and width; None is EMORL's: 96, 64 or 35.
        num_slots: EMORL's K; None is 7, 6 or 4.
        options: the arguments of every data module, of `RawSceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "emorl_hdf5"
    licence = "Apache-2.0 (the Multi-Object Datasets)"
    citation = f"Emami, He, Ranka, Rangarajan: EfficientMORL, ICML 2021, {ARCHIVE}; {CITATION}"
    # a guess, for the sizes said before the files are seen
    published: Mapping[Split, int] = {"train": 60_000, "val": 5_000, "test": 5_000}

    def __init__(
        self,
        variant: Which = "clevr6",
        interpolation: Interpolation = "bicubic",
        full_masks: bool = False,
        image_size: int | None = None,
        num_slots: int | None = None,
        **options: Any,
    ) -> None:
        if variant not in _LAYOUTS:
            raise DataError(f"variant: {variant!r}, expected {', '.join(_LAYOUTS)}")
        if interpolation not in ("bicubic", "bilinear"):
            raise DataError(f"interpolation: {interpolation!r}, expected bicubic or bilinear")
        self.layout = _LAYOUTS[variant]
        super().__init__(
            image_size=self.layout.image_size if image_size is None else image_size,
            num_slots=_SLOTS[variant] if num_slots is None else num_slots,
            num_background=1,
            subset=None,
            **options,
        )
        self.variant: Which = variant
        self.interpolation: Interpolation = interpolation
        self.full_masks = full_masks

    def raw_files(self) -> list[RawFile]:
        """The files of the variant; they come in one archive, so there is no download."""
        return [RawFile(name, ARCHIVE) for name in self.layout.files]

    def check_raw(self, folder: Path) -> None:
        """Check that at least one of the files is there.

        Raises:
            DataError: if none is.
        """
        if not self._files(folder):
            raise DataError(f"{folder}: found none of {', '.join(self.layout.files)} (in {ARCHIVE})")

    def _get_raw(self, console: Console) -> list[dict[str, Any]]:
        if self.raw is None and self.synthetic is None:
            raise DataError(
                f"raw: not given, expected the folder of {', '.join(self.layout.files)}; get and unpack "
                f"{ARCHIVE} and run `{self.prepare_command()} --raw FOLDER`"
            )
        return super()._get_raw(console)

    def raw_name(self) -> str:
        """Every variant is synthesised to a folder of its own."""
        return super().raw_name() if self.synthetic is None else f"{super().raw_name()}-{self.variant}"

    def tags(self) -> list[str]:
        """The variant, and what differs from EMORL's settings."""
        differing = {
            f"{self.image_size}px": self.image_size != self.layout.image_size,
            self.interpolation: self.interpolation != "bicubic",
            "full_masks": self.full_masks,
        }
        return [self.variant, *(tag for tag, differs in differing.items() if differs)]

    def options(self) -> dict[str, Any]:
        """What the data depend on."""
        return {
            "variant": self.variant,
            "interpolation": self.interpolation,
            "full_masks": self.full_masks,
        }

    def _crop(self) -> tuple[slice, slice]:
        """Rows and columns of the files' pictures that are used."""
        if self.variant == "clevr6":
            return slice(_TOP, _TOP + CROP), slice(_LEFT, _LEFT + CROP)
        return slice(0, self.layout.height), slice(0, self.layout.width)

    def record_bytes(self) -> int:
        """Bytes per image in the store."""
        rows, _ = self._crop()
        side = rows.stop - rows.start if self.full_masks else self.image_size
        return 3 * self.image_size**2 + side**2

    def note(self, sizes: Mapping[Split, int]) -> str | None:
        """What has to be said with results; the published sizes are not known here."""
        return super().note(sizes) if self.synthetic is not None else None

    def _files(self, folder: Path) -> list[Path]:
        return [folder / name for name in self.layout.files if (folder / name).is_file()]

    def _groups(self, folder: Path) -> dict[Split, tuple[Path, str, range]]:
        """File, group and scenes of each split."""
        found: dict[str, tuple[Path, int]] = {}
        for path in self._files(folder):
            with opened(path) as file:
                for split in SPLITS:
                    if split in file:
                        found[split] = (path, len(member(file, (split, "imgs"), path)))
        for split in ("train", "test"):
            if split not in found:
                names = ", ".join(path.name for path in self._files(folder)) or "no file"
                raise DataError(f"{folder}: no group `{split}` in {names}; give all files of {self.variant}")
        parts = {split: (path, split, range(count)) for split, (path, count) in found.items()}
        if "val" not in parts:
            path, count = found["train"]
            first = count - max(1, min(5_000, count // 10))
            parts["train"], parts["val"] = (path, "train", range(first)), (path, "train", range(first, count))
        return {split: parts[split] for split in SPLITS}

    def split_sizes(self, folder: Path) -> dict[Split, int]:
        """Number of images of each split.

        Raises:
            DataError: if a file is damaged, of another layout, or missing.
        """
        return {split: len(numbers) for split, (_, _, numbers) in self._groups(folder).items()}

    def read_split(self, split: Split, folder: Path) -> Iterator[Arrays]:
        """One split in chunks.

        Raises:
            DataError: if a file is damaged or of another layout; names file and scene.
        """
        path, group, numbers = self._groups(folder)[split]
        layout = self.layout
        rows, columns = self._crop()
        with opened(path) as file:
            images, masks = (member(file, (group, name), path) for name in ("imgs", "masks"))
            for array, shape in (
                (images, (layout.height, layout.width, 3)),
                (masks, (layout.num_entities, layout.height, layout.width, 1)),
            ):
                found = (str(array.dtype), array.shape)
                if found != ("uint8", (len(images), *shape)):
                    raise DataError(
                        f"{path}: {array.name}: {found[0]} {list(found[1])}, expected uint8 "
                        f"{[len(images), *shape]}"
                    )
            for first in range(numbers.start, numbers.stop, SCENES_AT_ONCE):
                stop = min(first + SCENES_AT_ONCE, numbers.stop)
                places = [f"{path}: {group} {number}" for number in range(first, stop)]
                chosen = masks[first:stop, :, rows, columns, 0]
                segmentations = entity_ids(chosen, places, num_background=1)
                if not self.full_masks:
                    segmentations = resize(segmentations, self.image_size, Image.Resampling.NEAREST)
                pictures = np.ascontiguousarray(images[first:stop, rows, columns])
                resampling = Image.Resampling[self.interpolation.upper()]
                yield {
                    "images": resize(pictures, self.image_size, resampling),
                    "segmentations": segmentations,
                }

    def synthesise(self, folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
        """Write the scenes that the TFRecords' stand-in draws, in the layout of these files."""
        source = self.layout.source(synthetic=sizes["train"])
        source.synthesise(folder, sizes, seed)
        path = folder / source.file.name
        numbers = iter(source.kept_records(folder).tolist())
        places = {next(numbers): (split, i) for split in SPLITS for i in range(sizes[split])}
        layout = self.layout
        area = (layout.height, layout.width)
        h5py = import_h5py()
        with ExitStack() as stack:
            files = [stack.enter_context(h5py.File(folder / name, "w")) for name in layout.files]
            groups = {}
            for split in SPLITS:
                # where there are two files, the second one has the test set
                groups[split] = files[-1 if split == "test" else 0].create_group(split)
                for name, shape in (("imgs", (*area, 3)), ("masks", (layout.num_entities, *area, 1))):
                    groups[split].create_dataset(name, (sizes[split], *shape), np.uint8)
            for number, example in enumerate(read_examples(path)):
                if number in places:
                    split, i = places[number]
                    groups[split]["imgs"][i] = example.uint8("image", (*area, 3))
                    if self.variant == "multi_dsprites":
                        masks = np.moveaxis(example.uint8("mask", (*area, layout.num_entities, 1)), 2, 0)
                    else:
                        masks = example.uint8("mask", (layout.num_entities, *area, 1))
                    groups[split]["masks"][i] = masks
        path.unlink()
