"""APC: one object on a shelf or in a tote, as in GENESIS-V2."""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities import rank_zero_warn

from data_modules.base import Split
from data_modules.raw.archives import FolderTree, Tree, ZipTree
from data_modules.raw.pictures import read_picture
from data_modules.raw.raw_file import ZIP, RawFile
from data_modules.raw_source import RawSceneDataModule, first_of_each
from data_modules.store import Arrays, DataError
from data_modules.threads import in_order

HEIGHT, WIDTH = 480, 640
EMPTY = "scene-empty"
ARCHIVE = "training.zip"
_OBJECT = 255
_IMAGES_AT_ONCE = 32
_MAX_PICTURE_BYTES = 16 * 10**6

_SCENE_FILE = re.compile(r"(?:^|/)((?:shelf|tote)/[^/]+/scene-[^/]+)/((?:masks/)?[^/]+\.png)$")
_FRAME = re.compile(r"frame-(\d+)\.color\.png")


@dataclass
class _Scene:
    """The pictures of one scene, by their names in the tree."""

    frames: dict[str, str] = field(default_factory=dict)
    """Name of the picture by the number of the frame, in digits."""
    others: dict[str, str] = field(default_factory=dict)
    """Names of all other pictures by their path below the scene's folder."""


class APC(RawSceneDataModule):
    """The Amazon Picking Challenge's training set (Zeng et al., 2017): one object per scene, up to 18 views.

    Scenes, empty ones among them, are sorted by path and shuffled by Python's generator with seed 0; the
    first tenth is the validation set, the next one the test set, the rest the training set: the splits share
    no scene, but all objects. The shorter side is resized to 128 (images by Pillow's bilinear filter, masks
    by nearest), then the centre is cut out (GENESIS-V2). The zip file is read where it is, without unpacking
    it.

    `segmentation` is 1 where the mask is 255 and 0 elsewhere; empty scenes have no masks, and all of them is
    0. The publisher's masks are made by background subtraction and noisy. Pictures that cannot be read are
    left out with a warning each, up to 2 % of a split.

    Args:
        image_size: height and width.
        num_slots: the paper's K.
        options: the arguments of every data module, of `RawSceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "apc"
    published: Mapping[Split, int] = {"train": 109_281, "val": 13_644, "test": 13_650}
    images_per_scene: ClassVar[int] = 4
    may_skip: ClassVar[float] = 0.02
    subset_of = "scenes"
    licence = "BSD-2-Clause"
    citation = (
        "Zeng, Yu, Song, Suo, Walker, Rodriguez, Xiao: Multi-view Self-supervised Deep Learning for 6D Pose "
        "Estimation "
        "in the Amazon Picking Challenge, ICRA 2017, http://apc.cs.princeton.edu"
    )

    def __init__(
        self,
        image_size: int = 128,
        num_slots: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            num_slots=num_slots,
            num_background=1,
            **options,
        )
        self._known: tuple[Path, Tree, dict[str, _Scene]] | None = None

    def tags(self) -> list[str]:
        """What differs from the paper's settings."""
        size = [] if self.image_size == 128 else [f"{self.image_size}px"]
        return [*size, *([] if self.subset is None else [f"first{self.subset}"])]

    def options(self) -> dict[str, object]:
        """What the data depend on."""
        return {"subset": self.subset}

    def record_bytes(self) -> int:
        """Bytes per image in the store."""
        return 4 * self.image_size**2

    def raw_files(self) -> list[RawFile]:
        """The one archive."""
        url = f"http://3dvision.princeton.edu/projects/2016/apc/downloads/{ARCHIVE}"
        return [RawFile(ARCHIVE, url, about_bytes=130 * 10**9, format=ZIP)]

    def prepare(self) -> None:
        """Make the stores that are missing and check the others.

        Raises:
            DataError: as the base class, or if the raw files are missing or damaged.
        """
        try:
            super().prepare()
        finally:
            self._known = None

    def check_raw(self, folder: Path) -> None:
        """Check that the archive is there, or scenes.

        Raises:
            DataError: if there is neither.
        """
        self._look(folder)

    def _look(self, folder: Path) -> tuple[Tree, dict[str, _Scene]]:
        """The tree of files, and the scenes that have pictures by their path from `shelf` or `tote` on.

        Raises:
            DataError: if there are fewer than three, or two of one path.
        """
        if self._known is None or self._known[0] != folder:
            archive = folder / ARCHIVE
            zipped = archive.is_file() and not (folder / "training").is_dir()
            tree: Tree
            tree = ZipTree(archive, _MAX_PICTURE_BYTES) if zipped else FolderTree(folder, _MAX_PICTURE_BYTES)
            scenes = _find_scenes(tree)
            if len(scenes) < 3:
                raise DataError(
                    f"{folder}: {len(scenes)} scenes, expected {ARCHIVE} or "
                    "training/shelf/<object>/scene-0000 ...; "
                    "give more of the publisher's files"
                )
            self._known = folder, tree, scenes
        return self._known[1:]

    def scenes(self, folder: Path) -> dict[Split, list[str]]:
        """Scenes of each split, by path.

        Raises:
            DataError: if the archive is missing, damaged or of another dataset.
        """
        names = sorted(self._look(folder)[1])
        random.Random(0).shuffle(names)
        num_val = num_test = max(1, len(names) // 10)
        if self.synthetic is not None:
            num_val, num_test = (self.synthetic_sizes[split] for split in ("val", "test"))
        first = num_val + num_test
        parts: dict[Split, list[str]] = {
            "train": names[first:],
            "val": names[:num_val],
            "test": names[num_val:first],
        }
        return first_of_each(parts, self.subset)

    def _frames(self, split: Split, folder: Path) -> list[tuple[str, str]]:
        """Scene and number of every picture of a split, in the order of their paths."""
        found = self._look(folder)[1]
        return [
            (scene, frame)
            for scene in sorted(self.scenes(folder)[split])
            for frame in sorted(found[scene].frames)
        ]

    def split_sizes(self, folder: Path) -> dict[Split, int]:
        """Number of images of each split.

        Raises:
            DataError: if the archive is missing, damaged or of another dataset.
        """
        return {split: len(self._frames(split, folder)) for split in ("train", "val", "test")}

    def read_split(self, split: Split, folder: Path) -> Iterator[Arrays]:
        """A split's images in chunks.

        Raises:
            DataError: if too many pictures or masks are missing or damaged.
        """
        tree, scenes = self._look(folder)
        frames = self._frames(split, folder)
        skipped = 0
        chunk: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
        for pair in in_order(lambda frame: self._read(tree, scenes[frame[0]], *frame), frames):
            if isinstance(pair, DataError):
                skipped += 1
                if skipped > self.may_skip * len(frames):
                    raise DataError(f"{pair}; {skipped} of {len(frames):,} images of {split} cannot be read")
                rank_zero_warn(f"left out: {pair}")
            else:
                chunk.append(pair)
            if len(chunk) == _IMAGES_AT_ONCE:
                yield _stack(chunk)
                chunk = []
        if chunk:
            yield _stack(chunk)

    def _read(
        self, tree: Tree, scene: _Scene, path: str, frame: str
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | DataError:
        """Image `[S, S, 3]` and segmentation `[S, S]` of a frame, or why it cannot be read."""
        try:
            name = scene.frames[frame]
            image = read_picture(tree.read(name), tree.where(name), "PNG", WIDTH, HEIGHT).convert("RGB")
            pixels = self._fit(image, Image.Resampling.BILINEAR)
            if path.endswith(f"/{EMPTY}"):
                return pixels, np.zeros(pixels.shape[:2], np.uint8)
            mask_name = scene.others.get(f"masks/frame-{frame}.mask.png")
            if mask_name is None:
                raise DataError(f"{tree.where(name)}: has no mask, expected masks/frame-{frame}.mask.png")
            mask = read_picture(tree.read(mask_name), tree.where(mask_name), "PNG", WIDTH, HEIGHT)
            if mask.mode not in ("1", "L"):
                raise DataError(
                    f"{tree.where(mask_name)}: a mask of mode {mask.mode}, expected one channel of 8 bits"
                )
            values = self._fit(mask.convert("L"), Image.Resampling.NEAREST)
        except DataError as error:
            return error
        return pixels, (values == _OBJECT).astype(np.uint8)

    def _fit(self, picture: Image.Image, resampling: Image.Resampling) -> NDArray[np.uint8]:
        """Bring the shorter side to the size of the images, and cut out the centre."""
        width = self.image_size * WIDTH // HEIGHT
        left = round((width - self.image_size) / 2)
        resized = picture.resize((width, self.image_size), resampling)
        return np.asarray(resized)[:, left : left + self.image_size]

    def synthesise(self, folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
        """Write a tree of scenes of our own renderer, as unpacked from the archive."""
        from data_modules.synthesis import apc

        apc.write(folder, {str(split): size for split, size in sizes.items()}, seed, self.images_per_scene)


def _find_scenes(tree: Tree) -> dict[str, _Scene]:
    """Scenes that have pictures.

    Raises:
        DataError: if one is there twice.
    """
    scenes: dict[str, _Scene] = {}
    for name in tree.names:
        match = _SCENE_FILE.search(name)
        if match is None:
            continue
        scene = scenes.setdefault(match[1], _Scene())
        frame = _FRAME.fullmatch(match[2])
        known, key = (scene.others, match[2]) if frame is None else (scene.frames, frame[1])
        if known.setdefault(key, name) != name:
            raise DataError(f"{tree.where(name)}: is also {tree.where(known[key])}, expected once")
    return {name: scene for name, scene in scenes.items() if scene.frames}


def _stack(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Arrays:
    images, segmentations = zip(*pairs, strict=True)
    return {"images": np.stack(images), "segmentations": np.stack(segmentations)}
