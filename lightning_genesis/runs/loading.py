"""Getting a model and its data back out of a run's folder, or out of a file of weights.

A run's own `config.yaml` says which classes they are, wherever these come from. A file of weights alone may
come from anybody: it names only classes of ours, or ones that are imported already, and no place on the disk.
"""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

import data_modules
from data_modules import DataError, SceneDataModule
from lightning_genesis.classes import class_path, find_class, import_class, subclasses
from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.models import SceneModel
from lightning_genesis.models.restore import build_model
from lightning_genesis.runs.experiments import find_experiment
from lightning_genesis.runs.run import find_checkpoint, find_file, read_config, read_data_config
from lightning_genesis.runs.zoo import find_weights
from lightning_genesis.storage.checkpoint import read_checkpoint
from lightning_genesis.storage.yaml_file import read_mapping


def load(
    path: str | Path, checkpoint: str | None = None, model: type[SceneModel] | str | None = None
) -> tuple[SceneModel, SceneDataModule]:
    """The model and the data module of a run, ready for use in Python.

    Args:
        path: a run's folder, a `.safetensors` file made by `lightning-genesis export`, or `zoo:NAME`,
            a trained model that comes along.
        checkpoint: of a run's folder, "best" or "last"; the best there is if None.
        model: class of the model, or its dotted path; what the run's configuration says if None. A file of
            weights needs it for a class that is neither ours nor imported.

    Returns:
        the model in evaluation mode on the CPU, and its data module.

    Raises:
        CheckpointError: if there is no readable checkpoint.
        ConfigurationError: if a class cannot be found or is of another kind, or a checkpoint is chosen of a
            file.
    """
    path = find_weights(path)
    if path.suffix != ".safetensors":
        data = read_data_config(path)
        return load_model(path, checkpoint, model), build_data(data, f"{path / 'config.yaml'}: data")
    contents = read_checkpoint(find_file(path, checkpoint))
    if "data" not in contents:
        raise CheckpointError(f"{path}: does not say which data it belongs to; load it into a model instead")
    found = build_model(contents, path, _model_class(path, model))
    return found, _data_of_weights(contents["data"], path)


def load_model(
    path: Path, checkpoint: str | None = None, model: type[SceneModel] | str | None = None
) -> SceneModel:
    """The model of a run's folder, a `.ckpt` or a `.safetensors`, in evaluation mode; see `load`.

    Raises:
        CheckpointError: if there is no readable checkpoint.
        ConfigurationError: if the class cannot be found, or a checkpoint is chosen of a file.
    """
    file = find_checkpoint(path, checkpoint) if path.is_dir() else find_file(path, checkpoint)
    return build_model(read_checkpoint(file), file, _model_class(path, model))


def _model_class(path: Path, given: type[SceneModel] | str | None) -> type[SceneModel]:
    """The class that was given or that a run's configuration names; `SceneModel` where neither is there."""
    if isinstance(given, str):
        return import_class(given, SceneModel, "--model")
    if given is not None:
        return given
    if path.is_dir() and (path / "config.yaml").is_file():
        section = read_config(path).get("model")
        named = section.get("class_path") if isinstance(section, dict) else None
        if isinstance(named, str):
            return import_class(named, SceneModel, f"{path / 'config.yaml'}: model.class_path")
    return SceneModel


def load_with_data(
    command: str,
    run: Path,
    *,
    checkpoint: str | None = None,
    model: str | None = None,
    data: Path | None = None,
    root: str | None = None,
) -> tuple[SceneModel, SceneDataModule]:
    """The model that a command was given, and the data that it was trained on, or others.

    Args:
        command: for messages.
        run: a run's folder, a `.safetensors` or a `.ckpt`.
        checkpoint: of a run's folder, "best" or "last"; the best there is if None.
        model: dotted path of the model's class, see `load`.
        data: file of another data section; a `.ckpt` needs it.
        root: where the data are, if not where the run has them.

    Raises:
        CheckpointError: if there is no readable checkpoint.
        ConfigurationError: if the data are unknown or of another image size, or a checkpoint is chosen of a
            file.
    """
    if data is not None:
        data = find_experiment(data, f"{command}: --data ")
        found = load_model(run, checkpoint, model)
        module = build_data(read_mapping(data, "a data section, class_path and init_args"), str(data))
    elif run.is_dir() or run.suffix == ".safetensors":
        found, module = load(run, checkpoint, model)
    else:
        raise ConfigurationError(f"{command}: {run} does not say which data it belongs to: give --data")
    if module.image_size != found.image_size:
        raise ConfigurationError(
            f"{command}: {run} is for images of {found.image_size} px, but the data are of "
            f"{module.image_size} px"
        )
    module.root = root or module.root
    return found, module


def build_data(config: dict[str, Any], where: str = "data") -> SceneDataModule:
    """The data module that a configuration of the user's names.

    Args:
        config: `class_path` and `init_args`.
        where: file or key that it stands in, for messages.

    Raises:
        ConfigurationError: if the class is not a `SceneDataModule`, or does not take the arguments.
    """
    named, arguments = config.get("class_path"), config.get("init_args") or {}
    if not isinstance(named, str):
        raise ConfigurationError(f"{where}.class_path: {named!r}, expected the path of a SceneDataModule")
    kind = import_class(named, SceneDataModule, f"{where}.class_path")
    return _instantiate(kind, arguments, f"{where}.init_args")


def _data_of_weights(config: Any, path: Path) -> SceneDataModule:
    """The data module that a file of weights names: ours or imported, at the usual root."""
    if not isinstance(config, dict) or not isinstance(config.get("class_path"), str):
        raise CheckpointError(f"{path}: its data section is no class_path with init_args")
    ours = {f"data_modules.{name}": getattr(data_modules, name) for name in data_modules.__all__}
    known = {class_path(kind): kind for kind in subclasses(SceneDataModule)} | ours
    named = config["class_path"]
    kind = known[named] if named in known else find_class(named, SceneDataModule, f"{path}: data")
    arguments = config.get("init_args") or {}
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{path}: its data.init_args are {arguments!r}, expected a mapping")
    arguments = {key: value for key, value in arguments.items() if key != "root"}
    where = f"{path}: data.init_args"
    try:
        return _instantiate(kind, arguments, where)
    except (ConfigurationError, DataError):
        raise
    except Exception as error:  # values of wrong types fail anywhere in the class
        raise ConfigurationError(
            f"{where} of {kind.__name__}: {' '.join(str(error).split())[:160]}"
        ) from error


def _instantiate(kind: type[SceneDataModule], arguments: Any, where: str) -> SceneDataModule:
    _check_types(kind, arguments, where)
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ConfigurationError(f"{where} {arguments!r} of {kind.__name__}: {error}") from error


def _check_types(kind: type[SceneDataModule], arguments: Any, where: str) -> None:
    """Compares arguments with the types that the constructor names, as `fit` does.

    Raises:
        ConfigurationError: naming the argument.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, fail_untyped=False, sub_configs=False)
    try:
        parser.parse_object(dict(arguments), defaults=False)
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(f"{where} of {kind.__name__}: {reason}") from error
