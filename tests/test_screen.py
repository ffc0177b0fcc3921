"""What a command says when it is done."""

import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_genesis.callbacks.checkpoints import CheckpointOptions, RunCheckpoints
from lightning_genesis.callbacks.results import ResultWriter
from lightning_genesis.commands import screen
from lightning_genesis.commands.quiet import MESSAGES
from lightning_genesis.commands.screen import closing, show_scores
from lightning_genesis.evaluation.deviations import in_words
from lightning_genesis.report.published import find_published
from lightning_genesis.runs.results import Result

METRICS = {
    "ari_fg": 0.7834,
    "ari_fg_attention": 0.81,
    "msc_fg": 0.61,
    "msc_fg_attention": 0.5,
    "elbo": -6543.2,
    "fid": 120.4,
    "kid": 0.01234,
    "num_active": 8.9,
    "num_active_mae": 4.2,
    "mse": 0.00123,
    "sc": math.nan,
    "ari": 0.2,
    "nll": 6000.0,
    "kl": 543.0,
}
DEVIATIONS = [
    "images of 32x32, 64x64 in the protocol",
    "scores over 24 images, 320 in the protocol",
    "data: 32px",
    "data: first100",
    "data: sprites drawn by formula: equivalent to the published data in distribution",
    "FID and KID over 500 images, 10000 in the papers",
]


def result(protocol: str | None = "genesisv2", **changes: Any) -> Result:
    return Result(
        **{
            "model": "GenesisV2",
            "run": "genesisv2_shapestacks-seed1",
            "experiment": "genesisv2_shapestacks",
            "dataset": "shapestacks",
            "synthetic": False,
            "split": "test",
            "num_images": 320,
            "metrics": METRICS,
            "protocol": protocol,
            "deviations": DEVIATIONS,
            "rules": {"image_size": 64} if protocol else None,
            "versions": {},
            **changes,
        }
    )


def trainer_of(*results: Result) -> Any:
    writer = ResultWriter(Path("runs/x"), "x", 0, None, {})
    writer.written = [(Path(f"runs/x/metrics/{number}.json"), found) for number, found in enumerate(results)]
    return SimpleNamespace(callbacks=[writer], callback_metrics={}, loggers=[])


@pytest.mark.parametrize("columns", [120, 80, 60, 40])
def test_a_table_of_ten_rows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    show_scores(trainer_of(result(None), result()), "test")
    text = capsys.readouterr().out
    assert "\x1b" not in text
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if "ARI-FG" in line)
    assert all(len(line) <= columns for line in lines[first - 2 : first + 10])
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[first : first + 10]]
    assert not lines[first + 10].strip()
    assert rows[0][0] == "ARI-FG"
    (cell,) = find_published("genesisv2_shapestacks", "ari_fg", "genesisv2")[:1]
    assert rows[0][1:] == ["0.783", f"{cell.mean:#.3g}", f"{0.7834 - cell.mean:+.3f}"]
    labels = ("ARI-FG", "ARI-FG, attention", "mSC-FG", "mSC-FG, attention", "ELBO (nats)", "FID")
    assert all(label.startswith(row[0].rstrip("…")) for label, row in zip(labels, rows, strict=False))
    assert rows[4][1] == "-6,543"
    assert "320 test images by protocol genesisv2" in " ".join(text.split())
    assert lines[-2:] == ["all numbers: runs/x/metrics/0.json", "all numbers: runs/x/metrics/1.json"]


def test_without_a_protocol_nothing_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    show_scores(trainer_of(result(None)), "test")
    text = capsys.readouterr().out
    assert "paper" not in text.split("differs")[0]
    assert "0.783" in text


def test_a_validation_has_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    trainer: Any = SimpleNamespace(
        callbacks=[], callback_metrics={"val/ari_fg": 0.5, "val/mse": 0.25, "x": 1}
    )
    show_scores(trainer, "val")
    text = capsys.readouterr().out
    assert "ARI-FG" in text
    assert "0.500" in text
    assert "0.250" in text
    assert "all numbers" not in text
    show_scores(SimpleNamespace(callbacks=[], callback_metrics={}), "val")  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


