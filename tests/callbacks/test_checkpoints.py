"""By what the best checkpoint is chosen."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_genesis.callbacks.checkpoints import CheckpointOptions, RunCheckpoints


def best(options: CheckpointOptions, validations: list[dict[str, float]]) -> float:
    """What is called the best of some validations."""
    callback, model = RunCheckpoints(Path("unused"), options), Any
    for values in validations:
        state = SimpleNamespace(fn="fit")
        trainer: Any = SimpleNamespace(sanity_checking=False, state=state, callback_metrics=values)
        callback.on_validation_end(trainer, model)  # type: ignore[arg-type]
    return float(callback.state_dict()["best"])


@pytest.mark.parametrize(
    ("monitor", "mode", "expected"),
    [
        (None, None, 3.0),  # the least error
        ("val/mse", None, 3.0),
        ("val/mse", "max", 5.0),
        ("val/kl", None, 1.0),
        ("val/kl_latent", None, 2.0),
        ("val/elbo", None, -1.0),
        ("val/elbo", "min", -2.0),
    ],
)
def test_best(monitor: str | None, mode: str | None, expected: float) -> None:
    names = ("val/mse", "val/kl", "val/kl_latent") + (("val/elbo",) if monitor == "val/elbo" else ())
    rows = [(5.0, 1.0, 4.0, -2.0), (3.0, 6.0, 2.0, -1.0), (4.0, 2.0, 3.0, -1.5)]
    validations = [dict(zip(names, row, strict=False)) for row in rows]
    assert best(CheckpointOptions(monitor=monitor, mode=mode), validations) == expected
