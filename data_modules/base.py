"""What all datasets share: preparation, the order of the images, loaders and the batch they give."""

import atexit
import multiprocessing
import os
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from pytorch_lightning.loops.progress import _ProcessedTracker
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from data_modules.disk import free_bytes, size_text
from data_modules.on_device import DeviceDataset
from data_modules.sampler import (
    ResumableLoader,
    ShardedSampler,
    TrainingBatchSampler,
    length_of,
    place_of,
    position_after,
)
from data_modules.store import Arrays, DataError, Store
from data_modules.store_writer import write_store
from lightning_genesis.classes import class_path, constructor_parameters

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Batch = dict[str, Any]

# arguments that do not change the prepared data
_LOADING = ("batch_size", "num_workers", "seed", "num_slots", "on_device")


@dataclass(frozen=True)
class StorePlan:
    """How one split becomes a store."""

    path: Path
    """Folder of the store. Other settings must give another one."""
    count: int
    """Number of images, or the most there can be."""
    record_bytes: int
    """Bytes per image in the store."""
    settings: Mapping[str, Any]
    """Plain values the data depend on; a store made with others is refused."""
    source: Mapping[str, Any]
    """Where the data come from, noted in the manifest."""
    build: Callable[[], Iterator[Arrays]]
    """Gives the records in chunks: `images` uint8 `[n, H, W, 3]`, `segmentations` uint8 `[n, H, W]` if there
    are masks, `labels.<key>` `[n]` and `objects.<key>` `[n, M, ...]` if there are any."""


def make_batch(indices: list[int], arrays: Mapping[str, NDArray[Any]]) -> Batch:
    """Turn records into the batch that every model reads.

    Returns:
        `image` uint8 `[B, 3, H, W]` and `index` int64 `[B]`; where the arrays are there, `segmentation` uint8
        `[B, H, W]` and dicts `labels` of `[B]` and `objects` of `[B, M, ...]`.
    """
    images = np.ascontiguousarray(arrays["images"].transpose(0, 3, 1, 2))
    batch: Batch = {"image": torch.from_numpy(images), "index": torch.tensor(indices, dtype=torch.int64)}
    if "segmentations" in arrays:
        batch["segmentation"] = torch.from_numpy(arrays["segmentations"])
    for name, array in arrays.items():
        group, _, key = name.partition(".")
        if key:
            batch.setdefault(group, {})[key] = torch.from_numpy(array)
    return batch


