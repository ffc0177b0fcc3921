"""`RUN/card.json`: what a run was made of and with, for the report's model cards."""

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.storage.files import replacing
from lightning_genesis.storage.json_file import read_json

CARD = "card.json"
"""In a run's folder."""
FORMAT = 1
TIMEOUT = 10.0
"""Seconds that git may take."""


@dataclass(frozen=True)
class Card:
    """A run, as a model card tells of it."""

    parameters: int
    """All of them; those that are trained in `trained`."""
    trained: int
    hardware: str
    """Of rank zero, and how many of them: `NVIDIA H100 80GB HBM3 x 4`."""
    precision: str
    steps: int
    """Optimiser steps of the newest entry."""
    seconds: float
    """Spent in `fit` over all its starts, validation included, and what was done again after a kill."""
    commit: str | None = None
    """Of our source, with `+` where it had changes; None for an installed package."""
    versions: Mapping[str, str] = field(default_factory=dict)


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("parameters", "trained", "steps"), (int,)),
    **dict.fromkeys(("hardware", "precision"), (str,)),
    "seconds": (int, float),
    "commit": (str, type(None)),
    "versions": (dict,),
}


def read_card(folder: Path) -> Card | None:
    """The card in a run's folder; None where there is none, or it is something else."""
    try:
        content = read_json(folder / CARD)
    except ConfigurationError:
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    if any(type(content.get(name)) not in kinds for name, kinds in _TYPES.items()):
        return None
    if not 0 <= content["seconds"] < 1e12:
        return None
    if not all(isinstance(text, str) for text in content["versions"].values()):
        return None
    return Card(**{entry.name: content[entry.name] for entry in fields(Card)})


def write_card(folder: Path, card: Card) -> None:
    """Writes the card, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CARD) as temporary:
        temporary.write_text(
            json.dumps({"format": FORMAT, **asdict(card)}, indent=1) + "\n", encoding="utf-8"
        )


def find_commit(source: Path) -> str | None:
    """The commit of a file that git has, with `+` if anything that git has is changed; else None.

    An installed package often lies in somebody's repository, whose commit says nothing about it.
    """

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(source.parent), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", source.name) is None:
        return None
    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return None
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def processor() -> str:
    """What the CPU calls itself, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
