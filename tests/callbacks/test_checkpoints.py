"""By what the best checkpoint is chosen."""

import math
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
        trainer: Any = SimpleNamespace(
            sanity_checking=False, state=state, callback_metrics=values, global_step=0
        )
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


def test_scores_that_are_not_finite_are_never_best() -> None:
    scores = (math.nan, math.inf, -math.inf)
    validations = [{"val/elbo": value} for value in (*scores, -3.0, *scores, -4.0)]
    assert best(CheckpointOptions(), validations) == -3.0
    assert best(CheckpointOptions(mode="min"), validations) == -4.0
    callback = RunCheckpoints(Path("unused"), CheckpointOptions())
    callback.load_state_dict({"monitor": "val/elbo", "best": math.inf})  # from before
    assert callback.state_dict() == {"monitor": "val/elbo", "best": None, "best_step": None}
