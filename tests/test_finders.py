"""Lightning's finders of learning rate and batch size leave nothing behind; runs with them are resumed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder
from torch import Tensor

from data_modules import MultiDSprites
from lightning_genesis import models
from lightning_genesis.callbacks.weight_average import WeightAverage
from lightning_genesis.cli import main
from lightning_genesis.objectives import GECO, FixedBeta, Objective, SelfSettingGECO, SoftplusGECO
from lightning_genesis.storage.checkpoint import DurableCheckpointIO, read_checkpoint
from tests.ranks.command import rows
from tests.ranks.tiny import NAMES, tiny
from tests.test_cli import TINY

SIZES = {"image_size": 32, "train_size": 24, "val_size": 4, "test_size": 4}
STEPS = 5
"""Over the end of the first pass through the images, of three batches."""
BATCH_SIZE = 8
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "fixed": lambda: FixedBeta(warmup_steps=8),
    "GECO": lambda: GECO(step_size=1e-2),
    "self-setting": lambda: SelfSettingGECO(step_size=1e-2, warmup_steps=2),
    "softplus": lambda: SoftplusGECO(step_size=1e-2, warmup_steps=2),
}


def rate_finder() -> LearningRateFinder:
    """Tries learning rates up to 1."""
    return LearningRateFinder(num_training_steps=3, update_attr=False, early_stop_threshold=None)


def size_finder() -> BatchSizeFinder:
    """Tries 4 and `BATCH_SIZE`, with which it goes on."""
    return BatchSizeFinder(init_val=BATCH_SIZE // 2, max_trials=2, steps_per_trial=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    MultiDSprites(**SIZES, root=str(root)).prepare()
    return root


def train(
    root: Path,
    folder: Path,
    name: str,
    objective: Objective,
    callbacks: Sequence[pl.Callback] = (),
    options: Mapping[str, Any] = {},
    batch_size: int = BATCH_SIZE,
    accumulate: int = 1,
) -> dict[str, Tensor]:
    """Every tensor of a model, its objective and its optimiser after a few steps."""
    data = MultiDSprites(**SIZES, root=str(root), batch_size=batch_size)
    torch.manual_seed(0)
    options = {**tiny(name).options, **options, "objective": objective, "learning_rate": 1e-3}
    model = getattr(models, name)(num_slots=data.num_slots, image_size=data.image_size, **options)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        accumulate_grad_batches=accumulate,
        default_root_dir=str(folder),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        plugins=[DurableCheckpointIO()],
        callbacks=[*callbacks],
    )
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == STEPS
    assert data.batch_size == BATCH_SIZE
    found = dict(model.state_dict())
    for number, entry in trainer.optimizers[0].state_dict()["state"].items():
        found |= {f"{number} {key}": value for key, value in entry.items()}
    return found


def differing(plain: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> set[str]:
    assert plain.keys() == found.keys()
    return {key for key, value in plain.items() if not torch.equal(value, found[key])}


def check_finders(root: Path, folder: Path, name: str, objective: str, **options: Any) -> None:
    """Tensor for tensor: the size is found from another one, as a rule."""
    plain = train(root, folder, name, OBJECTIVES[objective](), **options)
    found = train(root, folder, name, OBJECTIVES[objective](), [rate_finder()], **options)
    assert differing(plain, found) == set()
    found = train(root, folder, name, OBJECTIVES[objective](), [size_finder()], batch_size=2, **options)
    assert differing(plain, found) == set()


@pytest.mark.parametrize(("name", "objective"), [("GenesisV2", "GECO")])
def test_training_after_finders_is_training_without(
    root: Path, name: str, objective: str, tmp_path: Path
) -> None:
    check_finders(root, tmp_path, name, objective)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", NAMES)
def test_every_model_and_objective_after_finders(
    root: Path, name: str, objective: str, tmp_path: Path
) -> None:
    check_finders(root, tmp_path, name, objective)
    for variant in tiny(name).variants if objective == "GECO" else ():
        check_finders(root, tmp_path, name, objective, options=variant)


@pytest.mark.slow
def test_finders_among_accumulated_gradients(root: Path, tmp_path: Path) -> None:
    check_finders(root, tmp_path, "GenesisV2", "GECO", accumulate=2)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [2, 3, BATCH_SIZE])
@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=["rate first", "size first"])
def test_both_finders_and_averaged_weights(
    root: Path, tmp_path: Path, order: Sequence[int], batch_size: int
) -> None:
    plain = train(root, tmp_path, "GenesisV2", OBJECTIVES["GECO"](), [WeightAverage(decay=0.5)])
    finders = [rate_finder(), size_finder()]
    callbacks = [WeightAverage(decay=0.5), *(finders[number] for number in order)]
    found = train(root, tmp_path, "GenesisV2", OBJECTIVES["GECO"](), callbacks, batch_size=batch_size)
    assert differing(plain, found) == set()


@pytest.mark.slow  # four runs of many steps; above, the finders leave no trace
def test_a_run_with_finders_is_resumed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the batch size and the learning rate that were found, under a schedule, as if not stopped.

    And as a run that was given both from the start, in every value that it logs.
    """
    monkeypatch.chdir(tmp_path)
    lightning = "pytorch_lightning.callbacks"
    rates = {"num_training_steps": 15, "min_lr": 1e-5, "max_lr": 1e-2, "early_stop_threshold": None}
    sizes = {"init_val": 4, "max_trials": 2, "steps_per_trial": 1}
    config = {
        **TINY,
        "data": {**TINY["data"], "init_args": {**SIZES, "root": str(root), "batch_size": 2}},
        "trainer": {
            **TINY["trainer"],
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": f"{lightning}.BatchSizeFinder", "init_args": sizes},
                {"class_path": f"{lightning}.LearningRateFinder", "init_args": rates},
            ],
        },
        "pictures": {"num_images": 0},
    }
    (tmp_path / "finders.yaml").write_text(yaml.safe_dump(config))
    fit = ["fit", "--config", "finders.yaml", "--model.decay_steps", "100", "--ckpt_path", "last"]
    assert main([*fit, "--run.name", "whole"]) == 0
    assert main([*fit, "--run.name", "half", "--trainer.max_steps", "4"]) == 0
    assert main([*fit, "--run.name", "half"]) == 0
    whole, half = (
        read_checkpoint(tmp_path / f"runs/{name}/checkpoints/last.ckpt") for name in ("whole", "half")
    )
    assert whole["MultiDSprites"] == half["MultiDSprites"]
    assert whole["MultiDSprites"]["batch_size"] == 8
    found = whole["hyper_parameters"]["learning_rate"]
    assert found != 1e-4
    for state in (whole, half):
        (group,) = state["optimizer_states"][0]["param_groups"]
        assert group["lr"] == pytest.approx(found * 0.5 ** (8 / 100))
    given = {**config, "trainer": {**config["trainer"], "callbacks": None}}
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    options = ["--data.batch_size", "8", "--model.learning_rate", repr(found), "--run.name", "given"]
    assert main(["fit", "--config", "given.yaml", "--model.decay_steps", "100", *options]) == 0
    plain = read_checkpoint(tmp_path / "runs/given/checkpoints/last.ckpt")
    assert differing(plain["state_dict"], whole["state_dict"]) == set()
    assert differing(plain["state_dict"], half["state_dict"]) == set()
    logs = [
        rows(tmp_path / "runs" / name / "metrics.csv", ("train/", "geco/", "val/"))
        for name in ("given", "whole", "half")
    ]
    assert logs[0] == logs[1] == logs[2]
    assert len(logs[0]) == 6  # of every other step, and two validations
    # an evaluation needs no finder
    test = ["test", "--config", "runs/whole/config.yaml", "--ckpt_path", "last", "--fid.num_images", "0"]
    assert main(test) == 0
