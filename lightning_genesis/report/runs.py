"""What a run's folder holds, read for the report; what cannot be read is named and left out."""

import csv
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.runs.card import Card, read_card
from lightning_genesis.runs.results import FOLDER, LARGEST, Result, experiment_of, read_result
from lightning_genesis.runs.sweep_state import SweepState, read_state
from lightning_genesis.storage.text import shown
from lightning_genesis.storage.yaml_file import read_mapping

Curve = NDArray[np.float64]
"""Steps and values, `[N, 2]`, by step."""
STEP, WANDB_STEP = "step", "trainer/global_step"
LOG = "metrics.csv"
MOST_BYTES = 2**28
"""Of a log."""
MOST_PICTURES = 100
PICTURES = ("test_reconstructions", "reconstructions", "test_samples", "samples")
"""What `fit` and `test` draw; of those with a step in their name the newest is shown."""


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    folder: Path
    experiment: str
    """What the seeds of an experiment have in common."""
    model: str
    """Class name."""
    seed: int | None
    """Of the training."""
    results: list[Result]
    history: dict[str, Curve]
    """What was logged in training, by name."""
    pictures: list[Path]
    swept: SweepState | None = None
    """Where a sweep over values made the run."""
    card: Card | None = None
    problems: list[str] = field(default_factory=list)
    """What could not be read or is not there, a line each."""

    @property
    def name(self) -> str:
        """The folder's."""
        return shown(self.folder.resolve().name)


def read_run(folder: Path) -> Run:
    """Reads everything a report needs; what is wrong with a folder's files is in `Run.problems`."""
    problems: list[str] = []
    results = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            results.append(read_result(path))
        except ConfigurationError as error:
            problems.append(f"{error}: left out")
    config = _read_config(folder / "config.yaml", problems)
    history = _read_history(folder, problems)
    if not results:
        problems.append(_why_no_results(folder, bool(history)))
    name = shown(folder.resolve().name)
    seed = next((result.seed for result in results if result.seed is not None), config.get("seed_everything"))
    named = Counter(result.experiment for result in results).most_common(1)
    model = config.get("model")
    class_path = model.get("class_path") if isinstance(model, dict) else None
    return Run(
        folder,
        experiment=named[0][0] if named else experiment_of(name, seed),
        model=results[0].model if results else shown(class_path or "unknown").rpartition(".")[2],
        seed=seed if type(seed) is int else None,
        results=results,
        history=history,
        pictures=_find_pictures(folder),
        swept=state if (state := read_state(folder)) is not None and state.values else None,
        card=read_card(folder),
        problems=problems,
    )


def _why_no_results(folder: Path, is_logged: bool) -> str:
    config = folder / "config.yaml"
    if any((folder / "checkpoints").glob("*.ckpt")):
        command = f"lightning-genesis test --config {shlex.quote(str(config))} --ckpt_path last"
        return f"{folder}: no metrics; run `{command}`"
    if is_logged or config.is_file():
        return f"{folder}: neither metrics nor a checkpoint; has it been trained?"
    return f"{folder}: no metrics, no log and no configuration: not the folder of a run"


def _read_config(path: Path, problems: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_mapping(path, "a configuration")
    except ConfigurationError as error:
        problems.append(f"{_one_line(error)}: left out")
        return {}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


# ---------------------------------------------------------------- logs


def _read_history(folder: Path, problems: list[str]) -> dict[str, Curve]:
    """The CSV file; where there is none, W&B's files, which online and offline runs leave in the folder."""
    log = folder / LOG
    try:
        if log.is_file():
            if (size := log.stat().st_size) > MOST_BYTES:
                raise ValueError(f"{size:,} bytes, more than {MOST_BYTES:,}")
            with open(log, newline="", encoding="utf-8", errors="replace") as file:
                return collect(csv.DictReader(file), STEP)
        files = sorted(folder.glob("wandb/*run-*/run-*.wandb"))  # named by time: a resumed run comes later
        if not files:
            return {}
        from lightning_genesis.runs.wandb_file import read_rows  # imports wandb

        return collect((row for path in files for row in read_rows(path)), WANDB_STEP)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        problems.append(f"{folder}: its log is not readable ({_one_line(error)}): left out")
        return {}


def collect(rows: Iterable[Mapping[str, Any]], step_name: str) -> dict[str, Curve]:
    """Every logged number by its name. Of several at one step the last counts; what is no number is left out.

    Args:
        rows: names to values, or to their text.
        step_name: the entry that holds the step.
    """
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        step = _number(row.get(step_name))
        if step is None:
            continue
        for name, text in row.items():
            value = _number(text) if name and name != step_name else None
            if value is not None:
                found.setdefault(name, {})[step] = value
    return {shown(name): np.array(sorted(values.items())) for name, values in found.items()}


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):  # empty, or was being written when the run was killed
        return None
    if not abs(value) < LARGEST:
        return None
    return value if abs(value) > 1 / LARGEST else 0.0  # of what is smaller, there is no difference to draw


# ---------------------------------------------------------------- pictures


def _find_pictures(folder: Path) -> list[Path]:
    """The papers' figures, if `lightning-genesis figures` has drawn them, else what `fit` and `test` drew."""
    figures = [path for path in sorted((folder / "figures").glob("*")) if path.suffix in (".png", ".gif")]
    if figures:
        return figures[:MOST_PICTURES]
    drawn = {name: sorted((folder / "pictures").glob(f"{name}*.png"), key=_step_of) for name in PICTURES}
    newest = {name: paths[-1] for name, paths in drawn.items() if paths}
    return [path for name, path in newest.items() if f"test_{name}" not in newest]


def _step_of(path: Path) -> int:
    digits = re.search(r"-(\d+)$", path.stem)
    return int(digits[1]) if digits else -1
