"""Reading the authors' checkpoint files, without running any code that they may contain."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import safe_globals

from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.interop.emorl import modern_names
from lightning_genesis.storage.json_file import read_json

LEGACY = r"(.+\.)?pixel_coords\.g_[12]$"
"""Coordinate grids in early checkpoints, which are no parameters."""

FLAGS: dict[str, Any] = {
    "K_steps": int,
    "img_size": int,
    "pixel_std": int | float,
    "pixel_std1": int | float,
    "g_goal": int | float,
    "g_init": int | float,
    "kernel": str,
    "prior_mode": str,
    "dynamic_K": bool,
    "klm_loss": bool,
    "detach_mr_in_klm": bool,
    "montecarlo_kl": bool,
    "pixel_bound": bool,
}
"""The flags that are read, and their types."""


@dataclass
class OfficialFile:
    """What is in an official checkpoint."""

    path: str
    """For messages."""
    state: dict[str, Tensor]
    """Parameters and buffers by official name, in the order of the official model."""
    optimizer: dict[str, Any] | None = None
    """State of the optimiser, in the order of the parameters."""
    beta: tuple[float, ...] | None = None
    """GECO's β of every branch before its last update, or the fixed β."""
    error_average: tuple[float, ...] | None = None
    """GECO's moving average of every branch, nats per image; None without GECO."""
    num_updates: int = 0
    """Optimiser steps that were made."""


class _Dtype:
    """Stands in for `numpy.dtype` in a pickle, so that no code of NumPy's is reached from a file."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else str(code)

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment: files come from little-endian machines."""


def _scalar(dtype: _Dtype, raw: bytes) -> float:
    """Stands in for NumPy's scalars: the number."""
    if dtype.code not in ("f4", "f8", "i4", "i8") or len(raw) != int(dtype.code[1]):
        raise ValueError(f"NumPy scalar of type {dtype.code}, expected f4, f8, i4 or i8")
    return float(np.frombuffer(raw, dtype=f"<{dtype.code}")[0])


_NUMPY = [
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]
"""β and the error average may have been saved as NumPy's scalars."""


def read_official(source: str | Path | Mapping[str, Any]) -> OfficialFile:
    """An official checkpoint, or a bare state dict; a file or what `torch.load` gave of one.

    Args:
        source: a file, read with `weights_only=True`, or its contents. Variables of the official Slot
            Attention, which is in TensorFlow, come as an `.npz` of arrays by name.

    Raises:
        CheckpointError: if the file is not there, damaged, or none of the authors'.
    """
    if isinstance(source, Mapping):
        return _unpack(source, "the state dict")
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    if path.suffix == ".npz":
        return _unpack(_read_arrays(path), str(path))
    try:
        with safe_globals(_NUMPY), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.simplefilter("ignore")  # of pickle's versions; what cannot be read is refused
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes the unpickler raises almost anything
        reason = " ".join(str(error).split())
        refused = re.search(r"Unsupported (?:global|operand|class)[^.]*\S*", reason)
        reason = refused[0] if refused else reason[:160]
        raise CheckpointError(f"{path}: not a readable checkpoint of weights alone ({reason})") from error
    return _unpack(contents, str(path))


def _read_arrays(path: Path) -> dict[str, Tensor]:
    """TensorFlow's variables, saved by `numpy.savez`; `/` in their names."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except Exception as error:  # on damaged bytes NumPy raises almost anything
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: not a readable archive of arrays ({reason})") from error


def _unpack(contents: Any, path: str) -> OfficialFile:
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"{path}: holds a {type(contents).__name__}, expected a dict of parameters")
    if "model_class" in contents:
        raise CheckpointError(f"{path}: is a checkpoint of Lightning Genesis already, nothing to import")
    if "model_state_dict" in contents:  # GENESIS, GENESIS-V2, MONet, the VAEs, SRI
        file = OfficialFile(path, _state(contents["model_state_dict"], path))
        file.optimizer = _optimizer(contents.get("optimiser_state_dict"), path)
        file.num_updates = int(number(contents.get("iter_idx", -1), f"{path}: iter_idx")) + 1
        file.beta = _numbers(contents, ("beta", "beta_sri"), path)
        file.error_average = _numbers(contents, ("err_ema", "err_sri_ema"), path)
        return file
    if "model" in contents and "step" in contents:  # EfficientMORL's repository
        file = OfficialFile(path, _state(contents["model"], path))
        file.optimizer = _optimizer(contents.get("model_opt"), path)
        file.num_updates = int(number(contents["step"], f"{path}: step")) + 1  # that step was made
        return file
    return OfficialFile(path, _state(contents, path))


def _state(state: Any, path: str) -> dict[str, Tensor]:
    """Checked, without DataParallel's prefix and without grids that older versions stored."""
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: holds no parameters, expected a state dict of tensors")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: entry {key!r} is a {type(value).__name__}, expected a state dict of tensors"
            )
        # a few bytes with a stride of zero can claim any shape
        if value.layout is not torch.strided or _num_bytes(value) > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: entry {key!r} is not stored in full, expected a dense tensor")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return modern_names({key: value for key, value in state.items() if not re.match(LEGACY, key)})


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _optimizer(state: Any, path: str) -> dict[str, Any] | None:
    if state is None:
        return None
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    if not isinstance(groups, list) or not groups or not isinstance(state.get("state"), Mapping):
        raise CheckpointError(f"{path}: the optimiser's state lacks state or param_groups")
    if not all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups):
        raise CheckpointError(f"{path}: the optimiser's param_groups hold no lists of parameters")
    return dict(state)


def _numbers(contents: Mapping[str, Any], names: tuple[str, ...], path: str) -> tuple[float, ...] | None:
    """Those of `names` that are there; None if none is."""
    found = [number(contents[name], f"{path}: {name}") for name in names if contents.get(name) is not None]
    return tuple(found) or None


def number(value: Any, name: str) -> float:
    """A number out of a file.

    Raises:
        CheckpointError: if it is none, or not finite; it starts with `name`.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{name} is a {type(value).__name__}, expected a number")
    if not np.isfinite(value):
        raise CheckpointError(f"{name} is {value}, expected a finite number")
    return float(value)


def read_flags(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The flags of an official run that are set; -1 stands for the dataset's default and is left out.

    Args:
        source: a run's `flags.json`, or its contents.

    Raises:
        ConfigurationError: if the file is not there or holds no JSON object.
    """
    if isinstance(source, Mapping):
        flags: Any = source
    else:
        flags = read_json(source)
        if not isinstance(flags, dict):
            raise ConfigurationError(f"{source}: holds a {type(flags).__name__}, expected a JSON object")
    flags = {name: value for name, value in flags.items() if value is not None and value != -1}
    for name, kind in FLAGS.items():
        if name in flags and not isinstance(flags[name], kind):
            found = f"{name} is {flags[name]!r}"
            raise ConfigurationError(f"flags: {found}, expected a {getattr(kind, '__name__', 'number')}")
    return flags
