"""The arithmetic of `benchmarks/communication.py` against what a Trainer sends through a process group."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks.all_models import Batches, trainer_on
from benchmarks.communication import Communication, communication, read_counts
from lightning_genesis import models
from lightning_genesis.models import SceneModel
from tests.quick import few
from tests.ranks.tiny import tiny

STEPS = 4


def sent_by_a_trainer(model: SceneModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Bytes of every collective, by its kind, in the last step of a few; the buckets are made anew before."""
    found: dict[str, list[int]] = {"buckets": [], "gathered": [], "other": []}

    def hook(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        found["buckets"].append(bucket.buffer().numel() * bucket.buffer().element_size())
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def forget(*_: Any) -> None:
        for sizes in found.values():
            sizes.clear()

    def note(kind: str, at: int, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            found[kind].append(args[at].numel() * args[at].element_size())
            return function(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(dist, "all_gather_into_tensor", note("gathered", 1, dist.all_gather_into_tensor))
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(dist, name, note("other", 0, getattr(dist, name)))
    sync = torch.nn.parallel.DistributedDataParallel._sync_buffers

    def syncing(wrapper: Any) -> None:
        found["other"] += [x.numel() * x.element_size() for x in wrapper.modules_buffers]
        sync(wrapper)

    monkeypatch.setattr(torch.nn.parallel.DistributedDataParallel, "_sync_buffers", syncing)
    size = model.image_size
    trainer = trainer_on(torch.device("cpu"), max_steps=STEPS, strategy="ddp")
    monkeypatch.setattr(
        model,
        "on_train_start",
        lambda: trainer.strategy.model.register_comm_hook(None, hook),  # type: ignore[union-attr, operator]
    )
    monkeypatch.setattr(model, "on_train_batch_start", forget)
    try:
        trainer.fit(model, Batches((2, 3, size, size), STEPS).loader())
    finally:
        dist.destroy_process_group()
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    few([("GenesisV2", {"feature_dim": 64}), ("EfficientMORL", {}), ("Genesis", {})], "GenesisV2", "Genesis"),
)
def test_arithmetic_is_what_is_sent(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> SceneModel:
        return getattr(models, name)(3, 32, **{**tiny(name).options, **options})

    expected = communication(make())
    found = sent_by_a_trainer(make(), monkeypatch)
    assert sum(found["buckets"]) == expected.gradients
    assert len(found["buckets"]) == expected.buckets
    assert found["gathered"] == [expected.report]
    assert sum(found["other"]) == expected.buffers


def test_time_grows_with_bytes_and_with_nodes() -> None:
    small, large = Communication(10**6, 1, 60, 0), Communication(10**8, 4, 60, 0)
    assert small.seconds(2) < large.seconds(2) < large.seconds(8) < large.seconds(64)
    # 2 GPUs send each byte once: 0.1 GB at 300 GB/s, and five collectives
    assert large.seconds(2) == pytest.approx(1e8 / 300e9 + 5 * 20e-6)


def test_counts_are_read(tmp_path: Any) -> None:
    table = tmp_path / "counts.md"
    rows = ("MONet-G | 850 | 885 | 12.3 | 6.6", "GENESIS-V2 | 376 (450) | 388 (462) | 8.6 | 5.0")
    lines = [f"| {row} | 340 | 0, 0 |" for row in rows]
    table.write_text("\n".join(["| model | ... |", *lines, "| other | 1 |"]))
    assert read_counts(table) == {"MONet-G": 885 * 5e-6, "GENESIS-V2": 462 * 5e-6}
