"""Nothing in a training step of the Trainer makes the device run dry, checked without a device.

The host is made to believe that what it computes is still on its way: events are recorded and waited for as
on a GPU, and a ledger says how much work was queued in between.
"""

from collections import Counter
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.counting import Counts, count_operations
from lightning_genesis.callbacks.finite_gate import Failure, FiniteGate
from lightning_genesis.callbacks.host_copy import HostCopy
from tests.callbacks.faulty import Faulty, Images

STEPS = 5


class Watched(Faulty):
    """Notes how many kernels its forward takes."""

    counts: Counts

    def __init__(self) -> None:
        super().__init__()
        self.of_forward = 0
        self.waits: list[Counter[str]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        before = self.counts.kernels.total()
        loss = super().training_step(batch, batch_idx)
        self.of_forward = self.counts.kernels.total() - before
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.waits.append(self.counts.syncs + self.counts.host_reads)


class Ledger:
    """Stands for `torch.cuda.Event`: how many kernels were queued behind the event when it was waited for."""

    counts: Counts
    queued: list[int]

    def record(self, *_: Any) -> None:
        self.at = self.counts.kernels.total()

    def synchronize(self) -> None:
        self.queued.append(self.counts.kernels.total() - self.at)


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("waits for the device")


def fit(monkeypatch: pytest.MonkeyPatch, recover: bool = False, **trainer: Any) -> tuple[Watched, list[int]]:
    pinned: list[bool] = []
    zeros = torch.zeros

    def unpinned(*sizes: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        pinned.append(pin_memory)
        return zeros(*sizes, **options)

    monkeypatch.setattr(HostCopy, "_goes_on", staticmethod(lambda values: True))
    monkeypatch.setattr("lightning_genesis.callbacks.host_copy.torch.zeros", unpinned)
    monkeypatch.setattr(torch.cuda, "Event", Ledger)
    for owner, name in ((torch.cuda, "synchronize"), (torch.cuda.Stream, "synchronize")):
        monkeypatch.setattr(owner, name, refuse)
    with count_operations() as counts:
        Ledger.counts, Ledger.queued = counts, []
        model = Watched()
        model.counts = counts
        gate = FiniteGate()
        if recover:
            gate.recover = lambda trainer, module, failure: isinstance(failure, Failure)
        monkeypatch.setattr(
            model, "configure_callbacks", lambda: [gate, *Faulty.configure_callbacks(model)[1:]]
        )
        runner = pl.Trainer(
            accelerator="cpu",
            max_steps=STEPS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **trainer,
        )
        runner.fit(model, DataLoader(Images(), batch_size=2))
        assert model.objective.step == STEPS
    first, *_, last = model.waits
    assert set(last - first) == {"numpy"}  # of what has landed on the host
    assert any(pinned)
    return model, Ledger.queued


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}])
def test_a_whole_forward_is_queued_behind_every_wait(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, queued = fit(monkeypatch, **options)
    *during, _ = queued  # the last one is at the end of training
    assert len(during) == STEPS - 1
    assert model.of_forward > 100
    assert min(during) >= model.of_forward


def test_reading_before_the_forward_is_what_would_leave_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with rollbacks; so the test above can fail."""
    model, queued = fit(monkeypatch, recover=True)
    assert max(queued[1:]) < model.of_forward / 3
