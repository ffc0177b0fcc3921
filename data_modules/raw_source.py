"""Datasets made from publishers' files: get them, convert them once, and say where they came from."""

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pytorch_lightning.utilities import rank_zero_warn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import Dataset

from data_modules.base import SPLITS, Batch, SceneDataModule, Split, StoreDataset, StorePlan
from data_modules.disk import free_bytes, size_text
from data_modules.preview import scene_grid
from data_modules.raw.fetch import fetch, with_way_out
from data_modules.raw.raw_file import RawFile
from data_modules.store import PARTIAL, Arrays, DataError, Store
from data_modules.store_writer import give_name, remove_leftovers, write_store

T = TypeVar("T")

SYNTHESIS_SEED = 0
PREVIEW = "preview.png"


class RawSceneDataModule(SceneDataModule):
    """A dataset that `lightning-genesis prepare` makes out of the publisher's own files.

    The files are downloaded to `root/raw/<name>`, or taken from `raw`, or synthesised in the same format to
    `root/raw/<name>-synthetic-N`. All three go through the same reader into one store per split,
    `root/<name>[-synthetic-N][-what differs from the paper]/<split>`.

    A subclass gives the class attributes and `raw_files`, `split_sizes`, `read_split`, `synthesise`,
    `record_bytes`, and where it has options `options` and `tags`. Its constructor
    takes options of its own, `image_size` and `num_slots`, and hands on the rest.

    Args:
        raw: folder with the publisher's files, if they are there already; nothing is written to it.
        synthetic: use this many training scenes (and a tenth, at least 8, for validation and test each) drawn
            by our own renderer in the publisher's format, instead of the publisher's files.
        subset: use only the first this many of the published records (scenes, shards, episodes, whatever the
            publisher counts), shared out to the splits in the published proportions.
        options: the arguments of every data module, of `SceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    published: Mapping[Split, int]
    """Images per split that the publisher's files and the paper's protocol give."""
    licence: ClassVar[str]
    """The data's licence, in a few words."""
    citation: ClassVar[str]
    """Whom to cite: one line."""
    subset_of: ClassVar[str] = "records"
    """What `subset` counts."""
    images_per_scene: ClassVar[int] = 1
    """Images that a synthetic scene gives."""
    may_skip: ClassVar[float] = 0.0
    """Share of a split's images that `read_split` may leave out as unreadable."""

    def __init__(
        self,
        *,
        raw: str | None = None,
        synthetic: int | None = None,
        subset: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if synthetic is not None and synthetic < 1:
            raise DataError(f"synthetic: {synthetic}, expected 1 or more; correct the setting")
        if synthetic is not None and raw is not None:
            raise DataError("raw, synthetic: both are given, expected one of them; leave one out")
        if subset is not None and (subset < 3 or synthetic is not None):
            raise DataError(
                f"subset: {subset}, expected 3 {self.subset_of} or more of the published ones; correct it"
            )
        self.raw = raw
        self.synthetic = synthetic
        self.subset = subset
        self.prepares_on_fit = synthetic is not None
        self._warned = False

    # what a subclass gives

    def raw_files(self) -> list[RawFile]:
        """The publisher's files that these settings need."""
        raise NotImplementedError

    def split_sizes(self, folder: Path) -> dict[Split, int]:
        """Number of images of each split in the raw files.

        The published protocol's sizes where the files are the published ones; the published proportions, in
        file order, where there is less (`share_out`); `self.synthetic_sizes` where they are synthetic.

        Raises:
            DataError: if a file is missing, damaged or of another dataset.
        """
        raise NotImplementedError

    def read_split(self, split: Split, folder: Path) -> Iterator[Arrays]:
        """A split's records in chunks as `StorePlan.build` has them, streamed out of the raw files.

        Checks what can be checked on the way; nothing that was given counts if it ends with an error.

        Raises:
            DataError: if a file is missing, damaged or of another dataset; names file and record number.
        """
        raise NotImplementedError

    def read_splits(self, splits: Sequence[Split], folder: Path) -> Iterator[tuple[Split, Arrays]]:
        """Several splits' chunks, each split whole before the next one begins; in one pass where that helps.

        Raises:
            DataError: as `read_split`.
        """
        return ((split, chunk) for split in splits for chunk in self.read_split(split, folder))

    def synthesise(self, folder: Path, sizes: Mapping[Split, int], seed: int) -> None:
        """Write scenes of our own renderer in the publisher's format to an empty folder."""
        raise NotImplementedError

    def record_bytes(self) -> int:
        """Bytes per image in the store."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Plain values, besides `image_size` and `synthetic`, that the data depend on."""
        return {}

    def tags(self) -> list[str]:
        """What differs from the paper's settings, for the folder's name."""
        return []

    def unpack(self, folder: Path) -> Path:
        """Where the readable files are; a dataset of archives unpacks them first.

        Raises:
            DataError: if a file is missing, damaged or of another dataset.
        """
        return folder

    # what is the same for all

    @property
    def synthetic_sizes(self) -> dict[Split, int]:
        """Number of synthetic scenes per split."""
        assert self.synthetic is not None
        evaluated = max(self.synthetic // 10, 8)
        return {"train": self.synthetic, "val": evaluated, "test": evaluated}

    def folder_name(self) -> str:
        """Name of the folder in `root`."""
        made = [] if self.synthetic is None else [f"synthetic-{self.synthetic}"]
        return "-".join([str(self.name), *made, *self.tags()])

    def plan(self, split: Split) -> StorePlan:
        """How a split becomes a store; before the raw files are there, its length is the published one."""
        synthetic = self.synthetic is not None
        count = self.synthetic_sizes[split] * self.images_per_scene if synthetic else self.published[split]
        return StorePlan(
            path=Path(self.root) / self.folder_name() / split,
            count=count,
            record_bytes=self.record_bytes(),
            settings={
                "image_size": self.image_size,
                "synthetic": self.synthetic,
                **self.options(),
                "differs_from_paper": self.tags(),
            },
            source={},
            build=partial(self._build, split),
        )

    def _build(self, split: Split) -> Iterator[Arrays]:
        return self.read_split(split, self.unpack(self._raw_folder()))

    def open_dataset(self, split: Split) -> Dataset[Batch]:
        """Open a split; says so if it is synthetic or smaller than published.

        Raises:
            DataError: if it is not prepared or damaged.
        """
        plan = self.plan(split)
        store = Store.open(plan.path, f"run `{self.prepare_command()}`", plan.settings, split)
        note = store.manifest["source"].get("note")
        if note is not None and not self._warned:
            rank_zero_warn(f"{plan.path.parent}: {note}")
            self._warned = True
        return self.wrap_store(store)

    def wrap_store(self, store: Store) -> Dataset[Batch]:
        """The dataset over an opened store."""
        return StoreDataset(store)

    def _raw_folder(self) -> Path:
        if self.raw is not None:
            return Path(self.raw)
        return Path(self.root) / "raw" / self.raw_name()

    def raw_name(self) -> str:
        """Name of the folder of raw files in `root/raw`."""
        return f"{self.name}" if self.synthetic is None else f"{self.name}-synthetic-{self.synthetic}"

    def _make_stores(self, plans: Mapping[Split, StorePlan]) -> None:
        console = Console(stderr=True)
        self._say_sizes(console, plans)
        files = self._get_raw(console)
        unpacked = None
        try:
            folder = unpacked = self.unpack(self._raw_folder())
            self._convert(console, plans, folder, files)
        except DataError as error:
            raise with_way_out(error, self._ours(unpacked)) from error
        picture = self._write_preview()
        console.print(f"{self.name}: a look at it: {picture}", highlight=False, soft_wrap=True)

    def _convert(
        self, console: Console, plans: Mapping[Split, StorePlan], folder: Path, files: list[dict[str, Any]]
    ) -> None:
        """Make the stores out of the readable files in a folder."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            counting = progress.add_task(f"{self.name}: looking through the files", total=None)
            sizes = self.split_sizes(folder)
            progress.remove_task(counting)
            source = {
                "synthetic": self.synthetic is not None,
                "files": files,
                "licence": self.licence,
                "citation": self.citation,
            }
            if (note := self.note(sizes)) is not None:
                source["note"] = note
                console.print(f"{self.name}: note: {note}", highlight=False, soft_wrap=True)
            self._check_space(sum(sizes[split] * plan.record_bytes for split, plan in plans.items()))
            pieces = groupby(self.read_splits(list(plans), folder), key=itemgetter(0))
            written = set()
            for split, group in pieces:
                task = progress.add_task(f"{self.name} {split}", total=sizes[split])
                write_store(
                    plans[split].path,
                    self._exactly(split, sizes[split], (chunk for _, chunk in group)),
                    name=str(self.name),
                    split=split,
                    settings=plans[split].settings,
                    source=source,
                    advance=partial(progress.advance, task),
                )
                written.add(split)
            for split in plans.keys() - written:
                raise DataError(f"{folder}: no image for {split}; give more of the publisher's files")

    def _ours(self, unpacked: Path | None) -> list[Path]:
        """What was fetched or unpacked by us and can be made anew."""
        folder = self._raw_folder()
        if self.synthetic is not None:
            return [folder]
        ours = [] if unpacked is None or unpacked == folder else [unpacked]
        if self.raw is None:
            ours += [folder / file.name for file in self.raw_files()]
        return ours

    def note(self, sizes: Mapping[Split, int]) -> str | None:
        """What has to be said with results: kept in the manifest, and given as a warning by every run."""
        if self.synthetic is not None:
            return "synthetic scenes of our own renderer, not the published data; say so with results"
        if all(sizes[split] == self.published[split] for split in SPLITS):
            return None
        found, expected = (" / ".join(f"{of[split]:,}" for split in SPLITS) for of in (sizes, self.published))
        return (
            f"{found} images for training, validation and test where the publisher's files give {expected}; "
            "say so with results"
        )

    def _exactly(self, split: Split, count: int, chunks: Iterator[Arrays]) -> Iterator[Arrays]:
        """The chunks as they come, and an error at the end if there were not `count` images, but for few."""
        found = 0
        for chunk in chunks:
            found += len(next(iter(chunk.values())))
            yield chunk
        if not (1 - self.may_skip) * count <= found <= count or found == 0:
            raise DataError(
                f"{self._raw_folder()}: {found:,} images for {split}, expected {max(count, 1):,}; "
                "give more of the publisher's files"
            )

    def _say_sizes(self, console: Console, plans: Mapping[Split, StorePlan]) -> None:
        """Say what is fetched and written, whose it is, and what is free.

        Raises:
            DataError: if the disk is too small.
        """
        folder, free = self._raw_folder(), free_bytes(Path(self.root))
        missing = [file for file in self.raw_files() if not (folder / file.name).exists()]
        if self.raw is not None:
            raw, fetched = f"files in {self.raw}", 0
        elif self.synthetic is not None:
            raw, fetched = f"{sum(self.synthetic_sizes.values()):,} synthetic scenes to {folder}", 0
        else:
            fetched = sum(file.bytes or file.about_bytes or 0 for file in missing)
            raw = f"{len(missing)} files (about {size_text(fetched)}) to download to {folder}"
        needed = {split: plan.count * plan.record_bytes for split, plan in plans.items()}
        parts = ", ".join(
            f"{split} {plan.count:,} ({size_text(needed[split])})" for split, plan in plans.items()
        )
        for line in (
            f"{self.name}: {raw}",
            f"{self.name}: store of {parts} images at most into {self.root}; {size_text(free)} free",
            f"{self.name}: licence: {self.licence}",
            f"{self.name}: cite: {self.citation}",
        ):
            console.print(line, highlight=False, soft_wrap=True)
        # files given by the user may be fewer than the published ones
        self._check_space(fetched + (sum(needed.values()) if self.raw is None else 0))

    def _check_space(self, needed: int) -> None:
        if needed > (free := free_bytes(Path(self.root))):
            raise DataError(
                f"{self.root}: {size_text(free)} free, expected {size_text(needed)} for {self.name}; "
                "free space or choose another `root`"
            )

    def _get_raw(self, console: Console) -> list[dict[str, Any]]:
        """Bring the raw files to their place; returns what the manifest says of them."""
        folder = self._raw_folder()
        if self.synthetic is not None:
            if not folder.exists():
                with console.status(f"{self.name}: drawing synthetic scenes", spinner="dots"):
                    self._synthesise_into(folder)
            return [{"name": "synthetic", "seed": SYNTHESIS_SEED, "sizes": self.synthetic_sizes}]
        if self.raw is not None:
            if not folder.is_dir():
                raise DataError(f"raw: {self.raw}: no such folder, expected one with {self._file_names()}")
            self.check_raw(folder)
        remedy = None if self.raw is not None else self._by_hand()
        return fetch(self.raw_files(), folder, console, remedy)

    def check_raw(self, folder: Path) -> None:
        """Check that the files which the user has are there, by the publisher's names.

        Raises:
            DataError: if one is missing.
        """
        for file in self.raw_files():
            if not file.optional and not (folder / file.name).is_file():
                raise DataError(f"{folder / file.name}: missing, expected the publisher's file of {file.url}")

    def _file_names(self) -> str:
        names = [file.name for file in self.raw_files()]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def _by_hand(self) -> str:
        return f"or get it by other means and run `{self.prepare_command()} --raw FOLDER`"

    def _synthesise_into(self, folder: Path) -> None:
        """Synthesise to a folder beside its place, and rename it when it is whole."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        partial_folder = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{PARTIAL}")
        partial_folder.mkdir()
        try:
            self.synthesise(partial_folder, self.synthetic_sizes, SYNTHESIS_SEED)
            # where another process was quicker, it drew the same scenes, and ours are dropped
            give_name(partial_folder, folder)
        finally:
            shutil.rmtree(partial_folder, ignore_errors=True)

    def _write_preview(self) -> Path:
        path = self.plan("train").path.parent / PREVIEW
        scene_grid(self.preview_arrays(), self.num_background).save(path)
        return path

    def preview_arrays(self) -> Arrays:
        """Images `[n, H, W, 3]` and, where there are masks, segmentations for the preview picture."""
        plan = self.plan("test")
        store = Store.open(plan.path, f"run `{self.prepare_command()}`", plan.settings, "test")
        return store.read(list(range(min(8, len(store)))))


def share_out(count: int, published: Mapping[Split, int]) -> dict[Split, int]:
    """Share out `count` records: the published evaluation sizes, or their proportions if there are fewer.

    Every split gets at least one record.

    Raises:
        DataError: if there are fewer than three records.
    """
    total = sum(published.values())
    if count < len(SPLITS):
        raise DataError(
            f"{count} records, expected at least {len(SPLITS)}; give more of the publisher's files"
        )
    sizes = dict(published)
    if count < total:
        for split in ("val", "test"):
            sizes[split] = max(1, round(count * published[split] / total))
    sizes["train"] = count - sizes["val"] - sizes["test"]
    return {split: sizes[split] for split in SPLITS}


def first_of_each(parts: Mapping[Split, Sequence[T]], count: int | None) -> dict[Split, list[T]]:
    """The first items of every split, `count` in all, in the splits' proportions; None keeps all.

    A part of a split stays within the published one.

    Raises:
        DataError: if `count` or the number of items is below three.
    """
    sizes: dict[Split, int] = {split: len(part) for split, part in parts.items()}
    if count is not None and count < sum(sizes.values()):
        sizes = share_out(count, sizes)
    return {split: list(parts[split][: sizes[split]]) for split in SPLITS}