class StoreDataset(Dataset[Batch]):
    """Batches out of a store; `dataset[i]` is a batch of one."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        return make_batch(indices, self.store.read(indices))


def _leave_signals_to_the_run(worker: int) -> None:
    """A scheduler signals all processes of a job; one that loses its loaders could not save itself."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_loaders() -> None:
    """A loader that outlives an error would not heed the SIGTERM that Python sends it at the end."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _as_is(batch: Batch) -> Batch:
    """Collate nothing: datasets give whole batches."""
    return batch


class SceneDataModule(LightningDataModule):
    """A dataset of scenes: prepares itself, owns the order of the images, gives batches as plain dicts.

    A new dataset gives its `name` and either `plan`, which says how each split becomes a store, or its own
    `prepare` and `open_dataset`. The constructor only keeps settings; nothing is read or written before
    `prepare` or `setup`.

    In training, `batch_size` counts the images of a step over all ranks (before gradient accumulation), so
    one rank and many see the same global batches. Evaluation goes through the images in order, image `i` on
    rank `i % world_size`. Under more than one rank the Trainer needs `use_distributed_sampler=False`.

    Args:
        image_size: height and width of the images.
        num_slots: the paper's K.
        num_background: ids of `segmentation` below this are background.
        root: folder for prepared data.
        batch_size: images per training step over all ranks.
        num_workers: loader processes; 0 reads in the training process.
        seed: order of the training images.
        on_device: hold all training images in the memory of the device, and read them there.

    Raises:
        DataError: if a setting is out of its range.
    """

    name: str | None = None
    """NAME in `lightning-genesis prepare NAME`."""
    prepares_on_fit: bool = True
    """Whether `fit` makes missing stores by itself. False for what takes more than minutes: then it stops
    with the command to run, and does not compare checksums at every start."""
    draws_every_pass: bool = False
    """Whether the dataset draws anew in every pass through the training images. It is then asked for image
    `i` of pass `p` by the number `p * length + i`, which makes the draw the same after a resume and on any
    rank."""
    test_split: Split = "test"
    """The images that `test` goes through; some published numbers are of the validation set."""
    has_objects: bool = False
    """Whether batches have `objects`, factors of what is seen; stores of earlier versions may lack them."""
    splits: tuple[Split, ...] = SPLITS
    """The splits that there are; a set of test images alone has one."""
    shows_towers: bool = False
    """Whether scenes are towers of blocks, whose structure `test` judges in samples."""
    # a rank may have no image of a small evaluation set
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        *,
        image_size: int,
        num_slots: int,
        num_background: int = 1,
        root: str = "data",
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        on_device: bool = False,
    ) -> None:
        super().__init__()
        smallest = {"image_size": 1, "num_slots": 1, "batch_size": 1, "num_workers": 0, "seed": 0}
        given = {
            "image_size": image_size,
            "num_slots": num_slots,
            "batch_size": batch_size,
            "num_workers": num_workers,
            "seed": seed,
        }
        for key, value in given.items():
            if value < smallest[key]:
                raise DataError(f"{key}: {value}, expected {smallest[key]} or more; correct the setting")
        self.image_size = image_size
        self.num_slots = num_slots
        self.num_background = num_background
        self.root = root
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed, self.on_device = seed, on_device
        self._datasets: dict[Split, Dataset[Batch]] = {}
        self._on_device: DeviceDataset | None = None
        self._ahead = 0  # batches that a run's images count for beyond its steps; see `state_dict`

    def plan(self, split: Split) -> StorePlan:
        """How a split becomes a store."""
        raise NotImplementedError

    def open_dataset(self, split: Split) -> Dataset[Batch]:
        """Open a split; the dataset gives whole batches by `__getitems__`.

        Raises:
            DataError: if it is not prepared or damaged.
        """
        plan = self.plan(split)
        return StoreDataset(Store.open(plan.path, f"run `{self.prepare_command()}`", plan.settings, split))

    def prepare_command(self) -> str:
        """The command that prepares these data with these settings; your own are named by their class."""
        ours = type(self).__module__.partition(".")[0] == __package__
        words = ["lightning-genesis", "prepare", str(self.name) if ours else class_path(type(self))]
        parameters = constructor_parameters(type(self))
        first = ("root", "raw", "synthetic", "subset")
        for key in (
            *(key for key in first if key in parameters),
            *(key for key in parameters if key not in first),
        ):
            value = getattr(self, key, parameters[key].default)
            if key == "root" or (key not in _LOADING and value != parameters[key].default):
                words += [f"--{key}", shlex.quote(str(value))]
        return " ".join(words)

    def prepare(self) -> None:
        """Make the stores that are missing and check the others byte by byte; doing it twice does no harm.

        Raises:
            DataError: if a store is damaged, or the disk too small.
        """
        missing: dict[Split, StorePlan] = {}
        for split in self.splits:
            plan = self.plan(split)
            # a dangling link counts as something in the way
            if os.path.lexists(plan.path):
                Store.open(plan.path, f"run `{self.prepare_command()}`", plan.settings, split).verify()
            else:
                missing[split] = plan
        if missing:
            self._make_stores(missing)

    def _make_stores(self, plans: Mapping[Split, StorePlan]) -> None:
        console = Console(stderr=True)
        free = free_bytes(Path(self.root))
        needed = {split: plan.count * plan.record_bytes for split, plan in plans.items()}
        parts = ", ".join(
            f"{split} {plan.count:,} images ({size_text(needed[split])})" for split, plan in plans.items()
        )
        console.print(
            f"{self.name}: {parts} into {self.root}; {size_text(free)} free", highlight=False, soft_wrap=True
        )
        if (total := sum(needed.values())) > free:
            raise DataError(
                f"{self.root}: {size_text(free)} free, expected {size_text(total)} for {self.name}; "
                "free space or choose another `root`"
            )
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            for split, plan in plans.items():
                task = progress.add_task(f"{self.name} {split}", total=plan.count)
                write_store(
                    plan.path,
                    plan.build(),
                    name=str(self.name),
                    split=split,
                    settings=plan.settings,
                    source=plan.source,
                    advance=partial(progress.advance, task),
                )

    def prepare_data(self) -> None:
        """Lightning's hook, on one process per node: prepare, or stop with the command if that takes long.

        Raises:
            DataError: as `prepare`.
        """
        if self.prepares_on_fit:
            self.prepare()
        else:
            for split in self.splits:
                self.open_dataset(split)

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that a stage needs.

        Raises:
            DataError: if one is not prepared or damaged.
        """
        stages: dict[str | None, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": (self.test_split,),
            "predict": (),
            None: self.splits,
        }
        for split in stages[stage]:
            self.dataset(split)
        if stage == "predict":
            self.predict_dataset()

    def dataset(self, split: Split) -> Dataset[Batch]:
        """A split, opened once."""
        if split not in self._datasets:
            self._datasets[split] = self.open_dataset(split)
        return self._datasets[split]

    def examples(self, split: Split, count: int) -> Batch:
        """Images to look at, spread evenly over a split, since the views of a scene follow each other.

        Args:
            split: opened if it is not yet.
            count: images; all if the split has fewer.

        Raises:
            DataError: if the split has none.
        """
        dataset = cast(Any, self.dataset(split))
        if not len(dataset):
            raise DataError(f"{self.name or type(self).__name__}: there are no {split} images to look at")
        count = min(count, len(dataset))
        return cast(Batch, dataset.__getitems__([i * len(dataset) // count for i in range(count)]))

    def predict_dataset(self) -> Dataset[Batch]:
        """What `predict` runs over: the test images."""
        return self.dataset("test")

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches, continued where the Trainer stands.

        Raises:
            DataError: if `batch_size` suits neither the number of ranks nor the set.
        """
        dataset = self.dataset("train")
        rank, world_size = self._rank()
        sampler = TrainingBatchSampler(
            length_of(dataset),
            self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            position=None if self.trainer is None else self._batches_trained,
            repeat=self._overfit_batches(length_of(dataset) // self.batch_size),
            count_passes=self.draws_every_pass,
        )
        here = {"num_workers": 0, "pin_memory": False, "persistent_workers": False} if self.on_device else {}
        dataset = self._held_on_device(dataset) if self.on_device else dataset
        return ResumableLoader(dataset, batch_sampler=sampler, **(self._loader_arguments() | here))

    def _held_on_device(self, dataset: Dataset[Batch]) -> Dataset[Batch]:
        if type(dataset) is not StoreDataset or self.draws_every_pass:
            raise DataError(f"on_device: {self.name} does not take its images out of a store; leave it out")
        if self._on_device is None:
            device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
            self._on_device = DeviceDataset(dataset.store, device)
        return self._on_device

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation images in order."""
        return self._evaluation_loader(self.dataset("val"))

    def test_dataloader(self) -> DataLoader[Any]:
        """The images of `test_split` in order."""
        return self._evaluation_loader(self.dataset(self.test_split))

    def predict_dataloader(self) -> DataLoader[Any]:
        """The images of `predict_dataset` in order."""
        return self._evaluation_loader(self.predict_dataset())

    def _evaluation_loader(self, dataset: Dataset[Batch]) -> DataLoader[Any]:
        rank, world_size = self._rank()
        sampler = ShardedSampler(length_of(dataset), rank, world_size)
        batch_size = max(1, self.batch_size // world_size)
        return DataLoader(dataset, sampler=sampler, batch_size=batch_size, **self._loader_arguments())

    def _loader_arguments(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "collate_fn": _as_is,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.num_workers > 0,
            "worker_init_fn": _leave_signals_to_the_run,
            # a loader draws a seed for its workers at every start: not from torch's own generator
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def _rank(self) -> tuple[int, int]:
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1:
            return 0, 1
        if getattr(trainer._accelerator_connector, "use_distributed_sampler", False):
            raise DataError(
                "trainer.use_distributed_sampler: True, expected False, because the data module shards by "
                "itself; give `--trainer.use_distributed_sampler=false`"
            )
        return trainer.global_rank, trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        """Which images a run trains on, and where it stands among them, for its checkpoint.

        The position is the Trainer's count of `batches` and `ahead`, which is not 0 in a run that went on
        with another batch size.
        """
        return {
            "images": self.fingerprint(),
            "batch_size": self.batch_size,
            "batches": self._batches_counted(),
            "ahead": self._ahead,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the position of a checkpoint.

        Raises:
            DataError: if a run is resumed on other training images, or the checkpoint holds something else.
        """
        if self.trainer is None or not self.trainer.training:
            return
        found, expected = self.fingerprint(), state_dict.get("images")
        if expected not in (None, found):
            raise DataError(
                f"{self.root}: the training images of {self.name or type(self).__name__} are not those that "
                f"the run was trained on (digest {str(found)[:12]}, expected {str(expected)[:12]}); give the "
                "run its data, or start a new run from its weights with `--init_from`"
            )
        # by the count in the file: the Trainer may restore its own later, or have made its loader already
        batches, ahead, batch_size = place_of(state_dict, self.batch_size)
        length = length_of(self.dataset("train"))
        self._ahead = position_after(batches + ahead, batch_size, self.batch_size, length) - batches

    def fingerprint(self) -> str | None:
        """Digest of the training images, without reading them all; None where there is no such thing."""
        dataset = self.dataset("train")
        return dataset.store.digest if isinstance(dataset, StoreDataset) else None

    def _batches_trained(self) -> int:
        """Number of batches in all epochs, restored from a checkpoint before the loader is made."""
        return self._batches_counted() + self._ahead

    def _batches_counted(self) -> int:
        """The Trainer's count; `processed`: at a batch's end it is not counted as completed yet."""
        if self.trainer is None:
            return 0
        total = self.trainer.fit_loop.epoch_loop.batch_progress.total
        assert isinstance(total, _ProcessedTracker)
        return total.processed

    def _overfit_batches(self, num_batches: int) -> int | None:
        limit: float = getattr(self.trainer, "overfit_batches", 0.0)
        return max(1, limit if isinstance(limit, int) else int(limit * num_batches)) if limit else None
