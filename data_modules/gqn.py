"""GQN rooms-ring-camera: rooms with one to three objects, as in GENESIS."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data_modules.base import Batch, Split, StorePlan, make_batch
from data_modules.raw.example import Example
from data_modules.raw.pictures import read_picture
from data_modules.raw.raw_file import TFRECORD, RawFile
from data_modules.raw.tfrecord import count_records, read_examples
from data_modules.raw_source import RawSceneDataModule, first_of_each
from data_modules.store import Arrays, DataError, Store

SIDE = 64
NUM_VIEWS = 10
SCENES_PER_SHARD = 5000
VAL_FRACTION = 60
"""One in so many training shards, the last ones, is for validation."""
CAMERA = ("x", "y", "z", "yaw", "pitch")
FRAMES = "flat.frames"

_NUM_SHARDS = {"train": 2160, "test": 240}
_URL = "https://storage.googleapis.com/gqn-dataset/rooms_ring_camera"
_SCENE_BYTES = 21_000
"""Ten JPEGs: 250 GB of 12 million scenes."""
_SHARD = re.compile(r"(\d{1,6})-of-(\d{1,6})\.tfrecord")
_SCENES_AT_ONCE = 64
_SALT = 0x61E3


def draw_view(seed: int, number: int, scene: int) -> int:
    """View of a scene in pass `number` through the scenes, uniform over the ten.

    The GENESIS code gives 32 scenes that were read together the same view; here every scene has its own.
    """
    return int(np.random.default_rng((_SALT, seed, number, scene)).integers(NUM_VIEWS))


class ViewDataset(Dataset[Batch]):
    """One view per scene: index `p * length + i` gives the view of scene `i` that belongs to pass `p`.

    Args:
        store: the scenes.
        seed: of the choice of views.
        image_size: height and width, by PyTorch's rule for nearest.
    """

    def __init__(self, store: Store, seed: int, image_size: int) -> None:
        self.store = store
        self.seed = seed
        self.nearest = np.arange(image_size) * SIDE // image_size

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        numbered = [divmod(index, len(self)) for index in indices]
        scenes = [scene for _, scene in numbered]
        views = np.array([draw_view(self.seed, number, scene) for number, scene in numbered])
        records, rows = self.store.read(scenes), np.arange(len(scenes))
        starts, ends = records["places"][rows, views], records["places"][rows, views + 1]
        frames = [
            self._decode(piece.tobytes(), scene, view)
            for piece, scene, view in zip(
                self.store.read_pieces(FRAMES, starts, ends), scenes, views.tolist(), strict=True
            )
        ]
        arrays = {"images": np.stack(frames)}
        cameras = records["cameras"][rows, views]
        arrays |= {f"labels.camera_{key}": cameras[:, number].copy() for number, key in enumerate(CAMERA)}
        return make_batch(scenes, arrays)

    def _decode(self, content: bytes, scene: int, view: int) -> NDArray[np.uint8]:
        picture = read_picture(content, f"{self.store.path}: scene {scene}, view {view}", "JPEG", SIDE, SIDE)
        return np.asarray(picture.convert("RGB"))[self.nearest[:, None], self.nearest]


class GQN(RawSceneDataModule):
    """GQN rooms-ring-camera (Eslami et al., 2018): ten views of a room; no masks, so no ARI.

    A pass through the training scenes shows one view of each, drawn from (`seed`, pass, scene) and drawn anew
    in every pass: the same after a resume, on any number of ranks and workers. Validation and test scenes
    always show the same view, whatever the seed. Of the 2,160 training shards the last 36 are the validation
    set (GENESIS).

    The store keeps the publisher's JPEGs: all views of all scenes are then 250 GB, where decoded they would
    be 1.5 TB, and decoding is far faster than any training step. `labels` has the view's camera, float32
    `[B]` each: `camera_x`, `camera_y`, `camera_z`, `camera_yaw`, `camera_pitch`.

    Args:
        image_size: height and width; other sizes than 64 by PyTorch's rule for nearest.
        num_slots: the paper's K.
        options: the arguments of every data module, of `RawSceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "gqn"
    draws_every_pass = True
    published: Mapping[Split, int] = {"train": 10_620_000, "val": 180_000, "test": 1_200_000}
    subset_of = "shards"
    licence = "Apache-2.0 (the publisher's repository; nothing is said of the data themselves)"
    citation = "Eslami et al.: Neural scene representation and rendering, Science 360, 2018"

    def __init__(
        self,
        image_size: int = SIDE,
        num_slots: int = 7,
        **options: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            num_slots=num_slots,
            num_background=1,
            **options,
        )

    def tags(self) -> list[str]:
        """What differs from the paper's settings; another size is made when reading."""
        return [] if self.subset is None else [f"{self.subset}shards"]

    def options(self) -> dict[str, object]:
        """What the data depend on."""
        return {"subset": self.subset}

    def plan(self, split: Split) -> StorePlan:
        """How a split becomes a store, which serves all sizes of images."""
        plan = super().plan(split)
        return dataclasses.replace(plan, settings={**plan.settings, "image_size": SIDE})

    def record_bytes(self) -> int:
        """Bytes per scene in the store, about."""
        return _SCENE_BYTES + 8 * (NUM_VIEWS + 1) + 4 * NUM_VIEWS * len(CAMERA)

    def _published_shards(self) -> dict[Split, list[str]]:
        """Names of the shards of each split that these settings need."""
        names = {
            place: [f"{place}/{n:0{len(str(count))}d}-of-{count}.tfrecord" for n in range(1, count + 1)]
            for place, count in _NUM_SHARDS.items()
        }
        last = _NUM_SHARDS["train"] - _NUM_SHARDS["train"] // VAL_FRACTION
        parts: dict[Split, list[str]] = {
            "train": names["train"][:last],
            "val": names["train"][last:],
            "test": names["test"],
        }
        return first_of_each(parts, self.subset)

    def raw_files(self) -> list[RawFile]:
        """The shards."""
        about = SCENES_PER_SHARD * _SCENE_BYTES
        names = [name for part in self._published_shards().values() for name in part]
        return [RawFile(name, f"{_URL}/{name}", about_bytes=about, format=TFRECORD) for name in names]

    def check_raw(self, folder: Path) -> None:
        """Check that there are shards.

        Raises:
            DataError: if there are too few.
        """
        self.shards(folder)

    def shards(self, folder: Path) -> dict[Split, list[Path]]:
        """Shards of each split in order.

        Where not all the published ones are there, the same rule goes for those that are.

        Raises:
            DataError: if there are fewer than two for training and one for test.
        """
        if self.synthetic is None:
            parts = {
                split: [folder / name for name in part] for split, part in self._published_shards().items()
            }
            if self.raw is None or all(path.is_file() for part in parts.values() for path in part):
                return parts
        train, test = _list_shards(folder / "train", at_least=2), _list_shards(folder / "test", at_least=1)
        count, total = len(train), train[0][1]
        num_val = len([number for number, _, _ in train if number > total - total // VAL_FRACTION])
        if self.synthetic is not None:
            size = self.synthetic_sizes["val"]
            num_val = -(-size // min(SCENES_PER_SHARD, size))
        elif num_val in (0, count):
            num_val = max(1, count // VAL_FRACTION)
        paths = [path for _, _, path in train]
        return first_of_each(
            {
                "train": paths[: count - num_val],
                "val": paths[count - num_val :],
                "test": [path for _, _, path in test],
            },
            self.subset,
        )

    def split_sizes(self, folder: Path) -> dict[Split, int]:
        """Number of scenes of each split.

        Raises:
            DataError: if a shard is missing, damaged or cut off.
        """
        parts = self.shards(folder).items()
        return {split: sum(count_records(path) for path in part) for split, part in parts}

    def read_split(self, split: Split, folder: Path) -> Iterator[Arrays]:
        """A split's scenes in chunks: `places` int64 `[n, 11]` of the JPEGs in `flat.frames`, and `cameras`.

        Raises:
            DataError: if a shard is damaged or of another schema; names file and record number.
        """
        place = 0
        examples = (example for path in self.shards(folder)[split] for example in read_examples(path))
        while some := list(islice(examples, _SCENES_AT_ONCE)):
            frames = [_read_frames(example, number) for number, example in enumerate(some)]
            lengths = np.array([[len(frame) for frame in scene] for scene in frames])
            ends = place + lengths.cumsum().reshape(lengths.shape)
            places = np.concatenate([ends[:, :1] - lengths[:, :1], ends], axis=1)
            place = int(ends[-1, -1])
            content = b"".join(frame for scene in frames for frame in scene)
            yield {
                "places": places.astype(np.int64),
                "cameras": np.stack([e.floats("cameras", (NUM_VIEWS, len(CAMERA))) for e in some]),
                FRAMES: np.frombuffer(content, np.uint8),
            }

    def wrap_store(self, store: Store) -> ViewDataset:
        """One view of each scene; evaluation sees the same ones under any seed."""
        seed = self.seed if store.manifest["split"] == "train" else 0
        return ViewDataset(store, seed, self.image_size)

    def preview_arrays(self) -> Arrays:
        """One view of some scenes."""
        plan = self.plan("test")
        dataset = self.wrap_store(
            Store.open(plan.path, f"run `{self.prepare_command()}`", plan.settings, "test")
        )
        batch = dataset.__getitems__(list(range(min(8, len(dataset)))))
        return {"images": batch["image"].numpy().transpose(0, 2, 3, 1)}

    def synthesise(self, folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
        """Write shards of scenes of our own renderer."""
        from data_modules.synthesis import gqn

        gqn.write(folder, {str(split): size for split, size in sizes.items()}, seed)


def _list_shards(folder: Path, at_least: int) -> list[tuple[int, int, Path]]:
    """Number, number of all, and path of the shards in a folder, in order.

    Raises:
        DataError: if there are fewer than expected, or of two sets.
    """
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    matches = [(match, path) for path in paths if (match := _SHARD.fullmatch(path.name))]
    shards = sorted((int(match[1]), int(match[2]), path) for match, path in matches)
    if len(shards) < at_least:
        raise DataError(
            f"{folder}: {len(shards)} shards such as 0001-of-2160.tfrecord, expected {at_least} or more; "
            f"get them from {_URL}"
        )
    if len({number for number, _, _ in shards}) < len(shards) or len({total for _, total, _ in shards}) > 1:
        raise DataError(f"{folder}: shards of more than one set, expected one; sort them out")
    return shards


def _read_frames(example: Example, number: int) -> Sequence[bytes]:
    """The ten JPEGs of a scene. Their bytes were compared with a checksum; one in turn is decoded.

    Raises:
        DataError: if they are not ten, or no JPEGs of 64 x 64.
    """
    frames = example.strings("frames", NUM_VIEWS)
    for view, frame in enumerate(frames):
        where = f"{example.where}: frames {view}"
        if not frame.startswith(b"\xff\xd8"):
            raise DataError(f"{where}: begins with {frame[:4]!r}, expected a JPEG")
        if view == number % NUM_VIEWS:
            read_picture(frame, where, "JPEG", SIDE, SIDE)
    return frames
