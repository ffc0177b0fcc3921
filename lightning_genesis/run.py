"""A run's folder, and getting a model back out of it.

```
runs/NAME/
  config.yaml       everything that made the run; `fit --config` of it makes the same run again
  checkpoints/      last.ckpt, best.ckpt, step-N.ckpt
  metrics.csv       one row per logged step; test.csv, validate.csv likewise
  pictures/         what the model sees, as PNG
  wandb-id.txt      the W&B run, so that a resumed run continues it
```
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_genesis.checkpoint import check_model, read_checkpoint, weights_of
from lightning_genesis.errors import CheckpointError, ConfigurationError

if TYPE_CHECKING:
    from data_modules import SceneDataModule
    from lightning_genesis.models import SceneModel

PREFERRED = ("best.ckpt", "last.ckpt")


def find_checkpoint(run: Path, name: str | None = None) -> Path:
    """A run's checkpoint: "best", "last", or the first of these that is there.

    Raises:
        CheckpointError: if it is not there.
    """
    names = PREFERRED if name is None else (f"{name}.ckpt",)
    for candidate in names:
        path = run / "checkpoints" / candidate
        if path.is_file():
            return path
    raise CheckpointError(f"{run / 'checkpoints'}: no {' or '.join(names)} there; has the run been trained?")


def load(path: str | Path, checkpoint: str | None = None) -> tuple["SceneModel", "SceneDataModule"]:
    """The model and the data module of a run, ready for use in Python.

    Args:
        path: a run's folder, or a `.safetensors` file made by `lightning-genesis export`.
        checkpoint: "best" or "last"; the best there is if None.

    Returns:
        the model in evaluation mode on the CPU, and its data module.

    Raises:
        CheckpointError: if there is no readable checkpoint.
        ConfigurationError: if the configuration names a class that is not ours.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        contents = read_checkpoint(path)
        data = contents["data"]
    else:
        contents = read_checkpoint(find_checkpoint(path, checkpoint))
        config = path / "config.yaml"
        if not config.is_file():
            raise CheckpointError(f"{config}: no such file; give the folder of a run")
        data = yaml.safe_load(config.read_text())["data"]
    return build_model(contents, path), build_data(data)


def build_model(checkpoint: dict[str, Any], path: str | Path) -> "SceneModel":
    """The model that a checkpoint holds, in evaluation mode.

    Raises:
        CheckpointError: if the model is not one of ours, or does not fit.
    """
    from lightning_genesis import models

    name = checkpoint["model_class"]
    if name not in models.__all__:
        raise CheckpointError(f"{path}: holds a {name!r}; known are {', '.join(models.__all__)}")
    model: SceneModel = getattr(models, name)(**checkpoint["hyper_parameters"])
    check_model(checkpoint, model, path)
    model.load_state_dict(weights_of(checkpoint), strict=False)
    return model.eval()


def build_data(config: dict[str, Any]) -> "SceneDataModule":
    """The data module that a configuration names.

    Raises:
        ConfigurationError: if the class is not a `SceneDataModule`.
    """
    from data_modules import SceneDataModule

    module, _, name = config["class_path"].rpartition(".")
    kind = getattr(import_module(module or "data_modules"), name, None)
    if not (isinstance(kind, type) and issubclass(kind, SceneDataModule)):
        raise ConfigurationError(f"data.class_path {config['class_path']!r} is no SceneDataModule")
    return kind(**config.get("init_args", {}))
