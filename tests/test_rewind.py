"""A run rewound to an earlier checkpoint (SRI, Appendix A.4.2), from the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_genesis.cli import main
from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.test_cli import TINY, assert_equal_states, rows

Fit = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run of 8 steps that kept what it was after 4."""
    folder = tmp_path_factory.mktemp("rewind")
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "pictures": {"num_images": 0}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert _fit("--run.name", "first") == 0
    return folder


def _fit(*args: str) -> int:
    return main(["fit", "--config", "tiny.yaml", "--trainer.enable_progress_bar", "false", *args])


@pytest.fixture
def fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Trains under a name and returns the run's last checkpoint."""
    monkeypatch.chdir(folder)

    def run(name: str, *args: str) -> dict[str, Any]:
        assert _fit("--run.name", name, *args) == 0
        return read_checkpoint(folder / "runs" / name / "checkpoints/last.ckpt")

    return run


def logged_steps(run: Path) -> list[int]:
    return [int(row["step"]) for row in rows(run / "metrics.csv") if row["train/loss"]]


def test_everything_is_taken_up(folder: Path, fit: Fit) -> None:
    """The same batches and noise give the same run: weights, moments and constraint were all taken up."""
    start = folder / "runs/first/checkpoints/step-4.ckpt"
    first = read_checkpoint(folder / "runs/first/checkpoints/last.ckpt")
    again = fit("again", "--ckpt_path", str(start))
    assert again["global_step"] == first["global_step"] == 8
    assert_equal_states(first["state_dict"], again["state_dict"])
    moments, same = (x["optimizer_states"][0]["state"] for x in (first, again))
    for index, entry in moments.items():
        assert_equal_states(entry, same[index])
    assert logged_steps(folder / "runs/again") == [5, 7]
    assert logged_steps(folder / "runs/first") == [1, 3, 5, 7]  # and that run is as it was


@pytest.mark.slow  # that the others are alike is no accident
def test_other_batches_give_another_run(folder: Path, fit: Fit) -> None:
    """Which is the point: the same again would fail again."""
    start = folder / "runs/first/checkpoints/step-4.ckpt"
    first = read_checkpoint(folder / "runs/first/checkpoints/last.ckpt")["state_dict"]
    other = fit("other", "--ckpt_path", str(start), "--data.seed", "1", "--change", "data.seed")
    assert other["global_step"] == 8
    assert other["state_dict"]["objective.step"] == 8
    weight = "network.posterior_head.1.weight"
    assert not torch.equal(other["state_dict"][weight], first[weight])
    assert not torch.equal(other["state_dict"]["objective.average"], first["objective.average"])
    # The constraint was taken up: after one step it would be the error itself, far from this average.
    saved = read_checkpoint(start)["state_dict"]
    one = fit(
        "one",
        "--ckpt_path",
        str(start),
        "--data.seed",
        "1",
        "--change",
        "data.seed",
        "--trainer.max_steps",
        "5",
    )["state_dict"]
    assert one["objective.step"] == 5
    moved = (one["objective.average"] - saved["objective.average"]).abs()
    assert 0.0 < float(moved / saved["objective.average"].abs()) < 0.01
    assert float((one["objective.beta"] / saved["objective.beta"]).log().abs()) < 1.0


def test_weights_alone(folder: Path, fit: Fit) -> None:
    start = folder / "runs/first/checkpoints/step-4.ckpt"
    args = ("--init_from", str(start), "--model.learning_rate", "1e-30", "--trainer.max_steps", "2")
    warm = fit("warm", *args)
    assert warm["global_step"] == 2
    assert warm["state_dict"]["objective.step"] == 2
    assert {float(entry["step"]) for entry in warm["optimizer_states"][0]["state"].values()} == {2.0}
    saved = read_checkpoint(start)["state_dict"]
    for name, value in warm["state_dict"].items():
        if not name.startswith("objective."):
            torch.testing.assert_close(value, saved[name], rtol=0, atol=1e-25)
    assert logged_steps(folder / "runs/warm") == [1]


def test_rewinding_in_place(folder: Path, fit: Fit) -> None:
    """Under its own name a run drops the rows of what it takes back."""
    fit("place")
    start = folder / "runs/place/checkpoints/step-4.ckpt"
    before = rows(folder / "runs/place/metrics.csv")
    fit("place", "--ckpt_path", str(start), "--data.seed", "1", "--change", "data.seed")
    after = rows(folder / "runs/place/metrics.csv")
    assert logged_steps(folder / "runs/place") == [1, 3, 5, 7]
    losses = [[row["train/loss"] for row in found if row["train/loss"]] for found in (before, after)]
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][2:] != losses[1][2:]
