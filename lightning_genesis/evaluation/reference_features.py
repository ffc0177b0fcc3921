"""Inception features of a dataset's images on disk, so that they are computed once.

A `.safetensors` holds one table and, in its metadata, a manifest of what it was made from. A file that was
made from anything else is refused: FID against another reference is another number.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.storage.files import replacing

_FEATURES = "features"


def write_features(path: Path, features: Tensor, manifest: Mapping[str, Any]) -> None:
    """Writes a table `[N, D]`; until it is complete, `path` is what it was.

    Raises:
        OSError: if it cannot be written.
    """
    features = features.float().cpu().contiguous()
    metadata = {"manifest": json.dumps(dict(manifest)), "sha256": _digest(features)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file({_FEATURES: features}, temporary, metadata=metadata)


def read_features(path: Path, manifest: Mapping[str, Any]) -> Tensor:
    """The table of a file, float32 `[N, D]` on the CPU.

    Args:
        path: the file.
        manifest: what it must have been made from.

    Raises:
        ConfigurationError: if it was made from something else, or is damaged; names what differs.
    """
    remedy = "remove it, or give another folder with --fid.cache"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            features = file.get_tensor(_FEATURES)
        found = json.loads(metadata["manifest"])
        intact = metadata["sha256"] == _digest(features)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigurationError(
            f"{path}: not readable as reference features ({reason}); {remedy}"
        ) from error
    for key, value in manifest.items():
        if not isinstance(found, dict) or found.get(key) != value:
            other = found.get(key) if isinstance(found, dict) else found
            raise ConfigurationError(
                f"{path}: holds reference features of {key} {other!r}, expected {value!r}; {remedy}"
            )
    if not intact or features.dim() != 2 or len(features) != manifest["num_images"]:
        raise ConfigurationError(
            f"{path}: damaged: its features {list(features.shape)} are not those of its manifest; {remedy}"
        )
    return features


def _digest(features: Tensor) -> str:
    data: Any = features.reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data).hexdigest()
