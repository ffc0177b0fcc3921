"""What DeepMind's Multi-Object Datasets share: one gzip TFRecord each, entity masks, splits in file order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.base import Split
from data_modules.raw.example import Example
from data_modules.raw.raw_file import GZIP, RawFile
from data_modules.raw.tfrecord import count_records, read_examples
from data_modules.raw_source import RawSceneDataModule, share_out
from data_modules.store import Arrays, DataError

BUCKET = "https://storage.googleapis.com/multi-object-datasets"
CITATION = (
    "Kabra, Burgess, Matthey, Lopez Kaufman, Greff, Reynolds, Lerchner: Multi-Object Datasets, 2019, "
    "https://github.com/google-deepmind/multi_object_datasets"
)


class MultiObjectDataModule(RawSceneDataModule):
    """One of the Multi-Object Datasets: a TFRecord file whose records become the splits in file order.

    A subclass gives `file`, `order`, `convert`, and where not all records are used `keep`.

    Args:
        image_size: height and width of the images.
        num_slots: the paper's K.
        num_background: ids of `segmentation` below this are background.
        options: the arguments of every data module, of `RawSceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    file: RawFile
    """The published file, with all its splits in it."""
    order: Sequence[Split] = ("train", "val", "test")
    """The splits as they follow each other in the file."""
    records_at_once: ClassVar[int] = 128
    filters: bool = False
    """Whether `keep` drops records."""
    licence = "Apache-2.0"
    citation = CITATION

    def __init__(
        self,
        *,
        image_size: int,
        num_slots: int,
        num_background: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            num_slots=num_slots,
            num_background=num_background,
            **options,
        )
        self._kept: tuple[Path, NDArray[np.int64]] | None = None

    def keep(self, example: Example) -> bool:
        """Whether a record belongs to the dataset."""
        return True

    def convert(self, examples: list[Example]) -> Arrays:
        """Records as the store has them.

        Raises:
            DataError: if one is not as expected; names file and record number.
        """
        raise NotImplementedError

    def raw_files(self) -> list[RawFile]:
        """The published file."""
        return [replace(self.file, format=GZIP)]

    def tags(self) -> list[str]:
        """The subset, if there is one."""
        return [] if self.subset is None else [f"first{self.subset}"]

    def options(self) -> dict[str, object]:
        """The subset."""
        return {"subset": self.subset}

    def kept_records(self, folder: Path) -> NDArray[np.int64]:
        """Numbers of the records that belong to the dataset, `[N]`; one pass through the file.

        Raises:
            DataError: if the file is damaged or of another dataset.
        """
        path = folder / self.file.name
        if self._kept is None or self._kept[0] != path:
            stop = self.subset
            if not self.filters:
                used = sum(
                    self.published.values() if self.synthetic is None else self.synthetic_sizes.values()
                )
                kept = np.arange(count_records(path, min(used, stop or used)))
            else:
                kept = np.array(
                    [n for n, example in enumerate(read_examples(path, 0, stop)) if self.keep(example)],
                    np.int64,
                )
            self._kept = (path, kept)
        return self._kept[1]

    def split_sizes(self, folder: Path) -> dict[Split, int]:
        """Number of images of each split in the file.

        Raises:
            DataError: if the file is damaged, of another dataset, or has too few records.
        """
        count = len(self.kept_records(folder))
        if self.synthetic is None:
            try:
                return share_out(count, self.published)
            except DataError as error:
                raise DataError(f"{folder / self.file.name}: {error}") from error
        sizes = self.synthetic_sizes
        if count < sum(sizes.values()):
            raise DataError(
                f"{folder / self.file.name}: {count} usable records, expected {sum(sizes.values())}; "
                f"remove {folder} and run `{self.prepare_command()}`"
            )
        return sizes

    def read_splits(self, splits: Sequence[Split], folder: Path) -> Iterator[tuple[Split, Arrays]]:
        """Several splits in one pass through the file, each whole before the next one begins.

        Raises:
            DataError: if the file is damaged or of another dataset; names file and record number.
        """
        kept, sizes = self.kept_records(folder), self.split_sizes(folder)
        parts: dict[Split, NDArray[np.int64]] = {}
        start = 0
        for split in self.order:
            if split in splits:
                parts[split] = kept[start : start + sizes[split]]
            start += sizes[split]
        chosen = _choose(folder / self.file.name, np.concatenate(list(parts.values())))
        for split, numbers in parts.items():
            for first in range(0, len(numbers), self.records_at_once):
                examples = list(islice(chosen, min(self.records_at_once, len(numbers) - first)))
                yield split, self.convert(examples)

    def read_split(self, split: Split, folder: Path) -> Iterator[Arrays]:
        """One split in chunks.

        Raises:
            DataError: if the file is damaged or of another dataset; names file and record number.
        """
        return (chunk for _, chunk in self.read_splits([split], folder))


def _choose(path: Path, numbers: NDArray[np.int64]) -> Iterator[Example]:
    """The records with these numbers, which rise."""
    first, last = int(numbers[0]), int(numbers[-1])
    wanted = np.zeros(last + 1, np.bool_)
    wanted[numbers] = True
    examples = enumerate(read_examples(path, first, last + 1), first)
    return (example for number, example in examples if wanted[number])


def entity_ids(masks: NDArray[np.uint8], places: Sequence[str], num_background: int) -> NDArray[np.uint8]:
    """Entity masks of 0 and 255, `[N, E, H, W]`, as a map of entity numbers `[N, H, W]`.

    Args:
        masks: the masks.
        places: file and record number of each scene, for error messages.
        num_background: this many entities, the first ones, are background.

    Raises:
        DataError: if a mask has another value, a pixel belongs to no entity or to two, or none to the
            background; names file and record number.
    """
    # 255 becomes 0 and 0 becomes 1
    odd = np.any(masks + np.uint8(1) > 1, axis=(1, 2, 3))
    owners = (masks & np.uint8(1)).sum(1, dtype=np.uint8)
    ids = np.arange(masks.shape[1], dtype=np.uint8)[:, None, None]
    segmentations = np.bitwise_or.reduce(masks & ids, axis=1)
    shared = np.any(owners != 1, axis=(1, 2))
    covered = np.all(segmentations >= num_background, axis=(1, 2))
    for problem, wrong in (
        ("found other values than 0 and 255", odd),
        ("found a pixel of no entity or of two, expected one", shared),
        ("found no pixel of the background, expected some", covered),
    ):
        if np.any(wrong):
            raise DataError(f"{places[int(np.argmax(wrong))]}: mask: {problem}")
    return segmentations


def object_factors(examples: Sequence[Example], shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Factors of the objects: all entities but the first, which is the background.

    Args:
        examples: the records.
        shapes: names of the factors and their shapes `[E, ...]` in the record, `visibility` among them; uint8
            or float32, whichever the record has.

    Returns:
        `objects.<name>` `[N, E - 1, ...]`, and `objects.present` bool `[N, E - 1]` for `visibility`.

    Raises:
        DataError: if one is missing or of another kind or size.
    """
    factors: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        read = [
            example.uint8(name, shape) if example.is_bytes(name) else example.floats(name, shape)
            for example in examples
        ]
        factors["present" if name == "visibility" else name] = np.stack(read)[:, 1:]
    factors["present"] = factors["present"] > 0.5
    return {f"objects.{name}": values for name, values in factors.items()}


def resize(pictures: NDArray[np.uint8], size: int, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """Square pictures `[N, H, W, ...]` brought to `[N, size, size, ...]` by Pillow; equal sizes are kept."""
    if pictures.shape[1:3] == (size, size):
        return pictures
    return np.stack([np.asarray(Image.fromarray(p).resize((size, size), resampling)) for p in pictures])
