"""A run's folder, and getting a model back out of it.

```
runs/NAME/
  config.yaml       everything that made the run; `fit --config` of it makes the same run again
  checkpoints/      last.ckpt, previous.ckpt (the last but one), best.ckpt, step-N.ckpt
  metrics.csv       one row per logged step; test.csv, validate.csv likewise
  pictures/         what the model sees, as PNG
  wandb-id.txt      the W&B run, so that a resumed run continues it
```
"""

from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pytorch_lightning.utilities import rank_zero_warn

from lightning_genesis.commands.messages import check_config_files
from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.storage.checkpoint import check_model, read_checkpoint, weights_of

if TYPE_CHECKING:
    from data_modules import SceneDataModule
    from lightning_genesis.models import SceneModel

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"


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


def add_checkpoint_option(parser: ArgumentParser) -> None:
    """Gives a command that takes a run's folder `--checkpoint`, which `find_file` understands."""
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), help="of a run's folder; the best there is by default"
    )


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
    """The newest checkpoint of a run that can be read, and its contents.

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
        return path, read_checkpoint(path)
    except CheckpointError as error:
        damaged.append(str(error))
        return None


def load(path: str | Path, checkpoint: str | None = None) -> tuple["SceneModel", "SceneDataModule"]:
    """The model and the data module of a run, ready for use in Python.

    Args:
        path: a run's folder, or a `.safetensors` file made by `lightning-genesis export`.
        checkpoint: of a run's folder, "best" or "last"; the best there is if None.

    Returns:
        the model in evaluation mode on the CPU, and its data module.

    Raises:
        CheckpointError: if there is no readable checkpoint.
        ConfigurationError: if the configuration names a class that is not ours, or a checkpoint is chosen of
            a file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        contents = read_checkpoint(find_file(path, checkpoint))
        if "data" not in contents:
            raise CheckpointError(
                f"{path}: does not say which data it belongs to; load it into a model instead"
            )
        data = contents["data"]
    else:
        contents = read_checkpoint(find_checkpoint(path, checkpoint))
        data = read_data_config(path)
    return build_model(contents, path), build_data(data)


def load_with_data(
    command: str,
    run: Path,
    *,
    checkpoint: str | None = None,
    data: Path | None = None,
    root: str | None = None,
) -> tuple["SceneModel", "SceneDataModule"]:
    """The model that a command was given, and the data that it was trained on, or others.

    Args:
        command: for messages.
        run: a run's folder, a `.safetensors` or a `.ckpt`.
        checkpoint: of a run's folder, "best" or "last"; the best there is if None.
        data: file of another data section; a `.ckpt` needs it.
        root: where the data are, if not where the run has them.

    Raises:
        CheckpointError: if there is no readable checkpoint.
        ConfigurationError: if the data are unknown or of another image size, or a checkpoint is chosen of a
            file.
    """
    if data is not None:
        if not data.is_file():
            raise ConfigurationError(f"{command}: --data {data}: no such file")
        check_config_files(["--config", str(data)])
        file = find_file(run, checkpoint)
        model = build_model(read_checkpoint(file), file)
        module = build_data(yaml.safe_load(data.read_text(encoding="utf-8")))
    elif run.is_dir() or run.suffix == ".safetensors":
        model, module = load(run, checkpoint)
    else:
        raise ConfigurationError(f"{command}: {run} does not say which data it belongs to: give --data")
    if module.image_size != model.image_size:
        raise ConfigurationError(
            f"{command}: {run} is for images of {model.image_size} px, but the data are of "
            f"{module.image_size} px"
        )
    module.root = root or module.root
    return model, module


def read_config(run: Path) -> dict[str, Any]:
    """A run's configuration.

    Raises:
        CheckpointError: if the folder has none.
        ConfigurationError: if it cannot be read.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; give the folder of a run")
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigurationError(f"{file}: not a readable configuration ({reason})") from error
    return config if isinstance(config, dict) else {}


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


def build_model(checkpoint: dict[str, Any], path: str | Path) -> "SceneModel":
    """The model that a checkpoint holds, in evaluation mode.

    Raises:
        CheckpointError: if the model is not one of ours, or does not fit.
    """
    model = make_model(checkpoint, path)
    check_model(checkpoint, model, path)
    model.load_state_dict(weights_of(checkpoint), strict=False)
    return model.eval()


def restore_model(
    path: str | Path, kind: type["SceneModel"] | None = None, overrides: dict[str, Any] | None = None
) -> "SceneModel":
    """The model that a checkpoint holds, with the state of its objective; see `make_model`.

    A `.safetensors` holds weights alone, and another objective cannot take over the state: it starts anew.

    Raises:
        CheckpointError: if the file is not there, damaged, holds another model, or does not fit.
    """
    contents = read_checkpoint(path)
    model = make_model(contents, path, kind, overrides)
    check_model(contents, model, path)
    if Path(path).suffix == ".safetensors" or "objective" in (overrides or {}):
        model.load_state_dict(weights_of(contents), strict=False)
        return model
    try:
        model.load_state_dict(contents["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: the objective's state does not fit ({reason})") from error
    return model


def make_model(
    checkpoint: dict[str, Any],
    path: str | Path,
    kind: type["SceneModel"] | None = None,
    overrides: dict[str, Any] | None = None,
) -> "SceneModel":
    """A new model of the class and with the hyperparameters that a checkpoint names.

    Args:
        checkpoint: from `read_checkpoint`.
        path: where it comes from, for messages.
        kind: the class it should be; None or `SceneModel` takes any of ours.
        overrides: hyperparameters to change.

    Raises:
        CheckpointError: if it names another class, or hyperparameters that the class does not take.
    """
    from lightning_genesis import models

    name = checkpoint["model_class"]
    if kind is None or kind is models.SceneModel:
        known = [known for known in models.__all__ if known != "SceneModel"]
        if name not in known:
            raise CheckpointError(f"{path}: holds a {name!r}; known are {', '.join(known)}")
        kind = getattr(models, name)
    elif name != kind.__name__:
        raise CheckpointError(f"{path}: holds a {name}, expected a {kind.__name__}")
    try:
        return kind(**{**checkpoint["hyper_parameters"], **(overrides or {})})
    except ConfigurationError:
        raise
    except Exception as error:  # values of wrong types fail anywhere in the model
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: its hyperparameters make no {name} ({reason})") from error


def build_data(config: dict[str, Any]) -> "SceneDataModule":
    """The data module that a configuration names.

    Raises:
        ConfigurationError: if the class is not a `SceneDataModule`, or does not take the arguments.
    """
    from data_modules import SceneDataModule

    path, arguments = config.get("class_path"), config.get("init_args") or {}
    module, _, name = str(path).rpartition(".")
    try:
        kind = getattr(import_module(module or "data_modules"), name, None)
    except ImportError as error:
        raise ConfigurationError(f"data.class_path {path!r}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, SceneDataModule)):
        raise ConfigurationError(f"data.class_path {path!r} is no SceneDataModule")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ConfigurationError(f"data.init_args {arguments!r} of {name}: {error}") from error
