"""Which images make which batch: the same global batches on any number of ranks, and after a resume."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from data_modules.store import DataError


class TrainingBatchSampler(BatchSampler):
    """One endless stream of shuffled batches, of which every epoch is the next stretch.

    Batch `g` of the stream is a slice of the permutation that belongs to (`seed`, `g // batches per
    permutation`); a permutation's last, partial batch is dropped. Rank `r` takes the `r`-th part of each
    global batch. An iterator starts at the number of batches the Trainer has trained on, so a run that is
    resumed in the middle of an epoch goes on with the next batch, whatever the loader's processes had fetched
    ahead. With `limit_train_batches`, the next epoch therefore goes on through the permutation.

    No global random generator is read or moved.

    Args:
        num_images: length of the dataset.
        batch_size: images per batch over all ranks.
        seed: order of the images.
        rank: this process.
        world_size: number of processes.
        position: number of batches trained on so far; None starts one permutation after the other.
        repeat: go around in the first `repeat` batches of the stream, for `overfit_batches`.
        count_passes: give image `i` of pass `p` through the images as `p * num_images + i`, for a dataset
            that draws something anew in every pass.

    Raises:
        DataError: if `batch_size` exceeds the dataset or is no multiple of `world_size`.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], int] | None = None,
        repeat: int | None = None,
        count_passes: bool = False,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise DataError(
                f"batch_size: {batch_size} on {world_size} ranks, expected a multiple of {world_size}; "
                "change `batch_size` or the number of devices"
            )
        if num_images < batch_size:
            raise DataError(
                f"batch_size: {batch_size}, expected at most the {num_images} images of the training set; "
                "choose a smaller `batch_size`"
            )
        super().__init__(range(num_images), batch_size // world_size, drop_last=True)
        self.num_images = num_images
        self.global_batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self._position = position
        self._repeat = repeat
        self._count_passes = count_passes
        self._passes = 0

    def __len__(self) -> int:
        """Number of batches in a permutation."""
        return self.num_images // self.global_batch_size

    def permutation(self, number: int) -> np.ndarray:
        """The `number`-th order of the images, `[num_images]`."""
        return np.random.default_rng((self.seed, number)).permutation(self.num_images)

    def __iter__(self) -> Iterator[list[int]]:
        # read now, not at the first batch: the Trainer makes the iterator when its counters are right
        start = self._passes * len(self) if self._position is None else self._position()
        self._passes += 1
        return self._batches(start)

    def _batches(self, start: int) -> Iterator[list[int]]:
        number, order = -1, np.empty(0, np.int64)
        # the Trainer takes what is left of its epoch; a full length never ends before that
        for batch in range(start, start + len(self)):
            if self._repeat is not None:
                batch %= self._repeat
            if number != batch // len(self):
                number = batch // len(self)
                order = self.permutation(number)
                if self._count_passes:
                    order = order + number * self.num_images
            first = batch % len(self) * self.global_batch_size + self.rank * self.batch_size
            yield order[first : first + self.batch_size].tolist()


class ShardedSampler(SequentialSampler):
    """The images in order, every `world_size`-th for this rank: nothing padded, nothing dropped.

    Args:
        num_images: length of the dataset.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, num_images: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(num_images))
        self._indices = range(rank, num_images, world_size)
        self._largest_share = len(range(0, num_images, world_size))

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        """Images of the rank that has most of them.

        The same on all ranks: Lightning does not start an evaluation of length 0, and then the ranks that
        have an image would wait for one that has none.
        """
        return self._largest_share


class ResumableLoader(DataLoader[Any]):
    """A loader over a `TrainingBatchSampler` that Lightning recognises as resumable.

    Its position comes from the Trainer. What a checkpoint keeps of it is only what the order of the images
    depends on, to warn when a resumed run would see another order.
    """

    def state_dict(self) -> dict[str, int]:
        """Seed and number of images."""
        sampler = self.batch_sampler
        assert isinstance(sampler, TrainingBatchSampler)
        return {"seed": sampler.seed, "num_images": sampler.num_images}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Warn about what differs from the run that is resumed."""
        differing = [
            f"{k} {state.get(k)} then, {v} now" for k, v in self.state_dict().items() if state.get(k) != v
        ]
        if differing:
            rank_zero_warn(
                f"the resumed run sees the training images in another order: {'; '.join(differing)}"
            )


def place_of(state: Mapping[str, Any], batch_size: int) -> tuple[int, int, int]:
    """Where a checkpoint stands among the images: batches, batches ahead of these, images in a batch.

    Args:
        state: of the data module, from the checkpoint.
        batch_size: of a checkpoint that does not say it.

    Raises:
        DataError: if these are no whole numbers.
    """
    place = state.get("batches", 0), state.get("ahead", 0), state.get("batch_size", batch_size)
    batches, ahead, size = place
    if not (all(type(number) is int for number in place) and batches >= 0 < size):
        raise DataError(
            f"the checkpoint's place among the images is {batches!r} and {ahead!r} batches of {size!r}, "
            "expected whole numbers; go on from another checkpoint"
        )
    return batches, ahead, size


def position_after(position: int, before: int, now: int, length: int) -> int:
    """A position in batches of another size, in batches of this: the same pass, the next whole batch.

    Args:
        position: in batches.
        before: images in one of these.
        now: images in a batch of the new size.
        length: images in a pass.
    """
    if before == now:
        return position
    passes, batch = divmod(position, max(1, length // before))
    return passes * (length // now) + min(-(-batch * before // now), length // now)


def length_of(dataset: Dataset[Any]) -> int:
    """Number of images in a dataset."""
    return len(dataset)  # type: ignore[arg-type]
