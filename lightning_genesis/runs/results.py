"""What an evaluation found, as JSON in the run's folder: `RUN/metrics/*.json`, one object per evaluation.

`docs/metrics.md` describes the format. Repeating an evaluation gives the same file name and, but for float
error, the same bytes: nothing in it depends on the time or the machine's paths.
"""

import hashlib
import json
import math
import platform
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_genesis import __version__
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.storage.files import replacing
from lightning_genesis.storage.json_file import read_json

FORMAT = 1
LARGEST = 1e100
"""Metrics are below it, so that their squares have a float."""
LONGEST = 1000
"""Characters of a name."""
FOLDER = "metrics"
"""Folder of the results in that of a run."""
TRAINING_ONLY = (
    *("objective", "learning_rate", "optimizer", "optimizer_options"),
    *("schedule", "warmup_steps", "decay_rate", "decay_steps", "final_factor"),
)
"""Model values that an evaluation does not depend on."""
MAY_DIFFER = ("compile",)
"""Model values that change how a model runs, not what it is."""
_PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "numpy")


def experiment_of(run: str, seed: Any) -> str:
    """What the runs of several seeds have in common: a run's name without its seed."""
    return run.removesuffix(f"-seed{seed}")


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    found = {"lightning-genesis": __version__, "python": platform.python_version()}
    return found | {name: version(name) for name in _PACKAGES}


@dataclass(frozen=True)
class Checkpoint:
    """The weights that were evaluated."""

    path: str
    """Relative to the run's folder where it lies in there, else the file's name."""
    sha256: str
    step: int

    @classmethod
    def of(cls, file: Path, run: Path, step: int) -> "Checkpoint":
        """That of a file, seen from a run's folder."""
        run, file = run.resolve(), file.resolve()
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        place = file.relative_to(run).as_posix() if file.is_relative_to(run) else file.name
        return cls(place, digest, step)


