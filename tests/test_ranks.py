"""One process and several, started as the command starts them.

The same global batch with the same noise gives the same run; an evaluation scores every image once. Models
are those of `tests/ranks/tiny.py`, where the exceptions are named.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_genesis.cli import main
from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.ranks.command import apart, experiment, largest_difference, records, rows, run
from tests.ranks.tiny import NAMES, tiny
from tests.test_cli import TINY
from tests.wandb_file import read_run

TOLERANCE = 1e-5
LOGGED = ("train/", "geco/", "val/")
MIXING = [name for name in NAMES if tiny(name).mixing]
VARIANTS = [(name, variant) for name in NAMES for variant in tiny(name).variants]


def descent(name: str, steps: int, **options: Any) -> dict[str, Any]:
    """A run with plain gradient descent, which passes rounding errors on as they are.

    Adam divides by the gradient's own size: where that is near zero, rounding decides the direction of a
    whole step. It is compared in float64.
    """
    plain = {"optimizer": "SGD", "learning_rate": tiny(name).learning_rate}
    config = experiment(name, {**tiny(name).options, **plain, **options})
    config["trainer"].update(max_steps=steps, val_check_interval=steps)
    return in_double(config) if tiny(name).double else config


def in_double(config: dict[str, Any]) -> dict[str, Any]:
    config["trainer"]["plugins"] = [{"class_path": "pytorch_lightning.plugins.DoublePrecision"}]
    return set_probe(config, double=True)


def set_probe(config: dict[str, Any], **options: bool) -> dict[str, Any]:
    config["trainer"]["callbacks"][0]["init_args"] = options
    return config


def compare(folder: Path, one: str, other: str, ranks: int, steps: int) -> dict[str, float]:
    """How far a run on `ranks` ranks is from one on a single process, by what is compared.

    Logged values and β: relative where they are larger than 1. Weights: absolute. Gradients: relative to the
    largest element of the whole gradient, first and last step.
    """
    (first,), several = records(folder / one, "fit", 1), records(folder / other, "fit", ranks)
    logs = [rows(folder / name / "metrics.csv", LOGGED) for name in (one, other)]
    assert len(logs[0]) == len(logs[1]) > steps  # every step, and a validation
    logged = [max(apart(*pair).values()) for pair in zip(*logs, strict=True)]
    found = {"logged": max(logged), "weights": 0.0, "gradients": 0.0, "objective": 0.0}
    for record in several:
        assert record["global_step"] == first["global_step"] == steps
        for key, value in first["final"].items():
            kind = "objective" if key.startswith("objective.") else "weights"
            scale = max(1.0, float(value.abs().max())) if kind == "objective" else 1.0
            difference = float((value - record["final"][key]).abs().max()) / scale
            found[kind] = max(found[kind], difference)
        assert first["gradients"].keys() == record["gradients"].keys() == {0, steps - 1}
        for step, gradient in first["gradients"].items():
            largest = max(float(tensor.abs().max()) for tensor in gradient.values())
            difference = largest_difference(gradient, record["gradients"][step])[0] / largest
            found["gradients"] = max(found["gradients"], difference)
    print(f"{one} against {other}: " + ", ".join(f"{key} {value:.1e}" for key, value in found.items()))
    return found


def assert_moved(record: Mapping[str, Any]) -> None:
    """Training did something that a comparison could miss."""
    first, last = (
        {key: value for key, value in record[when].items() if not key.startswith("objective.")}
        for when in ("initial", "final")
    )
    assert largest_difference(first, last)[0] > 10 * TOLERANCE


def assert_ranks_equal(several: list[dict[str, Any]], final: bool = True) -> None:
    """Ranks start equal before any broadcast, and end equal, GECO's state included, which is never sent."""
    for record in several[1:]:
        for when in ("initial", "final") if final else ("initial",):
            for key, value in several[0][when].items():
                assert torch.equal(value, record[when][key]), (when, key)


def images_of_step(several: list[dict[str, Any]], step: int) -> list[int]:
    return [index for record in several for index in record["seen"][step]]


# ---------------------------------------------------------------- training


