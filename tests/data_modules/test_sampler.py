"""Which images make which batch: without a Trainer, over ranks, and across a killed and resumed run."""

import warnings
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from pytorch_lightning.trainer.states import RunningStage
from torch import Tensor, nn

from data_modules.base import SceneDataModule, Split, StorePlan
from data_modules.sampler import ShardedSampler, TrainingBatchSampler
from data_modules.store import DataError

NUM_IMAGES = 43
BATCH_SIZE = 4
NUM_BATCHES = 10


class Toy(SceneDataModule):
    """43 training images whose pixels are their number, 7 for validation and testing."""

    name = "toy"

    def plan(self, split: Split) -> StorePlan:
        count = NUM_IMAGES if split == "train" else 7
        images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 8, 8, 3))
        return StorePlan(
            path=Path(self.root) / "toy" / split,
            count=count,
            record_bytes=192,
            settings={},
            source={},
            build=lambda: iter([{"images": images, "labels.number": np.arange(count)}]),
        )


def toy(root: Path, **settings: Any) -> Toy:
    return Toy(**({"image_size": 8, "num_slots": 2, "root": str(root), "batch_size": BATCH_SIZE} | settings))


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


class Recorder(LightningModule):
    """Keeps the indices of every batch; one weight, so that there is something to train."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.steps: list[tuple[int, int]] = []
        self.scored: list[int] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        assert (
            batch["image"][:, 0, 0, 0].tolist()
            == batch["index"].tolist()
            == batch["labels"]["number"].tolist()
        )
        self.seen.append(batch["index"].tolist())
        self.steps.append((self.current_epoch, batch_idx))
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.scored += batch["index"].tolist()

    test_step = validation_step

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return batch["index"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    data: SceneDataModule, folder: Path, steps: int, resume: Path | None = None, **trainer: Any
) -> Recorder:
    model = Recorder()
    settings: dict[str, Any] = {
        "callbacks": [ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")],
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    with warnings.catch_warnings():
        # workers, log intervals: nothing of ours. A warning about resuming would be.
        warnings.filterwarnings(
            "ignore",
            ".*(many workers|than the logging|is not empty|need to be provided|LeafSpec).*",
        )
        warnings.filterwarnings("error", ".*(resuming from a checkpoint|another order).*")
        Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **(settings | trainer),
        ).fit(model, data, ckpt_path=resume)
    return model


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_sees_the_same_batches(tmp_path: Path, num_workers: int) -> None:
    whole = fit(toy(tmp_path), tmp_path / "whole", 33)
    # an epoch is a permutation but for its last, partial batch
    assert len(whole.seen) == 33
    for epoch in range(3):
        images = flat(whole.seen[epoch * NUM_BATCHES : (epoch + 1) * NUM_BATCHES])
        assert len(set(images)) == len(images) == NUM_BATCHES * BATCH_SIZE
        assert images != sorted(images)
    assert whole.seen[:NUM_BATCHES] != whole.seen[NUM_BATCHES : 2 * NUM_BATCHES]
    assert whole.steps == [(step // NUM_BATCHES, step % NUM_BATCHES) for step in range(33)]
    # killed in the middle, one before an epoch's end, at its end, and one after
    for stop in (3, 9, 10, 11) if num_workers == 0 else (3, 10):
        folder = tmp_path / f"part{stop}"
        first = fit(toy(tmp_path, num_workers=num_workers), folder, stop)
        checkpoint = folder / f"step={stop}.ckpt"
        second = fit(toy(tmp_path, num_workers=num_workers), folder, 33, checkpoint)
        assert first.seen + second.seen == whole.seen, stop
        assert first.steps + second.steps == whole.steps, stop


@pytest.mark.parametrize(
    "trainer",
    [
        {"accumulate_grad_batches": 2},
        {"limit_train_batches": 6},
        {"limit_val_batches": 1.0, "val_check_interval": 4, "check_val_every_n_epoch": None},
        {"overfit_batches": 3},
    ],
    ids=str,
)
def test_resuming_under_other_settings_of_the_trainer(tmp_path: Path, trainer: dict[str, Any]) -> None:
    whole = fit(toy(tmp_path), tmp_path / "whole", 14, **trainer)
    first = fit(toy(tmp_path), tmp_path / "part", 5, **trainer)
    second = fit(toy(tmp_path), tmp_path / "part", 14, tmp_path / "part" / "step=5.ckpt", **trainer)
    assert first.seen + second.seen == whole.seen
    if "overfit_batches" in trainer:
        assert whole.seen[:3] * 4 == whole.seen[:12]
    elif "limit_train_batches" in trainer:
        # the second epoch of six goes on where the first one ended
        assert len(set(flat(whole.seen[:10]))) == 40


class Failing(ModelCheckpoint):
    """Fails at the ninth batch, before it is trained on."""

    def on_train_batch_start(
        self, trainer: Trainer, model: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 8:
            raise RuntimeError("the ninth")


def test_resumes_from_the_checkpoint_of_a_failure(tmp_path: Path) -> None:
    whole = fit(toy(tmp_path), tmp_path / "whole", 12)
    saving = OnExceptionCheckpoint(tmp_path, filename="failed")
    with pytest.raises(RuntimeError, match="the ninth"):
        fit(
            toy(tmp_path),
            tmp_path,
            12,
            callbacks=[saving, Failing(tmp_path / "never", every_n_train_steps=99)],
        )
    assert fit(toy(tmp_path), tmp_path / "after", 12, tmp_path / "failed.ckpt").seen == whole.seen[8:]


def test_resumes_from_a_checkpoint_of_an_epochs_end(tmp_path: Path) -> None:
    whole = fit(toy(tmp_path), tmp_path / "whole", 25)
    at_end = [
        ModelCheckpoint(tmp_path / "end", save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True)
    ]
    fit(toy(tmp_path), tmp_path, 15, callbacks=at_end)
    resumed = fit(toy(tmp_path), tmp_path / "after", 25, tmp_path / "end" / "epoch=0.ckpt")
    assert resumed.seen == whole.seen[10:]


def resuming(root: Path, batch_size: int) -> Toy:
    """A prepared module of a Trainer that is about to resume."""
    data = toy(root, batch_size=batch_size)
    data.prepare()
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.trainer.state.stage = RunningStage.TRAINING
    return data


@pytest.mark.parametrize(
    "place", [{"batches": "7"}, {"batches": -1}, {"batch_size": 0}, {"ahead": 1.5}, {"batches": None}]
)
def test_a_place_among_the_images_that_is_none(tmp_path: Path, place: dict[str, Any]) -> None:
    data = resuming(tmp_path, 4)
    data.load_state_dict({**data.state_dict(), "batches": 25})
    with pytest.raises(DataError, match="the checkpoint's place among the images is"):
        data.load_state_dict({**data.state_dict(), **place})


@pytest.mark.parametrize(
    ("batch_size", "place"), [(4, 2 * 10 + 5), (2, 2 * 21 + 10), (8, 2 * 5 + 3), (43, 2 + 1)]
)
def test_a_place_in_batches_of_another_size(tmp_path: Path, batch_size: int, place: int) -> None:
    """After 25 batches of 4, ten a pass: two passes and 20 images. It goes on with the next whole batch."""
    data = resuming(tmp_path, batch_size)
    data.load_state_dict({"images": None, "batch_size": 4, "batches": 25, "ahead": 0})
    assert 25 + data.state_dict()["ahead"] == place


def test_a_resumed_run_with_another_order_warns(tmp_path: Path) -> None:
    fit(toy(tmp_path), tmp_path / "part", 3)
    with pytest.raises(UserWarning, match="another order: seed 0 then, 1 now"):
        fit(toy(tmp_path, seed=1), tmp_path / "part", 6, tmp_path / "part" / "step=3.ckpt")


def test_global_generators_are_left_alone(tmp_path: Path) -> None:
    data = toy(tmp_path)
    data.prepare()
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    for _ in data.train_dataloader():
        pass
    for _ in data.val_dataloader():
        pass
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_without_a_trainer(tmp_path: Path) -> None:
    data = toy(tmp_path)
    data.prepare()
    loader = data.train_dataloader()
    assert len(loader) == NUM_BATCHES
    epochs = [[batch["index"].tolist() for batch in loader] for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [NUM_BATCHES] * 2
    assert epochs == fit_order(tmp_path)
    other = [batch["index"].tolist() for batch in toy(tmp_path, seed=1).train_dataloader()]
    assert other != epochs[0]


def fit_order(root: Path) -> list[list[list[int]]]:
    seen = fit(toy(root), root / "order", 2 * NUM_BATCHES).seen
    return [seen[:NUM_BATCHES], seen[NUM_BATCHES:]]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batches(world_size: int) -> None:
    one = list(TrainingBatchSampler(NUM_IMAGES, BATCH_SIZE, seed=3))
    ranks = [
        list(TrainingBatchSampler(NUM_IMAGES, BATCH_SIZE, 3, rank, world_size)) for rank in range(world_size)
    ]
    assert [flat(parts) for parts in zip(*ranks, strict=True)] == one
    assert {len(batch) for rank in ranks for batch in rank} == {BATCH_SIZE // world_size}


def test_batch_size_must_suit() -> None:
    with pytest.raises(DataError, match="batch_size: 4 on 3 ranks, expected a multiple of 3"):
        TrainingBatchSampler(NUM_IMAGES, BATCH_SIZE, world_size=3)
    with pytest.raises(DataError, match="batch_size: 64, expected at most the 43 images"):
        TrainingBatchSampler(NUM_IMAGES, 64)


@pytest.mark.parametrize("num_images", [0, 1, 7, 12])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_evaluation_neither_pads_nor_drops(num_images: int, world_size: int) -> None:
    ranks = [list(ShardedSampler(num_images, rank, world_size)) for rank in range(world_size)]
    assert sorted(flat(ranks)) == list(range(num_images))
    for rank, indices in enumerate(ranks):
        assert indices == list(range(rank, num_images, world_size))
        # the same on all ranks, or Lightning would leave out those without an image
        assert len(ShardedSampler(num_images, rank, world_size)) == len(ranks[0]) >= len(indices)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_trainer_evaluates_every_image_once(tmp_path: Path, num_workers: int) -> None:
    data, model = toy(tmp_path, num_workers=num_workers), Recorder()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.validate(model, data, verbose=False)
    assert model.scored == list(range(7))
    trainer.test(model, data, verbose=False)
    assert model.scored == list(range(7)) * 2
    predicted = trainer.predict(model, data)
    assert predicted is not None
    assert torch.cat(predicted).tolist() == list(range(7))  # type: ignore[arg-type]


class FourRanks:
    """What the data module asks a Trainer of four ranks."""

    world_size, global_rank, overfit_batches = 4, 3, 0.0

    def __init__(self, use_distributed_sampler: bool) -> None:
        self._accelerator_connector = type("", (), {"use_distributed_sampler": use_distributed_sampler})()


def test_more_ranks_need_lightnings_sampler_off(tmp_path: Path) -> None:
    data = toy(tmp_path)
    data.prepare()
    data.trainer = FourRanks(True)  # type: ignore[assignment]
    for loader in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(DataError, match="use_distributed_sampler: True, expected False"):
            loader()
    data.trainer = FourRanks(False)  # type: ignore[assignment]
    assert [batch["index"].tolist() for batch in data.val_dataloader()] == [[3]]
    assert data.train_dataloader().batch_sampler.batch_size == 1  # type: ignore[union-attr]


class Huge(Toy):
    """What takes hours is not made by `fit`."""

    prepares_on_fit = False


def test_fit_does_not_make_what_takes_long(tmp_path: Path) -> None:
    data = Huge(image_size=8, num_slots=2, root=str(tmp_path))
    with pytest.raises(
        DataError, match=f"run `lightning-genesis prepare {__name__}.Huge --root {tmp_path} --image_size 8`"
    ):
        data.prepare_data()
    data.prepare()
    data.prepare_data()


def test_a_disk_too_small_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_modules.base.free_bytes", lambda folder: 9000)
    with pytest.raises(
        DataError, match=r"9\.0 kB free, expected 10\.9 kB for toy; free space or choose another `root`"
    ):
        toy(tmp_path / "root").prepare()
    assert not (tmp_path / "root").exists()
