"""A folder of one's own images, with or without masks."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch.utils.data import Dataset

from data_modules.base import Batch, SceneDataModule, Split, make_batch
from data_modules.store import DataError

EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"))
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def find_images(folder: Path) -> list[str]:
    """Names of all images in a folder and its subfolders, sorted, relative to it; hidden files are left out.

    Raises:
        DataError: if there is no such folder or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected one with images; correct `folder`")
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS
    )
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not names:
        raise DataError(
            f"{folder}: found no image, expected {', '.join(sorted(EXTENSIONS))}; correct `folder`"
        )
    return names


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
    """

    def __init__(self, folder: Path, names: list[str], image_size: int, masks: Path | None = None) -> None:
        self.folder = folder
        self.names = names
        self.image_size = image_size
        self.masks = masks

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        names = [self.names[index] for index in indices]
        images = [self._read_image(name) for name in names]
        arrays = {"images": np.stack([self._resized(image, Image.Resampling.BILINEAR) for image in images])}
        if self.masks is not None:
            masks = [self._read_mask(name, image.size) for name, image in zip(names, images, strict=True)]
            arrays["segmentations"] = np.stack(
                [self._resized(mask, Image.Resampling.NEAREST) for mask in masks]
            )
        return make_batch(indices, arrays) | {"name": names}

    def check(self) -> None:
        """Look at the header of every file.

        Raises:
            DataError: if one is missing, unreadable or of the wrong kind; the message names it.
        """
        for name in self.names:
            image = _open(self.folder / name)
            if self.masks is not None:
                path = self._mask_path(name)
                mask = _open(path)
                # the noted turn is looked up only if it matters: in a PNG it may stand behind all the pixels
                size = image.size if mask.size == image.size else _upright_size(image, self.folder / name)
                _check_mask(mask, path, self.folder / name, size)

    def _mask_path(self, name: str) -> Path:
        assert self.masks is not None
        return (self.masks / name).with_suffix(".png")

    def _read_image(self, name: str) -> Image.Image:
        image = _open(self.folder / name)
        if image.mode[0] in "IF":
            raise DataError(
                f"{self.folder / name}: mode {image.mode}, expected 8 bits per channel; convert the image"
            )
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except _UNREADABLE as error:
            raise _unreadable(self.folder / name, error) from error

    def _read_mask(self, name: str, size: tuple[int, int]) -> Image.Image:
        path = self._mask_path(name)
        mask = _open(path)
        _check_mask(mask, path, self.folder / name, size)
        try:
            ids = np.asarray(mask)
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
        if ids.max(initial=0) > 255:
            raise DataError(
                f"{path}: found id {ids.max()}, expected at most 254 (255 is ignored); renumber the objects"
            )
        if set(np.unique(ids)) in ({255}, {0, 255}):
            raise DataError(
                f"{path}: the only id besides 0 is 255, which means ignore; number the objects from 1"
            )
        return Image.fromarray(ids.astype(np.uint8))

    def _resized(self, image: Image.Image, resampling: Image.Resampling) -> NDArray[np.uint8]:
        """Bring the centre square to `image_size`: the shorter side is resized, the longer cropped."""
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((self.image_size, self.image_size), resampling, box=box))


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: missing, expected a file there; add it or remove its counterpart") from None
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(f"{path}: not readable ({error}), expected an image; repair or remove the file")


def _upright_size(image: Image.Image, path: Path) -> tuple[int, int]:
    """Width and height after the turn that a camera may have noted."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    return (image.height, image.width) if turned else image.size


def _check_mask(mask: Image.Image, path: Path, image_path: Path, size: tuple[int, int]) -> None:
    if mask.mode not in ("1", "L", "P") and not mask.mode.startswith("I"):
        raise DataError(
            f"{path}: mode {mask.mode}, expected a palette or grey image of object ids; convert the mask"
        )
    if mask.size != size:
        raise DataError(
            f"{path}: {mask.width}x{mask.height} pixels, expected {size[0]}x{size[1]} as {image_path}; "
            "give a mask of the image's size"
        )


class ImageFolder(SceneDataModule):
    """A folder of one's own images for `fit`, `validate`, `test` and `predict`.

    All images in the folder and its subfolders are used, in the order of their names. The centre square of
    each is resized to `image_size` (bilinear, masks by nearest neighbour). Batches carry `name`, the path
    relative to the folder. `predict` runs over all images.

    Args:
        folder: the images (png, jpg, bmp, webp, tif, gif, ppm).
        image_size: height and width to bring them to.
        num_slots: number of slots: the objects one expects, and one for the background.
        masks: folder with a PNG of object ids (palette or grey) for every image, of the same relative name;
            ids from 0 to 254, 255 is ignored.
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
        """Check that the files are there and readable; nothing is written.

        Raises:
            DataError: if a file is missing, unreadable or of the wrong kind; the message names it.
        """
        self._dataset(find_images(Path(self.folder))).check()

    def open_dataset(self, split: Split) -> FolderDataset:
        """Open a split.

        Raises:
            DataError: if there is no image for it.
        """
        names = find_images(Path(self.folder))
        return self._dataset(split_names(names, self.val_fraction, self.test_fraction)[split])

    def predict_dataset(self) -> FolderDataset:
        """All images."""
        if self._all is None:
            self._all = self._dataset(find_images(Path(self.folder)))
        return self._all

    def _dataset(self, names: list[str]) -> FolderDataset:
        masks = None if self.masks is None else Path(self.masks)
        return FolderDataset(Path(self.folder), names, self.image_size, masks)
