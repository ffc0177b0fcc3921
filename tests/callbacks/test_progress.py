"""How fast a run goes, by the step."""

from types import SimpleNamespace
from typing import Any

from lightning_genesis.callbacks.progress import Throughput


def test_once_per_step_that_logs() -> None:
    """Also where three micro-batches make a step."""
    steps: list[int] = []
    logger = SimpleNamespace(log_metrics=lambda values, step: steps.append(step))
    trainer: Any = SimpleNamespace(world_size=1, log_every_n_steps=2, loggers=[logger])
    callback, model = Throughput(), None
    for micro_batch in range(12):
        trainer.global_step = (micro_batch + 1) // 3
        callback.on_train_batch_end(trainer, model, None, {"image": range(4)}, micro_batch)  # type: ignore[arg-type]
    assert steps == [1, 3]
