"""Small models as files, for tests of commands."""

from pathlib import Path
from typing import Any

from lightning_genesis.models import SceneModel
from lightning_genesis.storage.checkpoint import write_weights


def export(model: SceneModel, path: Path, data: dict[str, Any] | None = None) -> Path:
    """Writes a model as `lightning-genesis export` does."""
    contents = {
        "model_class": type(model).__name__,
        "hyper_parameters": dict(model.hparams),
        "state_dict": model.state_dict(),
    }
    write_weights(path, contents, data)
    return path
