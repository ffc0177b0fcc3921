"""What a run has by default where there is a GPU, checked without one."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from data_modules import MultiDSprites
from data_modules.on_device import DeviceDataset
from data_modules.store import DataError
from lightning_genesis import models
from lightning_genesis.callbacks import checkpoints
from lightning_genesis.callbacks.checkpoints import CheckpointOptions, RunCheckpoints
from lightning_genesis.commands.options import trainer_defaults
from lightning_genesis.commands.quiet import quieten
from lightning_genesis.commands.trainer_options import STEP_HOOKS, check_clock, settle, without_empty_hooks
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import SceneModel
from lightning_genesis.models.parallel import not_in_every_forward, send_buffers
from tests.ranks.tiny import NAMES, tiny

STARTED = ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS_PER_NODE")


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, 1),
        ({"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4"}, 4),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS_PER_NODE": "8"}, 8),
        ({"SLURM_NTASKS_PER_NODE": "8"}, 1),  # the batch script itself
        ({"LOCAL_WORLD_SIZE": "2"}, 1),
    ],
)
def test_one_device_unless_more_processes_were_started(
    environment: dict[str, str], devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in STARTED:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert trainer_defaults()["devices"] == devices


@pytest.mark.parametrize(
    ("given", "trains", "expected"),
    [
        ({}, True, True),
        ({}, False, None),
        ({"benchmark": False}, True, False),
        ({"deterministic": True}, True, None),
    ],
)
def test_cudnn_looks_for_fast_algorithms_in_training(
    given: dict[str, Any], trains: bool, expected: bool | None
) -> None:
    assert settle(given, "fit" if trains else "test", resumes=False).get("benchmark") is expected


def test_lightnings_advice_on_an_option_of_ours_is_not_shown() -> None:
    quieten()
    for name in ("pytorch_lightning", "lightning_fabric"):
        logger = logging.getLogger(f"{name}.utilities.rank_zero")
        make = logger.makeRecord
        advice = "You are using a CUDA device; you should set `torch.set_float32_matmul_precision('high')`"
        shown = [
            bool(logger.filter(make("", 20, "", 0, text, (), None)))
            for text in (advice, "Using bfloat16 AMP")
        ]
        assert shown == [False, True]


def test_validation_by_time_needs_one_clock() -> None:
    trainer = pl.Trainer(accelerator="cpu", val_check_interval="00:00:10:00", logger=False)
    check_clock(trainer)
    several: Any = SimpleNamespace(world_size=2, _val_check_time_interval=trainer._val_check_time_interval)
    with pytest.raises(ConfigurationError, match=r"^trainer\.val_check_interval: a time, on 2 ranks"):
        check_clock(several)
    several._val_check_time_interval = None
    check_clock(several)


class Once(pl.Callback):
    """Has one hook of a step."""

    def __init__(self) -> None:
        self.calls = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.calls += 1


class Inherits(Once):
    """Has it from another."""


def test_hooks_that_do_nothing_are_not_called(sprites: Any) -> None:
    callbacks = [Once(), Inherits(), pl.Callback()]
    without_empty_hooks(callbacks)
    for callback in callbacks[:2]:
        assert [name for name in STEP_HOOKS if callable(getattr(callback, name))] == ["on_train_batch_end"]
    assert not any(callable(getattr(callbacks[2], name)) for name in STEP_HOOKS)
    assert callable(callbacks[2].on_train_start)
    fit(models.VAE(1, 32, latent_dim=2), sprites(), 2, callbacks)
    assert [callback.calls for callback in callbacks[:2]] == [2, 2]  # type: ignore[attr-defined]


# ---------------------------------------------------------------- checkpoints


def saved_at(
    options: CheckpointOptions, seconds_per_step: float, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Steps after which `last.ckpt` was written in 6000 steps."""
    now, found = [0.0], list[int]()
    monkeypatch.setattr(checkpoints, "monotonic", lambda: now[0])
    callback = RunCheckpoints(Path("unused"), options)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    epoch_loop = SimpleNamespace(_batches_that_stepped=0)
    trainer: Any = SimpleNamespace(global_step=0, loggers=[], strategy=strategy)
    trainer.fit_loop = SimpleNamespace(epoch_loop=epoch_loop)
    trainer.save_checkpoint = lambda path, **_: found.append(trainer.global_step)
    module: Any = SimpleNamespace(stop_agreed=False)
    callback.on_train_start(trainer, module)
    for step in range(0, 6001, 500):
        trainer.global_step, now[0] = step, step * seconds_per_step
        callback.on_train_batch_start(trainer, module, None, step)
    return found


def test_checkpoints_are_not_written_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [1000, 2000, 3000, 4000, 5000, 6000]
    options = CheckpointOptions(keep_every=None)
    assert saved_at(options, 1.0, monkeypatch) == every
    assert saved_at(options, 0.021, monkeypatch) == [3000, 6000]  # 21 s per 1000 steps
    assert saved_at(options, 0.003, monkeypatch) == []
    assert saved_at(CheckpointOptions(last_every=1000, keep_every=None), 0.003, monkeypatch) == every


