"""A folder of one's own images, with or without masks."""

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import Dataset

from data_modules.base import Batch, SceneDataModule, Split, make_batch
from data_modules.raw.pictures import open_picture, orientation, read_ids, resized_square, turned, upright
from data_modules.store import DataError

_SUFFIXES = (
    "png",
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "bmp",
    "webp",
    "tif",
    "tiff",
    "gif",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
)
EXTENSIONS = frozenset(f".{kind}" for kind in _SUFFIXES)
MAX_ID = 254
IGNORED = 255
_IGNORED_16 = 65535
_KINDS_SHOWN = 8


def find_images(folder: Path, masks: Path | None = None) -> tuple[list[str], Counter[str]]:
    """All images in a folder and its subfolders.

    Args:
        folder: where to look.
        masks: a folder in it that is left out.

    Returns:
        Names relative to the folder, sorted, and what was left out besides hidden files: kinds with their
        numbers.

    Raises:
        DataError: if there is no such folder or no image in it, or a name is not UTF-8.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected one with images; correct `folder`")
    if masks is not None and masks.resolve() == folder.resolve():
        raise DataError(f"masks: {masks} is also `folder`, expected another; move the masks")
    names, left_out = [], Counter[str]()
    below_masks = None if masks is None else masks.resolve()

    def unreadable(error: OSError) -> None:
        left_out[f"unreadable folder ({error.filename})"] += 1

    for place, folders, files in os.walk(folder, onerror=unreadable):
        at = Path(place)
        for name in list(folders):
            if name.startswith(".") or (at / name).resolve() == below_masks:
                folders.remove(name)
            elif (at / name).is_symlink():  # may lead round in circles, or to the same images once more
                folders.remove(name)
                left_out[f"folder that is a link ({(at / name).relative_to(folder)})"] += 1
        for name in files:
            if name.startswith("."):
                continue
            path = at / name
            if path.suffix.lower() not in EXTENSIONS:
                left_out[f"*{path.suffix.lower()}" if path.suffix else "without a suffix"] += 1
            elif not path.is_file():
                left_out[f"not a regular file ({path.relative_to(folder)})"] += 1
            else:
                names.append(path.relative_to(folder).as_posix())
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{folder}: {os.fsencode(name)!r}: a name that is not UTF-8; rename it") from None
    if not names:
        raise DataError(
            f"{folder}: found no image, expected {', '.join(sorted(EXTENSIONS))}; correct `folder`"
            + (f" ({_listed(left_out)} left out)" if left_out else "")
        )
    return sorted(names), left_out


def _listed(left_out: Counter[str]) -> str:
    """Numbers and kinds in one line, the most frequent first, whatever the order of the file system."""
    kinds = sorted(left_out, key=lambda kind: (-left_out[kind], kind))
    parts = [f"{left_out[kind]:,} {kind}" for kind in kinds[:_KINDS_SHOWN]]
    more = len(left_out) - len(parts)
    return ", ".join(parts) + (f" and {more} kinds more" if more > 0 else "")


def split_names(names: list[str], val_fraction: float, test_fraction: float) -> dict[Split, list[str]]:
    """Share out images by a hash of their names: the same on every machine, and in no way by content.

    A fraction above zero gives at least one image.

    Raises:
        DataError: if no image is left for training.
    """
    shuffled = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    num_val, num_test = (max(1, round(f * len(names))) if f > 0 else 0 for f in (val_fraction, test_fraction))
    if num_val + num_test >= len(names):
        raise DataError(
            f"val_fraction, test_fraction: take {num_val + num_test} of {len(names)} images, expected fewer; "
            "choose smaller fractions or add images"
        )
    return {
        "val": sorted(shuffled[:num_val]),
        "test": sorted(shuffled[num_val : num_val + num_test]),
        "train": sorted(shuffled[num_val + num_test :]),
    }


class FolderDataset(Dataset[Batch]):
    """Batches of images, decoded when asked for.

    Args:
        folder: the images.
        names: which of them, relative to `folder`.
        image_size: height and width to bring them to.
        masks: folder of PNG files of the same relative stems, or None.
        num_background: ids below this keep their values where ids are renumbered.
    """

    def __init__(
        self,
        folder: Path,
        names: list[str],
        image_size: int,
        masks: Path | None = None,
        num_background: int = 1,
    ) -> None:
        self.folder = folder
        self.names = names
        self.image_size = image_size
        self.masks = masks
        self.num_background = num_background

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        names = [self.names[index] for index in indices]
        images, masks, sizes = [], [], []
        for name in names:
            image, turn = self._read_image(name)
            sizes.append((image.height, image.width))
            images.append(resized_square(image, self.image_size, Image.Resampling.BILINEAR))
            if self.masks is not None:
                mask = self._read_mask(name, image.size, turn)
                masks.append(resized_square(mask, self.image_size, Image.Resampling.NEAREST))
        arrays = {"images": np.stack(images)}
        if masks:
            arrays["segmentations"] = np.stack(masks)
        return make_batch(indices, arrays) | {"name": names, "original_size": torch.tensor(sizes)}

    def check(self) -> int:
        """Look at the header of every file.

        Returns:
            Number of images with a mask that note a turn, as far as headers tell.

        Raises:
            DataError: if one is missing, unreadable or of the wrong kind; the message names it.
        """
        num_turned = 0
        for name in self.names:
            path = self.folder / name
            with open_picture(path) as image:
                _check_image(image, path)
                if self.masks is None:
                    continue
                # in a PNG the turn may stand behind all the pixels: it is looked up only if it matters
                early = image.format != "PNG" or "exif" in image.info
                turn = orientation(image) if early else 1
                num_turned += turn != 1
                mask_path = self._mask_path(name)
                with open_picture(mask_path, ("PNG",)) as mask:
                    if not early and mask.size != image.size:
                        turn = orientation(image)
                    # what is opened as TIFF has its sides swapped already
                    upright = _swapped(image.size) if image.format != "TIFF" and turn >= 5 else image.size
                    _check_mask(mask, mask_path, path, upright, turn)
        return num_turned

    def _mask_path(self, name: str) -> Path:
        assert self.masks is not None
        paths = [(self.masks / name).with_suffix(suffix) for suffix in (".png", ".PNG", ".Png")]
        return next((path for path in paths if path.exists()), paths[0])

    def _read_image(self, name: str) -> tuple[Image.Image, int]:
        """The upright image, and the turn that made it so from the pixels as stored."""
        path = self.folder / name
        with open_picture(path) as image:
            _check_image(image, path)
            return upright(image)

    def _read_mask(self, name: str, size: tuple[int, int], turn: int) -> Image.Image:
        """The mask of an image of an upright size, turned like it."""
        path = self._mask_path(name)
        with open_picture(path, ("PNG",)) as mask:
            _check_mask(mask, path, self.folder / name, size, turn)
            ids = read_ids(mask)
        if ids.max(initial=0) > IGNORED:
            ids = self._renumbered(ids, path)
        if set(np.unique(ids)) in ({IGNORED}, {0, IGNORED}):
            raise DataError(
                f"{path}: the only id besides 0 is 255, which means ignore; number the objects from 1"
            )
        picture = Image.fromarray(ids.astype(np.uint8))
        stored = _swapped(size) if turn >= 5 else size
        return turned(picture, turn) if picture.size == stored else picture

    def _renumbered(self, ids: NDArray[Any], path: Path) -> NDArray[Any]:
        """Ids of 16 bits, in their order, as ids of 8 bits; 65535 is ignored, 255 an id like others."""
        found = np.unique(ids)
        objects = found[(found >= self.num_background) & (found < _IGNORED_16)]
        if len(objects) > MAX_ID + 1 - self.num_background:
            raise DataError(
                f"{path}: {len(objects):,} ids, expected at most {MAX_ID + 1 - self.num_background}; "
                "join the smallest objects"
            )
        table = np.full(_IGNORED_16 + 1, IGNORED, np.uint8)
        table[: self.num_background] = np.arange(self.num_background)
        table[objects] = self.num_background + np.arange(len(objects))
        return table[ids]


def _swapped(size: tuple[int, int]) -> tuple[int, int]:
    return size[1], size[0]


def _check_image(image: Image.Image, path: Path) -> None:
    if image.mode[0] in "IF":
        raise DataError(f"{path}: mode {image.mode}, expected 8 bits per channel; convert the image")


def _check_mask(mask: Image.Image, path: Path, image_path: Path, size: tuple[int, int], turn: int) -> None:
    """A mask of ids, of the size of the upright image or of its pixels as stored."""
    if mask.mode not in ("1", "L", "P") and not mask.mode.startswith("I"):
        raise DataError(
            f"{path}: mode {mask.mode}, expected a palette or grey image of object ids; convert the mask"
        )
    if mask.size not in ((size, _swapped(size)) if turn >= 5 else (size,)):
        raise DataError(
            f"{path}: {mask.width}x{mask.height} pixels, expected {size[0]}x{size[1]} as {image_path}; "
            "give a mask of the image's size"
        )


class ImageFolder(SceneDataModule):
    """A folder of one's own images for `fit`, `validate`, `test` and `predict`.

    All images in the folder and its subfolders are used, in the order of their names. The centre square of
    each is resized to `image_size` (bilinear, masks by nearest neighbour). Batches carry `name`, the path
    relative to the folder, and `original_size`, height and width upright. `predict` runs over all images.

    Args:
        folder: the images (png, jpg, bmp, webp, tif, gif, ppm), turned as their EXIF orientation says;
            transparency is dropped. What is left out is named.
        image_size: height and width to bring them to.
        num_slots: number of slots: the objects one expects, and one for the background.
        masks: folder with a PNG of object ids (palette or grey) for every image, of the same relative name;
            ids from 0 to 254, 255 is ignored. On the pixels as stored: it is turned with its image.
        num_background: ids below this are background.
        val_fraction: share of the images for validation, chosen by their names.
        test_fraction: share of the images for testing, chosen by their names.
        num_workers: processes that decode images.
        options: the arguments of every data module, of `SceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "folder"

    def __init__(
        self,
        folder: str,
        image_size: int,
        num_slots: int,
        masks: str | None = None,
        num_background: int = 1,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            num_slots=num_slots,
            num_background=num_background,
            root=folder,
            num_workers=num_workers,
            **options,
        )
        for key, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 <= value < 1:
                raise DataError(f"{key}: {value}, expected 0 to below 1; correct the setting")
        self.folder = folder
        self.masks = masks
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self._all: FolderDataset | None = None

    def prepare(self) -> None:
        """Check that the files are there and readable, and say what is left out; nothing is written.

        Raises:
            DataError: if a file is missing, unreadable or of the wrong kind; the message names it.
        """
        names, left_out = self._find()
        num_turned = self._dataset(names).check()
        if left_out:
            rank_zero_warn(
                f"{self.folder}: left out {left_out.total():,} of {left_out.total() + len(names):,} entries: "
                f"{_listed(left_out)}"
            )
        if num_turned:
            rank_zero_warn(
                f"{self.folder}: {num_turned:,} images note a turn (EXIF orientation): masks are taken to be "
                "on the pixels as stored, and are turned alike"
            )

    def open_dataset(self, split: Split) -> FolderDataset:
        """Open a split.

        Raises:
            DataError: if there is no image for it.
        """
        return self._dataset(split_names(self._find()[0], self.val_fraction, self.test_fraction)[split])

    def predict_dataset(self) -> FolderDataset:
        """All images."""
        if self._all is None:
            self._all = self._dataset(self._find()[0])
        return self._all

    def _find(self) -> tuple[list[str], Counter[str]]:
        masks = None if self.masks is None else Path(self.masks)
        if masks is not None and not masks.is_dir():
            raise DataError(
                f"masks: {masks}: no such folder, expected one with a PNG for every image; of COCO's JSON, "
                "docs/data/folder.md says how to make them"
            )
        return find_images(Path(self.folder), masks)

    def _dataset(self, names: list[str]) -> FolderDataset:
        masks = None if self.masks is None else Path(self.masks)
        return FolderDataset(Path(self.folder), names, self.image_size, masks, self.num_background)
