"""The experiments that come along: in a checkout its `experiments/`, installed a folder of the package."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import lightning_genesis
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.runs.zoo import find_in_zoo, is_in_zoo


class Experiment(NamedTuple):
    """An experiment by its header."""

    name: str
    """Of the file, without its suffix."""
    title: str
    """The header's first sentence."""
    source: str
    """Paper and table, or that it is ours."""
    expected: str
    """What it should come to."""


def experiments_folder() -> Path:
    """Where the experiments are."""
    package = Path(lightning_genesis.__file__).parent
    checkout = package.parent / "experiments"
    return checkout if (checkout / "quickstart.yaml").is_file() else package / "experiments"


def find_experiment(name: str | Path, option: str = "") -> Path:
    """The file that a `--config` or `--data` names; one in the current folder wins.

    Args:
        name: a path, the path of a file that comes along (`experiments/quickstart.yaml`,
            `experiments/data/clevr6.yaml`), its bare name (`quickstart`), or `zoo:NAME` for that of a
            trained model.
        option: what names it, the first words of an error.

    Raises:
        ConfigurationError: if there is none; the message names the closest.
    """
    if is_in_zoo(name):
        return find_in_zoo(name).experiment
    path = Path(name)
    if path.exists() or path.is_symlink():  # what it is, its reader says
        return path
    relative = Path(*path.parts[1:]) if path.parts[:1] == ("experiments",) else path
    if not relative.is_absolute() and ".." not in relative.parts:
        for candidate in (relative, relative.with_name(f"{relative.name}.yaml")):
            if candidate.suffix == ".yaml" and (found := experiments_folder() / candidate).is_file():
                return found
    known = [file.stem for file in experiments_folder().glob("*.yaml")]
    close = get_close_matches(path.stem, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ConfigurationError(
        f"{option}{name}: no such file here, and no experiment of that name comes along{hint}; "
        "`lightning-genesis experiments` lists those that do"
    )


def list_experiments() -> list[Experiment]:
    """All experiments that come along, by name."""
    return [_read_header(file) for file in sorted(experiments_folder().glob("*.yaml"))]


def _read_header(file: Path) -> Experiment:
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    parts = re.split(r"(?:^|\s)(Source|Expected|Hardware): ", " ".join(lines))
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    title = re.split(r"(?<=[^.A-Z])[.:] ", parts[0].strip() + " ")[0].strip().removesuffix(".")
    return Experiment(file.stem, title, named.get("Source", ""), named.get("Expected", ""))
