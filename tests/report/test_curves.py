"""Logs of runs and the curves drawn of them."""

import csv
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from lightning_genesis.report import runs
from lightning_genesis.report.curves import BINS, average, draw, draw_charts
from lightning_genesis.report.runs import collect
from tests.report.fake_runs import make_run, write_log
from tests.wandb_file import read_run


def curve(steps: list[float], values: list[float]) -> np.ndarray:
    return np.column_stack([steps, values]).astype(float)


def test_band_is_mean_and_standard_deviation_over_seeds() -> None:
    curves = [curve([0, 10, 20], [1, 2, 3]), curve([0, 10, 20], [3, 2, 7])]
    band = average("", curves)
    assert band.steps.tolist() == [0, 10, 20]
    assert band.mean.tolist() == [2, 2, 5]
    assert band.std == pytest.approx(np.std([[1, 2, 3], [3, 2, 7]], axis=0, ddof=1))


def test_a_shorter_seed_counts_as_far_as_it_goes() -> None:
    band = average("", [curve([0, 10, 20, 30], [1, 1, 1, 1]), curve([0, 20], [3, 7])])
    assert band.mean.tolist() == [2, 3, 4, 1]  # 5 between 3 and 7
    assert band.std[-1] == 0


def test_long_logs_are_averaged_in_parts() -> None:
    steps, values = np.arange(100_000), np.random.default_rng(0).normal(size=100_000)
    band = average("", [np.column_stack([steps, values]).astype(float)])
    assert len(band.steps) == BINS
    assert band.mean == pytest.approx(values.reshape(BINS, -1).mean(axis=1))


def test_logarithms_leave_out_what_has_none() -> None:
    band = average("", [curve([0, 1, 2], [1.0, 0.0, math.e])], log=True)
    assert band.steps.tolist() == [0, 2]
    assert band.mean == pytest.approx([0, 1])
    assert not len(average("", [curve([0], [-1.0])], log=True).steps)


def test_log_of_a_run_that_was_killed_and_resumed() -> None:
    rows = [
        {"step": "0", "train/loss": "5.0", "val/elbo": ""},
        {"step": "10", "train/loss": "4.0"},
        {"step": "10", "train/loss": "3.0"},  # logged again
        {"step": "5", "train/loss": "nan"},
        {"step": "2", "train/loss": "12.3.4"},
        {"step": "", "train/loss": "1.0"},
        {"train/loss": "1.0"},
    ]
    found = collect(rows, "step")
    assert list(found) == ["train/loss"]
    assert found["train/loss"].tolist() == [[0, 5], [10, 3]]


def test_charts_of_a_log(tmp_path: Path) -> None:
    histories = []
    for seed in range(3):
        write_log(tmp_path / f"{seed}.csv", seed, 20_000)
        with open(tmp_path / f"{seed}.csv", newline="") as file:
            histories.append(collect(csv.DictReader(file), "step"))
    charts = dict(draw_charts(histories))
    assert list(charts) == ["Training loss (nats per image)", "β of the objective", "ARI-FG, validation"]
    for svg in charts.values():
        root = ET.fromstring(svg)
        numbers = [
            float(n)
            for path in root.iter("path")
            for n in path.attrib["d"].strip("MZ").replace("L", " ").split()
        ]
        assert numbers
        assert all(0 <= number <= 420 for number in numbers)
    ari = ET.fromstring(charts["ARI-FG, validation"])
    assert [text.text for text in ari.iter("text")][-2:] == ["decoded masks", "attention masks"]
    classes = [path.attrib["class"] for path in ari.iter("path")]
    assert [classes.count(f"{kind} series1") for kind in ("band", "seed", "mean")] == [1, 3, 1]
    beta = [text.text for text in ET.fromstring(charts["β of the objective"]).iter("text")]
    assert {"1e-6", "1e0"} <= set(beta)


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [-1e-9, 1e9], [7000.0, 7000.0], [1e300, -1e300]])
@pytest.mark.parametrize("log", [False, True])
def test_any_numbers_can_be_drawn(values: list[float], log: bool) -> None:
    band = average("a<b", [curve(list(range(len(values))), values)], log)
    if len(band.steps):
        root = ET.fromstring(draw("a & b", [band], log))
        assert "nan" not in ET.tostring(root, encoding="unicode")


def test_charts_need_something_logged() -> None:
    assert draw_charts([{}]) == []
    assert draw_charts([{"train/loss": curve([0], [1.0])}, {}])[0][0].startswith("Training loss")


def test_log_of_wandb_is_read_where_there_is_no_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    folder = make_run(tmp_path, "genesisv2_objectsroom", 0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for first in (0, 3):  # a resumed run has a second file
        run = wandb.init(dir=folder, project="report", settings=wandb.Settings(silent=True, console="off"))
        for step in range(first, first + 3):
            run.log({"train/loss": 10.0 - step, "trainer/global_step": step})
        run.finish()
    files = sorted(folder.glob("wandb/*run-*/run-*.wandb"))
    assert [len(read_run(path)[1]) for path in files] == [3, 3]  # waits for W&B's own process
    history = runs.read_run(folder).history
    assert history["train/loss"].tolist() == [[step, 10.0 - step] for step in range(6)]

    files[0].write_bytes(b"rubbish")
    damaged = runs.read_run(folder)
    assert damaged.history == {}
    assert any(
        "its log is not readable" in problem and "no file of W&B" in problem for problem in damaged.problems
    )