def test_what_is_not_finite_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    show_scores(trainer_of(result(None, metrics={"ari_fg": None, "mse": 0.5})), "test")
    assert "not finite" in capsys.readouterr().out


def test_deviations_in_words() -> None:
    assert in_words(DEVIATIONS, {"image_size": 64}) == [
        "32 px, paper 64 px",
        "24 images, paper 320",
        "the first 100 images alone",
        "sprites drawn by formula: equivalent to the published data in distribution",
        "FID and KID over 500 images, papers 10000",
    ]
    assert in_words(["data: 32px", "data: max5", "data: train-24", "anything else"]) == [
        *("32 px", "at most 5 objects", "24 train images", "anything else")
    ]
    assert in_words(["masks scored at 96x96, 192x192 in the protocol"]) == [
        "masks scored at 96 px, paper 192 px"
    ]


# ---------------------------------------------------------------- the end of a training


def checkpoints(**state: Any) -> RunCheckpoints:
    found = RunCheckpoints(Path("runs/x/checkpoints"), CheckpointOptions())
    found.load_state_dict({"monitor": "val/ari_fg", "best": 0.8123, **state})
    return found


def test_the_last_block(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    (run / "pictures").mkdir(parents=True)
    trainer: Any = SimpleNamespace(
        global_step=12345, checkpoint_callbacks=[checkpoints(best_step=12000)], loggers=[]
    )
    lines = closing(trainer, run, 3725.0)
    assert [line.split()[0] for line in lines[:5]] == ["trained", "best", "folder", "pictures", "next"]
    assert lines[0].endswith("to step 12,345 in 1:02:05")
    assert lines[1].endswith("val/ari_fg 0.812 at step 12,000")
    assert lines[4].endswith(f"lightning-genesis test --config '{run}/config.yaml' --ckpt_path best")
    assert lines[5].endswith(f"lightning-genesis figures '{run}'")
    assert len(lines) == 6


def test_a_run_of_before_does_not_know_when_it_was_best() -> None:
    trainer: Any = SimpleNamespace(global_step=5, checkpoint_callbacks=[checkpoints()], loggers=[])
    lines = closing(trainer, Path("runs/x"), 1.0)
    assert lines[1].endswith("val/ari_fg 0.812")
    trainer.checkpoint_callbacks = []
    lines = closing(trainer, Path("runs/x"), 1.0)
    assert not any(line.startswith("best") for line in lines)
    assert any(line.endswith("--ckpt_path last") for line in lines)


def test_the_best_step_is_kept_in_checkpoints() -> None:
    state = checkpoints(best_step=7).state_dict()
    again = RunCheckpoints(Path("runs/x/checkpoints"), CheckpointOptions())
    assert again.best is None
    again.load_state_dict(state)
    assert again.best == ("val/ari_fg", 0.8123, 7)
    again.load_state_dict({"monitor": "val/ari_fg", "best": math.nan, "best_step": 7})
    assert again.best is None


@pytest.mark.parametrize(
    ("message", "is_noise"),
    [
        ("GPU available: False, used: False", True),
        ("TPU available: False, using: 0 TPU cores", True),
        ("Seed set to 0", True),
        ("`Trainer.fit` stopped: `max_steps=120` reached.", True),
        ("run folder: runs/tiny", False),
        ("W&B: no account or no connection; offline, files in runs/x/wandb", False),
        ("trainer.max_time 00:00:05:00 is over, after step 3", False),
    ],
)
def test_what_is_noise(message: str, is_noise: bool) -> None:
    assert bool(MESSAGES.search(message)) == is_noise


def test_narrow_headings_are_short(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns, heading in ((120, "difference"), (40, "diff.")):
        monkeypatch.setenv("COLUMNS", str(columns))
        show_scores(trainer_of(result()), "test")
        assert heading in capsys.readouterr().out
    assert not sys.stdout.isatty()
    assert screen.MOST_ROWS == 10