# ---------------------------------------------------------------- batches


class Toy(models.VAE):
    """Notes what a step gets."""

    got: dict[str, set[str]]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.got["train"] = {*batch}
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.got["val"] = {*batch}
        super().validation_step(batch, batch_idx)


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = str(tmp_path_factory.mktemp("data"))

    def make(**options: Any) -> MultiDSprites:
        sizes = {"train_size": 12, "val_size": 4, "test_size": 4}
        return MultiDSprites(image_size=32, root=root, batch_size=4, **sizes, **options)

    make().prepare()
    return make


def fit(
    model: SceneModel, data: MultiDSprites, steps: int = 5, callbacks: list[pl.Callback] | None = None
) -> None:
    trainer = pl.Trainer(
        callbacks=callbacks,
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)


@pytest.mark.parametrize("on_device", [False, True])
def test_training_moves_what_it_reads(sprites: Any, on_device: bool) -> None:
    torch.manual_seed(0)
    model = Toy(1, 32, latent_dim=2)
    model.got = {}
    fit(model, sprites(on_device=on_device))
    assert model.got["train"] == {"image", "index"}
    assert {"image", "index", "segmentation", "objects"} <= model.got["val"]


def test_images_on_the_device_are_the_same_batches(sprites: Any) -> None:
    """Over two passes, and on each of two ranks."""
    plain, held = sprites(), sprites(on_device=True, num_workers=3)
    for data in (plain, held):
        data.setup("fit")
    loaders = plain.train_dataloader(), held.train_dataloader()
    assert isinstance(loaders[1].dataset, DeviceDataset)
    assert loaders[1].num_workers == 0
    for _ in range(2):
        for ours, theirs in zip(*loaders, strict=True):
            assert torch.equal(ours["image"], theirs["image"])
            assert torch.equal(ours["index"], theirs["index"])
    assert held.fingerprint() == plain.fingerprint()
    assert held.prepare_command() == plain.prepare_command()


def test_images_that_do_not_fit_or_are_drawn_anew_are_refused(
    sprites: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sprites(on_device=True)
    data.setup("fit")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    with pytest.raises(DataError, match=r"^on_device: the training images are .* free on cuda"):
        DeviceDataset(data.dataset("train").store, torch.device("cuda"))
    monkeypatch.setattr(type(data), "draws_every_pass", True)
    with pytest.raises(DataError, match=r"^on_device: multi_dsprites does not take its images"):
        data.train_dataloader()


# ---------------------------------------------------------------- ranks


@pytest.fixture
def process_group(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'ranks'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", NAMES)
def test_ddp_sends_no_constants_before_a_forward(name: str, process_group: Any) -> None:
    model = getattr(models, name)(num_slots=3, image_size=32, **tiny(name).options)
    wrapper = DistributedDataParallel(model)
    sent = {
        key for key, value in model.named_buffers() for found in wrapper.modules_buffers if value is found
    }
    assert sent == ({"network.step_weights"} if name == "EfficientMORL" else set())


def test_running_means_go_to_all_before_an_evaluation(
    process_group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.Genesis(3, 32, mask_dim=8, component_dim=8, norm="batch")
    wrapper = DistributedDataParallel(model)
    running = {
        name: value for name, value in model.named_buffers() if name.endswith(("_mean", "_var", "_tracked"))
    }
    assert running
    assert {*running} <= {*not_in_every_forward(model)}
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(dist, "broadcast", lambda value, source: sent.append(value))
    send_buffers(model, wrapper)
    assert {id(value) for value in sent} == {id(value) for value in running.values()}
    sent.clear()
    send_buffers(model, model)  # one process without a wrapper
    assert not sent


def with_batch_norm() -> SceneModel:
    return models.Genesis(3, 32, mask_dim=8, component_dim=8, norm="batch")


def rank_with_means_of_its_own(rank: int, meeting: str) -> None:
    model = with_batch_norm()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for value in means_of(model):
        value.fill_(5.0 - rank)
    wrapper = DistributedDataParallel(model)
    assert all((value == 5.0 - rank).all() for value in means_of(model))
    send_buffers(model, wrapper)
    assert all((value == 5.0).all() for value in means_of(model))
    dist.destroy_process_group()


def means_of(model: SceneModel) -> list[torch.Tensor]:
    return [value for name, value in model.named_buffers() if name.endswith("running_mean")]


@pytest.mark.slow
def test_two_ranks_have_the_running_means_of_the_first(tmp_path: Path) -> None:
    assert means_of(with_batch_norm())
    # not forked: a lock that another thread of this process holds would never be let go
    torch.multiprocessing.start_processes(
        rank_with_means_of_its_own, (f"file://{tmp_path / 'ranks'}",), nprocs=2, start_method="spawn"
    )


def test_a_buffer_of_ones_own_is_sent_as_ever(process_group: Any) -> None:
    model = models.VAE(1, 32, latent_dim=2)
    model.register_buffer("codes", torch.zeros(3))
    wrapper = DistributedDataParallel(model)
    assert [value is model.codes for value in wrapper.modules_buffers] == [True]
