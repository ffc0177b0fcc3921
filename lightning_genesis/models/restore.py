"""A model out of a checkpoint's contents: its class, its hyperparameters, its weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lightning_genesis.classes import class_path, subclasses
from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.storage.checkpoint import check_model, read_checkpoint, weights_of

if TYPE_CHECKING:
    from lightning_genesis.models.base import SceneModel

LARGEST = 1_000_000
"""No hyperparameter but a number of steps is above it; a loop over more would take too long."""
SPARE_BYTES = 2**28
"""For buffers, such as grids of coordinates, that a checkpoint does not hold."""
M = TypeVar("M", bound="SceneModel")


def make_model(
    checkpoint: dict[str, Any],
    path: str | Path,
    kind: type[M],
    overrides: dict[str, Any] | None = None,
) -> M:
    """A new model with the hyperparameters and shapes that a checkpoint has.

    Names and shapes are compared on a model without memory first: a small file can ask for a huge model.

    Args:
        checkpoint: from `read_checkpoint`.
        path: where it comes from, for messages.
        kind: the class it should be; of an abstract one, the class below it that the checkpoint names.
            Nothing is imported for that name.
        overrides: hyperparameters to change.

    Raises:
        CheckpointError: if it names another class, hyperparameters that the class does not take, or other
            shapes.
    """
    kind = model_class(checkpoint, path, kind)
    arguments = {**checkpoint["hyper_parameters"], **(overrides or {})}
    for name, value in arguments.items():
        if isinstance(value, int) and abs(value) > LARGEST and not name.endswith("_steps"):
            raise CheckpointError(f"{path}: its {name} is above {LARGEST:,}")
    try:
        with torch.device("meta"), few_tensors(len(checkpoint["state_dict"])):
            sketch = kind(**arguments)
        check_model(checkpoint, sketch, path)
        _check_memory(sketch, weights_of(checkpoint))
        return kind(**arguments)
    except (ConfigurationError, CheckpointError):
        raise
    except Exception as error:  # values of wrong types fail anywhere in the model
        reason = " ".join(str(error).split())[:160]
        name = kind.__name__
        raise CheckpointError(f"{path}: its hyperparameters make no {name} ({reason})") from error


@contextmanager
def few_tensors(count: int) -> Iterator[None]:
    """Ends the making of a module that has far more parameters than a checkpoint: it might never end."""
    made = 0

    def count_one(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal made
        made += 1
        if made > 10 * count + 1000:
            raise ValueError(f"far more than the {count} tensors that it holds")

    handle = register_module_parameter_registration_hook(count_one)
    try:
        yield
    finally:
        handle.remove()


def _check_memory(sketch: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Compares what the model takes, with buffers that no checkpoint holds, with what the weights take.

    Raises:
        ValueError: if it is out of all proportion.
    """
    held = sum(value.numel() * value.element_size() for value in weights.values())
    needed = sum(value.numel() * value.element_size() for value in (*sketch.parameters(), *sketch.buffers()))
    if needed > 10 * held + SPARE_BYTES:
        raise ValueError(f"a model of {needed:,} bytes for weights of {held:,}")


def model_class(checkpoint: dict[str, Any], path: str | Path, kind: type[M]) -> type[M]:
    """The class of a checkpoint's model: `kind`, or of an abstract one what the checkpoint names below it.

    Raises:
        CheckpointError: if it names another one, or one that is not imported.
    """
    name = checkpoint["model_class"]
    if kind.is_abstract():
        known = [one for one in subclasses(kind) if not one.is_abstract()]
        found = [one for one in known if one.__name__ == name]
        if len(found) > 1:
            paths = " and ".join(class_path(one) for one in found)
            raise CheckpointError(
                f"{path}: holds a {name!r}, which is the name of {paths}: give --model CLASS"
            )
        if not found:
            names = ", ".join(sorted(one.__name__ for one in known if not one.__name__.startswith("_")))
            raise CheckpointError(
                f"{path}: holds a {name!r}; known are {names}; give your own with --model CLASS"
            )
        return found[0]
    if name != kind.__name__:
        raise CheckpointError(f"{path}: holds a {name}, expected a {kind.__name__}")
    return kind


def build_model(checkpoint: dict[str, Any], path: str | Path, kind: type[M]) -> M:
    """The model that a checkpoint holds, weights alone, in evaluation mode; see `make_model`.

    Raises:
        CheckpointError: if the model is of another class, or does not fit.
    """
    model = make_model(checkpoint, path, kind)
    model.load_state_dict(weights_of(checkpoint), strict=False)
    return model.eval()


def restore_model(path: str | Path, kind: type[M], overrides: dict[str, Any] | None = None) -> M:
    """The model that a checkpoint holds, with the state of its objective; see `make_model`.

    A `.safetensors` holds weights alone, and another objective cannot take over the state: it starts anew.

    Raises:
        CheckpointError: if the file is not there, damaged, holds another model, or does not fit.
    """
    contents = read_checkpoint(path)
    model = make_model(contents, path, kind, overrides)
    if Path(path).suffix == ".safetensors" or "objective" in (overrides or {}):
        model.load_state_dict(weights_of(contents), strict=False)
        return model
    try:
        model.load_state_dict(contents["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: the objective's state does not fit ({reason})") from error
    return model
