"""Checkpoints and weight files, read without running any code that they may contain."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_genesis.errors import CheckpointError

OBJECTIVE = "objective."
"""Prefix of the objective's state, which is not part of the weights."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a `.ckpt` of ours, or of a `.safetensors` of weights, on the CPU.

    The result has at least `state_dict`, `model_class` and `hyper_parameters`.

    Raises:
        CheckpointError: if the file is not there, damaged, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        checkpoint = _read_safetensors(path)
    else:
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "model_class" not in checkpoint:
        raise CheckpointError(f"{path}: not a checkpoint of Lightning Genesis (no state_dict or model_class)")
    return checkpoint


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    return {**json.loads(metadata.get("lightning_genesis", "{}")), "state_dict": state}


def write_weights(path: str | Path, checkpoint: dict[str, Any], data: dict[str, Any]) -> None:
    """Writes the weights of a checkpoint as safetensors, with what is needed to build model and data again.

    Args:
        path: a `.safetensors` file; written under a temporary name, then renamed.
        checkpoint: from `read_checkpoint`.
        data: class and arguments of the data module, as in a configuration.
    """
    path = Path(path)
    header = {key: checkpoint[key] for key in ("model_class", "hyper_parameters")}
    header |= {"data": data, "global_step": checkpoint.get("global_step", 0)}
    weights = {key: value.contiguous() for key, value in weights_of(checkpoint).items()}
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(weights, temporary, metadata={"lightning_genesis": json.dumps(header)})
    temporary.rename(path)


def weights_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict without the objective's state."""
    return {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(OBJECTIVE)}


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads weights alone into a model: no optimiser, no step, no state of the objective.

    Raises:
        CheckpointError: if the file holds another model, or parameters of other names or shapes.
    """
    checkpoint = read_checkpoint(path)
    check_model(checkpoint, model, path)
    model.load_state_dict(weights_of(checkpoint), strict=False)


def check_model(checkpoint: dict[str, Any], model: nn.Module, path: str | Path) -> None:
    """Compares a checkpoint's model, names and shapes with a model's.

    Raises:
        CheckpointError: at the first difference.
    """
    if checkpoint["model_class"] != type(model).__name__:
        found = checkpoint["model_class"]
        raise CheckpointError(f"{path}: holds a {found}, but the model is a {type(model).__name__}")
    found, expected = weights_of(checkpoint), weights_of({"state_dict": model.state_dict()})
    for key in sorted(set(found) ^ set(expected)):
        where = "lacks" if key in expected else "has the additional"
        raise CheckpointError(f"{path}: {where} parameter {key}; it was made by a model with other options")
    for key, value in expected.items():
        if value.shape != found[key].shape:
            shapes = f"{list(found[key].shape)}, the model {list(value.shape)}"
            raise CheckpointError(f"{path}: parameter {key} has shape {shapes}; check the model's options")