def test_two_ranks_train_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 4
    config = descent("GenesisV2", steps)
    config["data"]["init_args"]["val_size"] = 1  # and none for the second rank
    several = run(tmp_path, "fit", "two", config, ranks=2)
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "two.yaml", "--run.name", "one"]) == 0  # a process takes seconds to start
    (single,) = records(tmp_path / "runs/one", "fit", 1)
    for step in range(steps):
        assert images_of_step(several, step) == single["seen"][step]
        assert len(several[0]["seen"][step]) == len(several[1]["seen"][step]) == 2
    assert max(compare(tmp_path / "runs", "one", "two", 2, steps).values()) < TOLERANCE
    assert_moved(single)
    assert_ranks_equal(several)
    assert several[0]["final"]["objective.beta"].item() != 1.0
    assert [record["counts"] for record in several] == [
        {"here": 1, "everywhere": 1},
        {"here": 0, "everywhere": 1},
    ]


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's runs of 50 steps; "accumulated" ones take two micro-batches of 4, "large" one batch of 8."""
    # in float32 rounding grows over 50 steps by what the machine's instructions are
    folder, config = tmp_path_factory.mktemp(request.param), in_double(descent(request.param, 50))
    run(folder, "fit", "one", config)
    run(folder, "fit", "two", config, ranks=2)
    run(folder, "fit", "large", config, "--data.batch_size", "8")
    config["trainer"].update(accumulate_grad_batches=2, val_check_interval=100)  # counts micro-batches
    run(folder, "fit", "one-accumulated", config)
    run(folder, "fit", "two-accumulated", config, ranks=2)
    return folder / "runs"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other", "ranks"),
    [
        ("one", "two", 2),
        ("large", "one-accumulated", 1),
        ("large", "two-accumulated", 2),
        ("one-accumulated", "two-accumulated", 2),
    ],
)
def test_fifty_steps(trained: Path, one: str, other: str, ranks: int) -> None:
    found = compare(trained, one, other, ranks, 50)
    (single,), several = records(trained / one, "fit", 1), records(trained / other, "fit", ranks)
    assert_moved(single)
    assert_ranks_equal(several)
    seen = [index for step in range(len(several[0]["seen"])) for index in images_of_step(several, step)]
    assert seen == [index for step in single["seen"] for index in step]
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_fifty_steps_of_adam_in_double(name: str, tmp_path: Path) -> None:
    config = in_double(experiment(name, tiny(name).options))
    run(tmp_path, "fit", "large", config, "--data.batch_size", "8")
    config["trainer"].update(accumulate_grad_batches=2, val_check_interval=100)
    run(tmp_path, "fit", "two-accumulated", config, ranks=2)
    found = compare(tmp_path / "runs", "large", "two-accumulated", 2, 50)
    assert_moved(records(tmp_path / "runs/large", "fit", 1)[0])
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXING)
def test_exceptions_do_differ(name: str, tmp_path: Path) -> None:
    config = descent(name, 2, **tiny(name).mixing)
    run(tmp_path, "fit", "one", config)
    several = run(tmp_path, "fit", "two", config, ranks=2)
    assert_ranks_equal(several, final=False)
    assert compare(tmp_path / "runs", "one", "two", 2, 2)["gradients"] > TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in NAMES), *VARIANTS])
def test_ordinary_training_draws_different_noise(
    name: str, options: Mapping[str, Any], tmp_path: Path
) -> None:
    """Parts that an option leaves out leave no parameter for which DDP would wait."""
    config = set_probe(experiment(name, {**tiny(name).options, **options}), indexed_noise=False)
    args = ("--trainer.max_steps", "3", "--trainer.val_check_interval", "3")
    several = run(tmp_path, "fit", "run", config, *args, ranks=2)
    assert_ranks_equal(several)
    draws = [tuple(draw.tolist()) for record in several for draw in record["noise"]]
    assert len(draws) == len(set(draws)) == 6  # two ranks, three steps, each from another state


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if tiny(name).one_slot])
def test_one_slot(name: str, tmp_path: Path) -> None:
    config = set_probe(experiment(name, tiny(name).options), indexed_noise=False)
    args = ("--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--data.num_slots", "1")
    several = run(tmp_path, "fit", "run", config, *args, ranks=2)
    assert_ranks_equal(several)


