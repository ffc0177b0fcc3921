"""A run's folder: its configuration and its checkpoints.

```
runs/NAME/
  config.yaml       everything that made the run; `fit --config` of it makes the same run again
  checkpoints/      last.ckpt, previous.ckpt (the last but one), best.ckpt, step-N.ckpt
  metrics.csv       one row per logged step; test.csv, validate.csv likewise
  pictures/         what the model sees, as PNG
  wandb-id.txt      the W&B run, so that a resumed run continues it, and the folder that it belongs to
  fit.lock          held while the run is trained
```

A configuration that lies in such a folder means this folder, whatever it is called by now.
"""

from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn

from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.runs.lock import LOCK
from lightning_genesis.storage.checkpoint import read_checkpoint
from lightning_genesis.storage.finite import not_finite
from lightning_genesis.storage.yaml_file import read_mapping

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
CONFIG = "config.yaml"
BESIDE = ("checkpoints", "metrics.csv", "wandb-id.txt", LOCK)
"""What lies beside the `config.yaml` of a run: one of these from its start."""


def find_checkpoint(run: Path, name: str | None = None) -> Path:
    """A run's checkpoint: "best", "last", or the first of these that is there.

    The last one is the newest that can be read, see `read_last_good`.

    Raises:
        CheckpointError: if it is not there, or if no newest one can be read.
    """
    best = run / "checkpoints" / BEST
    if name != "last" and best.is_file():
        return best
    if name in (None, "last") and any((run / "checkpoints").glob("*.ckpt")):
        return read_last_good(run)[0]
    names = (BEST, LAST) if name is None else (f"{name}.ckpt",)
    raise CheckpointError(f"{run / 'checkpoints'}: no {' or '.join(names)} there; has the run been trained?")


def find_file(path: Path, checkpoint: str | None = None) -> Path:
    """The weights that a command was given: of a run's folder a checkpoint, else the file itself.

    Args:
        path: a run's folder, a `.safetensors` or a `.ckpt`.
        checkpoint: of a run's folder, "best" or "last"; the best there is if None.

    Raises:
        CheckpointError: if the run has no such checkpoint.
        ConfigurationError: if a checkpoint is chosen of what is no run's folder.
    """
    if path.is_dir():
        return find_checkpoint(path, checkpoint)
    if checkpoint is not None:
        raise ConfigurationError(f"--checkpoint {checkpoint}: {path} is no run's folder; leave it out")
    return path


def read_last_good(run: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a run that can be read and is finite, and its contents.

    `last.ckpt`, else `previous.ckpt`, else the one of most steps among the others. Each that cannot be read
    is named in a warning; nothing is deleted or renamed.

    Raises:
        CheckpointError: if none can be read; the message names all.
    """
    folder = run / "checkpoints"
    damaged: list[str] = []
    good: tuple[Path, dict[str, Any]] | None = None
    for path in (folder / LAST, folder / PREVIOUS):
        if good is None and path.exists():
            good = _try_to_read(path, damaged)
    if good is None:
        for path in sorted(folder.glob("*.ckpt")):
            if path.name in (LAST, PREVIOUS):
                continue
            found = _try_to_read(path, damaged)
            if found and (good is None or found[1].get("global_step", 0) > good[1].get("global_step", 0)):
                good = found
    if good is None:
        reasons = "; ".join(damaged) or "there is none; has the run been trained?"
        raise CheckpointError(f"{folder}: no readable checkpoint: {reasons}")
    for reason in damaged:
        rank_zero_warn(f"{reason}; using {good[0]} of step {good[1].get('global_step')} instead")
    return good


def _try_to_read(path: Path, damaged: list[str]) -> tuple[Path, dict[str, Any]] | None:
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        damaged.append(str(error))
        return None
    if found := not_finite(checkpoint):
        damaged.append(f"{path}: not finite: {found}")
        return None
    return path, checkpoint


def place_of(file: Path, named: Path) -> Path | None:
    """The folder of the run whose configuration a file is; None where it is of no run.

    Args:
        file: a configuration.
        named: the folder that it names. It is the result where it is the folder that the file lies in.
    """
    folder = file.parent
    if file.name != CONFIG or not any((folder / name).exists() for name in BESIDE):
        return None
    if named.exists() and named.samefile(folder):
        return named
    # "." has no name of its own
    return folder if folder.name not in ("", "..") else folder.resolve()


def read_config(run: Path) -> dict[str, Any]:
    """A run's configuration.

    Raises:
        CheckpointError: if the folder has none.
        ConfigurationError: if it cannot be read.
    """
    file = run / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; give the folder of a run")
    return read_mapping(file, "a configuration")


def read_data_config(run: Path) -> dict[str, Any]:
    """The `data` section of a run's configuration.

    Raises:
        CheckpointError: if the folder has no configuration.
        ConfigurationError: if it cannot be read, or has no such section.
    """
    data = read_config(run).get("data")
    if not isinstance(data, dict):
        raise ConfigurationError(
            f"{run / 'config.yaml'}: data is {data!r}, expected class_path and init_args"
        )
    return data
