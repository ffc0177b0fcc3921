"""A run goes on as it is, or, where the user says so, with other settings; and old checkpoints still load."""

import csv
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lightning_genesis
from data_modules import MultiDSprites
from data_modules.sampler import TrainingBatchSampler
from lightning_genesis.cli import main
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import SlotAttention
from lightning_genesis.runs.identity import compare, options_of
from lightning_genesis.runs.results import read_results
from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.quick import few

OLD = Path(__file__).parent / "data" / "slot_attention_0.1.ckpt"
TINY: dict[str, Any] = {
    "model": {
        "class_path": "lightning_genesis.models.MONet",
        "init_args": {
            "feature_dim": 8,
            "latent_dim": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 12,
            "objective": {
                "class_path": "lightning_genesis.objectives.GECO",
                "init_args": {"step_size": 0.01},
            },
        },
    },
    "data": {
        "class_path": "data_modules.MultiDSprites",
        "init_args": {"image_size": 32, "train_size": 26, "val_size": 4, "test_size": 4, "batch_size": 4},
    },
    "trainer": {
        **{"max_steps": 8, "val_check_interval": 8, "log_every_n_steps": 1, "accelerator": "cpu"},
        **{"enable_progress_bar": False},
    },
    "checkpoint": {"last_every": 4},
    "pictures": {"num_images": 0},
    "run": {"wandb": False},
}
Fit = Callable[..., int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of eight steps, stopped in the middle of its warm-up, and one of twelve."""
    folder = tmp_path_factory.mktemp("changes")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", "tiny.yaml", "--run.name", "run"]) == 0
        whole = ["--trainer.max_steps", "12", "--run.name", "whole"]
        assert main(["fit", "--config", "tiny.yaml", *whole]) == 0
    return folder


@pytest.fixture
def go_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Goes on with a copy of the run for four steps."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> int:
        resume = ["--run.name", "run", "--ckpt_path", "last", "--trainer.max_steps", "12"]
        return main(["fit", "--config", "tiny.yaml", *resume, *args])

    return run


def last(run: str = "run") -> dict[str, Any]:
    return read_checkpoint(f"runs/{run}/checkpoints/last.ckpt")


def log(name: str) -> list[dict[str, str]]:
    with open(f"runs/{name}/metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def test_a_resume_in_the_middle_of_a_warm_up_is_bit_for_bit(go_on: Fit) -> None:
    assert go_on() == 0
    for name in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert repr(last()[name]) == repr(last("whole")[name])
    assert [row["train/loss"] for row in log("run")] == [row["train/loss"] for row in log("whole")]


def test_a_lower_learning_rate_keeps_all_else(go_on: Fit, caplog: pytest.LogCaptureFixture) -> None:
    before = last()
    assert go_on("--model.learning_rate", "1e-4", "--change", "learning_rate") == 0
    assert "note: step 8: model.learning_rate 0.001 -> 0.0001" in caplog.messages
    after, whole = last(), last("whole")
    (group,) = after["optimizer_states"][0]["param_groups"]
    # the next step's: the warm-up goes on where it was, to the new height
    assert (group["lr"], group["initial_lr"]) == (pytest.approx(1e-4 * 12 / 12), 1e-4)
    assert all(state["step"] == 12 for state in after["optimizer_states"][0]["state"].values())
    assert after["state_dict"]["objective.step"] == whole["state_dict"]["objective.step"]
    # the first step after the change saw the same weights and images: β and loss go on without a jump
    rows = log("run")
    assert [row["train/loss"] for row in rows[:9]] == [row["train/loss"] for row in log("whole")][:9]
    assert rows[9]["train/loss"] != log("whole")[9]["train/loss"]
    beta = [float(row["geco/monet/beta"]) for row in rows]
    steps = [abs(after / before - 1) for before, after in pairwise(beta)]
    assert steps[7] < 2 * max(steps[:7])
    # and the weights moved a tenth as far as they would have: Adam's steps are proportional to its rate
    moved, would = (
        sum(
            float((run["state_dict"][key] - before["state_dict"][key]).abs().sum())
            for key in before["state_dict"]
        )
        for run in (after, whole)
    )
    assert 0.05 < moved / would < 0.2
    text = Path("runs/run/config.yaml").read_text()
    assert text.startswith("# changed at step 8: model.learning_rate 0.001 -> 0.0001\n")
    config = yaml.safe_load(text)
    assert config["model"]["init_args"]["learning_rate"] == 1e-4
    assert config["change"] is None  # a later resume has to ask again
    # the result tells it
    assert (
        main(["test", "--config", "runs/run/config.yaml", "--ckpt_path", "last", "--fid.num_images", "0"])
        == 0
    )
    (result,) = read_results("runs/run")
    assert result.options["changes"] == ["step 8: model.learning_rate 0.001 -> 0.0001"]
    # and so does every later checkpoint: what is now the run's is asked for no more
    assert go_on("--model.learning_rate", "1e-4", "--trainer.max_steps", "13") == 0
    assert last()["changes"] == [[8, "model.learning_rate", 0.001, 0.0001]]


def test_another_batch_size_goes_on_among_the_same_images(
    go_on: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = SlotAttention.training_step

    def watch(model: Any, batch: Any, batch_idx: int) -> Any:
        seen.extend(batch["index"].tolist())
        return original(model, batch, batch_idx)

    monkeypatch.setattr("lightning_genesis.models.MONet.training_step", watch)
    assert go_on("--data.batch_size", "3", "--change", "data.batch_size") == 0
    # eight steps of 4: one pass of 6 batches (26 images), then 2 of the second; 3 x 3 images cover these
    second = TrainingBatchSampler(26, 3, seed=0).permutation(1)
    assert seen == second[9 : 9 + 4 * 3].tolist()
    assert last()["MultiDSprites"]["ahead"] == 8 + 3 - 8


@pytest.mark.parametrize(
    ("args", "line"),
    few(
        [
            (
                ["--model.learning_rate", "1e-4"],
                "model.learning_rate was 0.001 in training and is 0.0001 here",
            ),
            (["--data.seed", "3"], "data.seed was 0 in training and is 3 here"),
            (
                ["--trainer.precision", "bf16-mixed"],
                "trainer.precision was None in training and is bf16-mixed here",
            ),
            (["--trainer.accumulate_grad_batches", "2"], "--change trainer.accumulate_grad_batches"),
            (["--trainer.gradient_clip_val", "1"], "--change trainer.gradient_clip_val"),
            (["--seed_everything", "5"], "seed_everything was 0 in training and is 5 here"),
            (["--model.objective.goal", "0.1"], "model.objective.goal"),
            (
                ["--model.optimizer", "SGD", "--change", "optimizer"],
                "--change optimizer: cannot be changed in a run",
            ),
            (
                ["--change", "learning_rat"],
                "no option that a run is compared by (did you mean learning_rate?)",
            ),
            (
                ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
                "num_ranks was 1 in training and is 2 here",
            ),
        ],
        ["--model.learning_rate", "1e-4"],
        ["--seed_everything", "5"],
        ["--model.objective.goal", "0.1"],
        ["--model.optimizer", "SGD", "--change", "optimizer"],
        ["--change", "learning_rat"],
    ),
)
def test_what_is_not_named_is_refused(
    go_on: Fit, capsys: pytest.CaptureFixture[str], args: list[str], line: str
) -> None:
    capsys.readouterr()
    assert go_on(*args) == 2
    (error,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("lightning-genesis")]
    assert line in error
    assert last()["global_step"] == 8


def test_other_images_and_an_emptied_optimiser_are_refused(
    go_on: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning_genesis.storage.checkpoint import write_checkpoint

    whole = last()
    shutil.rmtree("data")
    smaller = MultiDSprites(image_size=32, train_size=26, val_size=4, test_size=4, batch_size=4, root="data")
    smaller.prepare()
    store = next(Path("data").rglob("train*/images.npy"), None) or next(Path("data").rglob("*train*"))
    assert store.exists()
    assert go_on("--trainer.max_steps", "8") == 0  # made again, the images are the same
    changed = {**whole, "MultiDSprites": {**whole["MultiDSprites"], "images": "0" * 64}}
    write_checkpoint("runs/run/checkpoints/last.ckpt", changed)
    capsys.readouterr()
    assert go_on() == 2
    assert "are not those that the run was trained on (digest" in capsys.readouterr().err
    emptied = {**whole, "optimizer_states": [{**whole["optimizer_states"][0], "state": {}}]}
    write_checkpoint("runs/run/checkpoints/last.ckpt", emptied)
    assert go_on() == 2
    assert "the state of its optimiser is empty after 8 steps" in capsys.readouterr().err


@pytest.mark.slow  # what is compared is a table, and the other tests resume runs
def test_what_may_differ_is_not_asked_for(go_on: Fit) -> None:
    free = ["--trainer.val_check_interval", "3", "--checkpoint.last_every", "5", "--data.num_workers", "1"]
    assert go_on(*free, "--trainer.log_every_n_steps", "2") == 0
    assert repr(last()["state_dict"]) == repr(last("whole")["state_dict"])


def test_comparison_of_options() -> None:
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "a.B",
            "init_args": {"std": 0.7, "objective": {"class_path": "c.GECO", "init_args": {"goal": 0.5}}},
        },
        "data": {"class_path": "d.E", "init_args": {"root": "here", "seed": 1}},
        "trainer": {"max_steps": 5, "precision": None},
    }
    options = options_of(config)
    assert options == {
        **{"seed_everything": 0, "model": "B", "model.std": 0.7, "model.objective": "GECO"},
        **{"model.objective.goal": 0.5, "data": "E", "data.seed": 1, "trainer.precision": None},
    }
    assert compare(options, options, (), 3, "x.ckpt") == []
    # an option that has come since is not compared
    assert compare(options, {**options, "model.new": 1}, (), 3, "x.ckpt") == []
    other = {**options, "model.objective.goal": 0.6, "model.std": 0.5}
    changes = compare(options, other, ["objective", "std"], 3, "x.ckpt")
    assert [str(change) for change in changes] == [
        "step 3: model.std 0.7 -> 0.5",
        "step 3: model.objective.goal 0.5 -> 0.6",
    ]
    with pytest.raises(ConfigurationError, match=r"add --change model\.std"):
        compare(options, other, ["goal"], 3, "x.ckpt")
    assert compare({"a": float("nan")}, {"a": float("nan")}, (), 0, "") == []


def test_a_checkpoint_of_the_version_before_loads_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by the state before arguments were said once, with its configuration."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "tiny"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(OLD, run / "checkpoints" / "last.ckpt")
    shutil.copy(OLD.with_suffix(".yaml"), run / "config.yaml")
    model, data = lightning_genesis.load(run)
    assert isinstance(model, SlotAttention)
    assert (model.hparams["warmup_steps"], model.hparams["decay_steps"]) == (4, 10)
    assert data.batch_size == 4
    again = SlotAttention.load_from_checkpoint(OLD)
    for key, value in read_checkpoint(OLD)["state_dict"].items():
        assert torch.equal(again.state_dict()[key], value)
    resume = ["--ckpt_path", "last", "--trainer.max_steps", "6", "--run.name", "tiny"]
    assert main(["fit", "--config", str(run / "config.yaml"), *resume]) == 0
    assert last("tiny")["global_step"] == 6
    (group,) = last("tiny")["optimizer_states"][0]["param_groups"]
    # the warm-up of 4 steps is over; the decay runs from step 0, as published
    assert group["lr"] == pytest.approx(4e-4 * 0.5 ** (6 / 10))