@pytest.mark.slow
def test_two_ranks_resume_bit_for_bit(tmp_path: Path) -> None:
    args = ("--trainer.enable_progress_bar", "false")
    config: dict[str, Any] = deepcopy(TINY)
    config["trainer"]["callbacks"] = experiment("GenesisV2", {})["trainer"]["callbacks"]
    set_probe(config, indexed_noise=False)
    run(tmp_path, "fit", "whole", config, *args, ranks=2)
    run(tmp_path, "fit", "stopped", config, *args, "--trainer.max_steps", "5", ranks=2)
    run(tmp_path, "fit", "stopped", config, *args, "--ckpt_path", "last", ranks=2)
    whole, resumed = (
        read_checkpoint(tmp_path / "runs" / name / "checkpoints/last.ckpt") for name in ("whole", "stopped")
    )
    assert resumed["global_step"] == whole["global_step"] == 8
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
    first, second = whole["random_states"]
    assert not torch.equal(first["torch"], second["torch"])  # each rank draws noise of its own


# ---------------------------------------------------------------- evaluation


@pytest.mark.slow
@pytest.mark.parametrize("num_images", [7, 1])
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_every_image_is_scored_once(command: str, num_images: int, tmp_path: Path) -> None:
    sizes = {"val_size": num_images, "test_size": num_images, "batch_size": 2}
    config = experiment("GenesisV2", tiny("GenesisV2").options, **sizes)
    (single,) = run(tmp_path, command, "one", config)
    several = run(tmp_path, command, "two", config, ranks=2)
    shares = [[index for batch in record["seen"] for index in batch] for record in several]
    assert shares == [list(range(0, num_images, 2)), list(range(1, num_images, 2))]
    assert [index for batch in single["seen"] for index in batch] == list(range(num_images))
    if command == "predict":
        places = [tmp_path / "runs" / name / "predictions" for name in ("one", "two")]
        indices = [
            [image["id"] for image in json.loads((p / "coco.json").read_text())["images"]] for p in places
        ]
        assert indices == [list(range(1, num_images + 1))] * 2
        assert [(p / "overview-rank1.png").is_file() for p in places] == [False, num_images > 1]
        written = [sorted(path for path in place.iterdir() if path.is_dir()) for place in places]
        assert [len(folders) for folders in written] == [num_images] * 2
        for folder, other in zip(*written, strict=True):
            assert folder.name == other.name
            files = sorted(path.name for path in folder.iterdir())
            assert files == sorted(path.name for path in other.iterdir())
            same = [(folder / name).read_bytes() == (other / name).read_bytes() for name in files]
            # rounding may move a pixel of some picture by one level
            assert sum(same) >= len(same) - 2
        return
    for record in [single, *several]:
        assert record["counts"]["everywhere"] == num_images
    assert [record["counts"]["here"] for record in several] == [len(share) for share in shares]
    logs = [rows(tmp_path / "runs" / n / f"{command}.csv", ("val/", "test/")) for n in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 1
    assert len(logs[0][0]) > 15  # six scores of two kinds of masks, and the means
    differences = apart(logs[0][0], logs[1][0])
    assert max(differences.values()) < 1e-6, differences


@pytest.mark.slow
def test_one_row_in_wandb(tmp_path: Path) -> None:
    config = experiment("GenesisV2", tiny("GenesisV2").options)
    config["run"]["wandb"] = True
    logged = []
    for name, ranks in (("one", 1), ("two", 2)):
        run(tmp_path, "test", name, config, ranks=ranks)
        (file,) = (tmp_path / "runs" / name).glob("wandb/offline-run-*/run-*.wandb")
        scored = [row for row in read_run(file)[1] if "test/elbo" in row]
        assert len(scored) == 1
        logged.append({key: value for key, value in scored[0].items() if key.startswith("test/")})
    assert max(apart(*logged).values()) < 1e-6
