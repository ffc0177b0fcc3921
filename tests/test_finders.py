"""Lightning's finder of learning rates leaves nothing behind; runs with finders are resumed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import LearningRateFinder
from torch import Tensor

from data_modules import MultiDSprites
from lightning_genesis import models
from lightning_genesis.cli import main
from lightning_genesis.objectives import GECO, FixedBeta, Objective, SoftplusGECO
from lightning_genesis.storage.checkpoint import DurableCheckpointIO, read_checkpoint
from tests.ranks.tiny import tiny
from tests.test_cli import TINY

SIZES = {"image_size": 32, "train_size": 24, "val_size": 4, "test_size": 4}
STEPS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    MultiDSprites(**SIZES, root=str(root)).prepare()
    return root


def train(
    root: Path,
    name: str,
    objective: Objective,
    batch_size: int,
    callbacks: Sequence[pl.Callback],
    folder: Path,
) -> dict[str, Tensor]:
    """Every tensor of a model, its objective and its optimiser after a few steps."""
    data = MultiDSprites(**SIZES, root=str(root), batch_size=batch_size)
    torch.manual_seed(0)
    options = {**tiny(name).options, "objective": objective, "learning_rate": 1e-3}
    model = getattr(models, name)(num_slots=data.num_slots, image_size=data.image_size, **options)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
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
    found = dict(model.state_dict())
    for number, entry in trainer.optimizers[0].state_dict()["state"].items():
        found |= {f"{number} {key}": value for key, value in entry.items()}
    return found


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("GenesisV2", lambda: GECO(step_size=1e-2)),
        ("GenesisV2", lambda: FixedBeta(warmup_steps=8)),
        ("SRI", lambda: GECO(step_size=1e-2)),
        ("MONet", lambda: SoftplusGECO(step_size=1e-2, warmup_steps=2)),
        ("EfficientMORL", lambda: SoftplusGECO(step_size=1e-2, warmup_steps=2)),
    ],
)
def test_training_after_finders_is_training_without(
    root: Path, name: str, objective: Any, tmp_path: Path
) -> None:
    """Tensor for tensor, after one that tries learning rates up to 1."""
    rates = LearningRateFinder(num_training_steps=3, update_attr=False, early_stop_threshold=None)
    plain = train(root, name, objective(), 8, [], tmp_path)
    found = train(root, name, objective(), 8, [rates], tmp_path)
    assert plain.keys() == found.keys()
    assert {key for key, value in plain.items() if not torch.equal(value, found[key])} == set()


def test_a_run_with_finders_is_resumed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the batch size and the learning rate that were found, under a schedule, as if not stopped."""
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
    assert whole["state_dict"].keys() == half["state_dict"].keys()
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, half["state_dict"][key]), key
