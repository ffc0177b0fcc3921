"""`RUN/sweep.json`: what a sweep has finished of a run, and which of its values the run has."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.storage.files import replacing
from lightning_genesis.storage.json_file import read_json

STATE = "sweep.json"
"""In a run's folder."""


@dataclass(frozen=True)
class SweepState:
    """A run as its sweep knows it."""

    config_sha256: str
    """Of the configuration that it was trained and tested with."""
    finished: Sequence[str] = ()
    """Stages, in their order."""
    sweep: str = ""
    """Name of the sweep."""
    seed: int | None = None
    """Of the run: its folder may be a copy of another's."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Swept options to values, as on a command line; empty where the sweep is over seeds alone."""


def read_state(folder: Path) -> SweepState | None:
    """What the file in a run's folder says; None where there is none, or it says something else."""
    try:
        content = read_json(folder / STATE)
    except ConfigurationError:
        return None
    if not isinstance(content, dict) or type(content.get("config_sha256")) is not str:
        return None
    finished, sweep, values = content.get("finished"), content.get("sweep", ""), content.get("values", {})
    if not isinstance(finished, list) or not isinstance(sweep, str) or not isinstance(values, dict):
        return None
    if not all(isinstance(text, str) for text in (*finished, *values, *values.values())):
        return None
    seed = content.get("seed")
    seed = seed if type(seed) is int else None
    return SweepState(content["config_sha256"], finished, sweep, seed, values)


def write_state(folder: Path, state: SweepState) -> None:
    """Writes the file, whole or not at all."""
    with replacing(folder / STATE) as temporary:
        temporary.write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")