@dataclass(frozen=True)
class Result:
    """One evaluation: what was evaluated, how, and the numbers."""

    model: str
    """Class name, such as `GenesisV2`."""
    run: str
    """Name of the run; also that of its folder."""
    experiment: str
    """What runs of several seeds have in common: the run's name without `-seedN`."""
    dataset: str
    """Name of the data module, such as `shapestacks`; its class name where it has none."""
    synthetic: bool
    """Whether the images come from our own stand-in for a publisher's files."""
    split: str
    """`train`, `val` or `test`."""
    num_images: int
    """Images behind the scores; FID has counts of its own in `options`."""
    metrics: dict[str, float | None]
    """By name, without a prefix; None where the value is not finite."""
    protocol: str | None = None
    """A name in `protocols.PROTOCOLS`; None for the whole split by the run's own settings."""
    seed: int | None = None
    """Of the training."""
    checkpoint: Checkpoint | None = None
    """None for untrained weights."""
    options: dict[str, Any] = field(default_factory=dict)
    """Whatever else the numbers depend on: plain data."""
    deviations: list[str] = field(default_factory=list)
    """In what the evaluation differs from the protocol or the data from the paper's, a line each."""
    rules: dict[str, Any] | None = None
    """The protocol's, `Protocol.rules`; None without one, and in files from before they were stored."""
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def identity(self) -> str:
        """SHA-256 of everything but the numbers, the versions and the rules.

        Of the rules, `options` has what the numbers depend on.
        """
        about = {
            key: value for key, value in asdict(self).items() if key not in ("metrics", "versions", "rules")
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def write_result(run: str | Path, name: str, result: Result) -> Path:
    """Writes a result into a run's folder, durably; the same evaluation done again replaces it.

    Args:
        run: the run's folder.
        name: first part of the file's name, such as `test-genesisv2`.
        result: what to write; values that are not finite become null.

    Returns:
        the file, `RUN/metrics/NAME-XXXXXXXX.json`, where the digits belong to `Result.identity`.
    """
    metrics = {
        key: value if value is not None and math.isfinite(value) else None
        for key, value in sorted(result.metrics.items())
    }
    contents = {"format": FORMAT, **asdict(result), "metrics": metrics}
    folder = Path(run) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{result.identity[:8]}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def read_results(run: str | Path) -> list[Result]:
    """All results of a run, by file name; empty if it has not been evaluated.

    Raises:
        ConfigurationError: if there is no such folder, or a file is not a result.
    """
    run = Path(run)
    if not run.is_dir():
        raise ConfigurationError(f"{run}: no such folder, expected that of a run")
    return [read_result(path) for path in sorted((run / FOLDER).glob("*.json"))]


def read_result(path: str | Path) -> Result:
    """One result.

    Raises:
        ConfigurationError: if the file is not a result; the message names the key, what it holds and what was
            expected.
    """
    path = Path(path)
    contents = read_json(path)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        found = contents.get("format") if isinstance(contents, dict) else type(contents).__name__
        raise ConfigurationError(f"{path}: `format` is {_short(found)}, expected {FORMAT}")
    contents.setdefault("rules", None)
    _check(path, contents, _RESULT)
    if contents["checkpoint"] is not None:
        _check(path, contents["checkpoint"], _CHECKPOINT, "checkpoint.")
        contents["checkpoint"] = Checkpoint(**{key: contents["checkpoint"][key] for key in _CHECKPOINT})
    for name, value in contents["metrics"].items():
        if not (value is None or (type(value) in (int, float) and abs(value) < LARGEST)):
            raise ConfigurationError(
                f"{path}: `metrics.{name}` is {_short(value)}, expected a number below {LARGEST:g}, or null"
            )
    for line in contents["deviations"]:
        if not isinstance(line, str):
            raise ConfigurationError(f"{path}: `deviations` has {_short(line)}, expected lines of text")
    return Result(**{entry.name: contents[entry.name] for entry in fields(Result)})


def about_run(run: Path, checkpoint: str | None) -> dict[str, Any]:
    """Which run, seed and checkpoint a result is about."""
    from lightning_genesis.runs.run import find_file, read_config  # imports torch, which readers do not need
    from lightning_genesis.storage.checkpoint import read_checkpoint

    folder = run.resolve() if run.is_dir() else run.resolve().parent
    file = find_file(run, checkpoint)
    seed = read_config(run).get("seed_everything") if run.is_dir() else None
    name = folder.name if run.is_dir() else run.stem
    return {
        "run": name,
        "experiment": experiment_of(name, seed),
        "seed": seed if type(seed) is int else None,
        "checkpoint": Checkpoint.of(file, folder, read_checkpoint(file).get("global_step", 0)),
    }


_NONE = type(None)
_RESULT: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "run", "experiment", "dataset", "split"), (str,)),
    "synthetic": (bool,),
    "num_images": (int,),
    "metrics": (dict,),
    "protocol": (str, _NONE),
    "seed": (int, _NONE),
    "checkpoint": (dict, _NONE),
    "options": (dict,),
    "deviations": (list,),
    "versions": (dict,),
    "rules": (dict, _NONE),
}
_CHECKPOINT: dict[str, tuple[type, ...]] = {"path": (str,), "sha256": (str,), "step": (int,)}


def _check(path: Path, found: dict[str, Any], types: dict[str, tuple[type, ...]], prefix: str = "") -> None:
    for key, kinds in types.items():
        if key not in found:
            raise ConfigurationError(f"{path}: has no key `{prefix}{key}`")
        if type(found[key]) not in kinds:
            names = " or ".join("null" if kind is _NONE else kind.__name__ for kind in kinds)
            raise ConfigurationError(f"{path}: `{prefix}{key}` is {_short(found[key])}, expected {names}")
        if type(found[key]) is str and len(found[key]) > LONGEST:
            raise ConfigurationError(
                f"{path}: `{prefix}{key}` has {len(found[key])} characters, expected {LONGEST} at most"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
