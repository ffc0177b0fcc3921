"""What a run keeps of its parameters, hardware, time and source, and what the report makes of it."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_genesis.callbacks import run_card
from lightning_genesis.callbacks.run_card import RunCard
from lightning_genesis.cli import main
from lightning_genesis.runs.card import Card, find_commit, read_card, write_card
from tests.report.fake_runs import make_run

CARD = Card(1000, 900, "a GPU x 4", "32-true", 500, 7200.0, "0123456789ab", {"torch": "2.15.0"})


def fit(folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, spent: float) -> Card:
    """The card of a run that goes on from a step for some seconds, and validates in the middle."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(run_card, "monotonic", lambda: clock.now)
    monkeypatch.setattr(run_card, "find_commit", lambda source: "abc")
    model: Any = torch.nn.Linear(3, 2)
    model.bias.requires_grad = False
    model.device = torch.device("cpu")
    trainer: Any = SimpleNamespace(global_step=step, is_global_zero=True, world_size=2, precision="32-true")
    card = RunCard(folder)
    before = read_card(folder)
    card.on_validation_end(trainer, model)  # a check before training is no part of it
    assert read_card(folder) == before
    card.on_train_start(trainer, model)
    clock.now += spent
    trainer.global_step = step + 10
    card.on_exception(trainer, model, KeyboardInterrupt())
    found = read_card(folder)
    assert found is not None
    return found


def test_time_adds_up_over_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fit(tmp_path, monkeypatch, 0, 30.0)
    assert (first.parameters, first.trained, first.steps, first.seconds) == (8, 6, 10, 30.0)
    assert first.hardware.endswith(f"{torch.get_num_threads()} threads x 2")
    assert torch.__version__.startswith(first.versions["torch"])
    assert fit(tmp_path, monkeypatch, 10, 12.5).seconds == 42.5
    assert fit(tmp_path, monkeypatch, 0, 5.0).seconds == 5.0, "a run that starts anew"


def test_the_commit_of_files_that_git_has(tmp_path: Path) -> None:
    """Not that of a repository in which a package is merely installed."""

    def git(*words: str) -> None:
        own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", "-C", str(tmp_path), *own, *words], check=True, capture_output=True)

    source = tmp_path / "package.py"
    source.write_text("1")
    assert find_commit(source) is None
    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    assert find_commit(source) is None, "git does not have it"
    git("add", "package.py")
    git("commit", "-m", "ours")
    head = (tmp_path / ".git/refs/heads/main").read_text(encoding="utf-8")[:12]
    assert find_commit(source) == head
    source.write_text("2")
    assert find_commit(source) == f"{head}+"


@pytest.mark.parametrize(
    "change", [{"parameters": "1"}, {"seconds": -1}, {"versions": {"a": 1}}, {"format": 2}]
)
def test_a_damaged_card_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    write_card(tmp_path, CARD)
    assert read_card(tmp_path) == CARD
    content = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    (tmp_path / "card.json").write_text(json.dumps({**content, **change}))
    assert read_card(tmp_path) is None
    (tmp_path / "card.json").unlink()
    assert read_card(tmp_path) is None


def test_the_report_has_a_card_for_an_experiment(tmp_path: Path) -> None:
    folders = [make_run(tmp_path, "genesisv2_objectsroom", seed, {"ari_fg": 0.8}) for seed in range(3)]
    write_card(folders[0], CARD)
    write_card(folders[1], replace(CARD, seconds=3600.0, commit=None, hardware="<b>"))
    assert main(["report", *map(str, folders), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for text in (
        "<dt>Parameters</dt><dd>1,000, 900 trained</dd>",
        "<dt>Hours per run</dt><dd>1 to 2</dd>",
        "<dt>Hours in all</dt><dd>3</dd>",
        "<dt>Hardware</dt><dd>a GPU x 4; &lt;b&gt;</dd>",
        "<dt>Commit</dt><dd>0123456789ab; an installed package</dd>",
        "<dt>Not known</dt><dd>genesisv2_objectsroom-seed2</dd>",
    ):
        assert text in page
