"""Sketchy: a robot's arm over a basket with blocks, as in GENESIS-V2."""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.base import Split
from data_modules.raw.archives import Limits, unpack_all
from data_modules.raw.example import Example
from data_modules.raw.pictures import read_picture
from data_modules.raw.raw_file import BZIP2, RawFile
from data_modules.raw.tfrecord import count_records, read_examples
from data_modules.raw_source import RawSceneDataModule, first_of_each
from data_modules.store import Arrays, DataError
from data_modules.threads import in_order

HEIGHT, WIDTH = 600, 960
IMAGES_PER_TIMESTEP = 14
TIMESTEPS = 8
"""Of a synthetic episode."""
VIEWS: dict[str, tuple[int, int]] = {"basket_front_left": (71, 144), "basket_front_right": (91, 144)}
"""First row and column of the 448 x 672 pixels that are kept of each view."""
CROPS = (
    (0, 112, 448),
    (0, 0, 352),
    (0, 160, 352),
    (0, 320, 352),
    (96, 0, 352),
    (96, 160, 352),
    (96, 320, 352),
)
"""First row and column, and side, of the seven squares of those: full, c0, ..., c5."""
STATE: dict[str, int] = {
    "actions": 7,
    "sawyer/joints/angle": 7,
    "sawyer/joints/velocity": 7,
    "sawyer/joints/torque": 7,
    "sawyer/pinch/pose": 7,
    "sawyer/tcp/pose": 7,
    "sawyer/tcp/velocity": 6,
    "sawyer/tcp/effort": 6,
    "wrist/force": 3,
    "wrist/torque": 3,
    "gripper/joints/angle": 1,
    "gripper/joints/velocity": 1,
    "gripper/joints/torque": 1,
}
"""Features of a timestep besides the pictures, and how many float32 values they have."""
_GRASP = "gripper/grasp"
_URL = "https://storage.googleapis.com/sketchy-data"
_TASKS = ("lift_green__demos", "stack_green_on_red__demos")
_ARCHIVES = tuple(f"{task}-{number:05d}-of-00002.tar.bz2" for task in _TASKS for number in range(2))
# no size is published: 30,025 timesteps in four archives, at 337 kB as in the published example, packed
_ABOUT_BYTES = 25 * 10**8
_LIMITS = Limits(8 * 10**9, 256 * 10**9, 10_000)
_EPISODE = re.compile(r"\d+_[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Sketchy(RawSceneDataModule):
    """Sketchy (Cabi et al., 2019): two cameras in front of a robot, 14 crops per timestep; no masks.

    Episodes are sorted by name: the first tenth is the validation set, the next one the test set, the rest
    the training set. Each timestep gives seven squares of the left view (`full`, then `c0` to `c5`: top left,
    top centre, top right, bottom left, bottom centre, bottom right) and the same of the right one, resized to
    128 by Pillow's bilinear filter. They are near-duplicates of each other and of their neighbours in time.

    `labels` has `episode` (position in the split), `timestep` and `crop` (0 to 6 left, 7 to 13 right), each
    int64 `[B]`; with `state` also the robot's, float32 `[B, n]`, with `_` for the `/` of the publisher's
    names.

    Args:
        state: keep the robot's joints, poses and forces as labels.
        image_size: height and width.
        num_slots: the paper's K.
        options: the arguments of every data module, of `RawSceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "sketchy"
    published: Mapping[Split, int] = {"train": 337_498, "val": 41_426, "test": 41_426}
    images_per_scene: ClassVar[int] = IMAGES_PER_TIMESTEP
    subset_of = "episodes"
    licence = "Apache-2.0"
    citation = (
        "Cabi et al.: Scaling data-driven robotics with reward sketching and batch reinforcement learning, "
        "RSS 2020, "
        "https://github.com/google-deepmind/deepmind-research/tree/master/sketchy"
    )

    def __init__(
        self,
        state: bool = False,
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
        self.state = state

    @property
    def synthetic_sizes(self) -> dict[Split, int]:
        """Number of synthetic timesteps per split: whole episodes."""
        return {split: -(-size // TIMESTEPS) * TIMESTEPS for split, size in super().synthetic_sizes.items()}

    def tags(self) -> list[str]:
        """What differs from the paper's settings."""
        differing = {
            f"{self.image_size}px": self.image_size != 128,
            "state": self.state,
            f"first{self.subset}": self.subset is not None,
        }
        return [tag for tag, differs in differing.items() if differs]

    def options(self) -> dict[str, Any]:
        """What the data depend on."""
        return {"subset": self.subset, "state": self.state}

    def record_bytes(self) -> int:
        """Bytes per image in the store."""
        return 3 * self.image_size**2 + 3 * 8 + self.state * (4 * sum(STATE.values()) + 8)

    def raw_files(self) -> list[RawFile]:
        """The archives of demonstrations."""
        return [RawFile(name, f"{_URL}/{name}", about_bytes=_ABOUT_BYTES, format=BZIP2) for name in _ARCHIVES]

    def check_raw(self, folder: Path) -> None:
        """Check that the archives are there, or episodes.

        Raises:
            DataError: if there is neither.
        """
        if not _find_episodes(folder):
            super().check_raw(folder)

    def unpack(self, folder: Path) -> Path:
        """Where the episodes are, or folders of them.

        Raises:
            DataError: if an archive is missing, damaged or of something else.
        """
        if self.synthetic is not None or _find_episodes(folder):
            return folder
        return unpack_all(self.name, folder, Path(self.root), dict.fromkeys(_ARCHIVES, _LIMITS), _place)

    def episodes(self, folder: Path) -> dict[Split, list[Path]]:
        """Files of each split in the order of their names.

        Raises:
            DataError: if there are fewer than three, or two of one name.
        """
        paths = sorted(_find_episodes(folder), key=lambda path: path.name)
        for before, after in pairwise(paths):
            if before.name == after.name:
                raise DataError(f"{after}: is also {before}, expected every episode once")
        if len(paths) < 3:
            raise DataError(
                f"{folder}: {len(paths)} episodes, expected at least 3; give more of the publisher's files"
            )
        tenth = max(1, len(paths) // 10)
        num_val, num_test = tenth, tenth
        if self.synthetic is not None:
            num_val, num_test = (self.synthetic_sizes[split] // TIMESTEPS for split in ("val", "test"))
        first = num_val + num_test
        parts: dict[Split, list[Path]] = {
            "train": paths[first:],
            "val": paths[:num_val],
            "test": paths[num_val:first],
        }
        return first_of_each(parts, self.subset)

    def split_sizes(self, folder: Path) -> dict[Split, int]:
        """Number of images of each split.

        Raises:
            DataError: if an episode is damaged or there are too few.
        """
        parts = self.episodes(folder).items()
        return {
            split: IMAGES_PER_TIMESTEP * sum(count_records(path) for path in part) for split, part in parts
        }

    def read_split(self, split: Split, folder: Path) -> Iterator[Arrays]:
        """A split's images, 14 at a time: one timestep.

        Raises:
            DataError: if an episode is damaged or of another schema; names file and record number.
        """
        for episode, path in enumerate(self.episodes(folder)[split]):
            chunks = in_order(self._read, read_examples(path))
            for timestep, chunk in enumerate(chunks):
                labels = {"episode": episode, "timestep": timestep}
                places = {f"labels.{key}": np.full(IMAGES_PER_TIMESTEP, at) for key, at in labels.items()}
                yield {**chunk, **places, "labels.crop": np.arange(IMAGES_PER_TIMESTEP)}

    def _read(self, example: Example) -> dict[str, NDArray[Any]]:
        images = []
        for view, (top, left) in VIEWS.items():
            content = example.strings(f"pixels/{view}", 1)[0]
            where = f"{example.where}: pixels/{view}"
            picture = read_picture(content, where, "JPEG", WIDTH, HEIGHT).convert("RGB")
            images += [self._crop(picture, top + row, left + column, side) for row, column, side in CROPS]
        arrays: dict[str, NDArray[Any]] = {"images": np.stack(images)}
        if self.state:
            for name, count in STATE.items():
                arrays[_label(name)] = np.tile(example.floats(name, (count,)), (IMAGES_PER_TIMESTEP, 1))
            arrays[_label(_GRASP)] = np.repeat(example.integers(_GRASP, (1,)), IMAGES_PER_TIMESTEP)
        return arrays

    def _crop(self, picture: Image.Image, top: int, left: int, side: int) -> NDArray[np.uint8]:
        square = picture.crop((left, top, left + side, top + side))
        return np.asarray(square.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR))

    def preview_arrays(self) -> Arrays:
        """The seven crops of one view."""
        return {"images": super().preview_arrays()["images"][: len(CROPS)]}

    def synthesise(self, folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
        """Write episodes of our own renderer, as unpacked from the archives."""
        from data_modules.synthesis import sketchy

        sketchy.write(folder, {split: size // TIMESTEPS for split, size in sizes.items()}, seed, TIMESTEPS)


def _label(feature: str) -> str:
    return f"labels.{feature.replace('/', '_')}"


def _place(name: str) -> str | None:
    """Where a member of an archive goes, if it is an episode."""
    last = name.rpartition("/")[2]
    return last if _EPISODE.fullmatch(last) else None


def _find_episodes(folder: Path) -> list[Path]:
    """Episodes in a folder and the folders in it."""
    return [
        path
        for pattern in ("*", "*/*", "*/*/*")
        for path in folder.glob(pattern)
        if _EPISODE.fullmatch(path.name) and path.is_file()
    ]
