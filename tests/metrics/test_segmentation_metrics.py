"""The collection of six scores, and how the classes behave in a training run."""

import json
import os
import pickle
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import MetricCollection

from lightning_genesis.metrics import (
    AdjustedRandIndex,
    MeanSquaredError,
    PerImageMean,
    adjusted_rand_index,
    segmentation_covering,
    segmentation_metrics,
)
from tests.ranks.command import TIMEOUT

KEYS = ["ari", "ari_fg", "msc", "msc_fg", "sc", "sc_fg"]
ROOT = Path(__file__).parents[2]


def label_maps(num_images: int = 7) -> tuple[Tensor, Tensor]:
    """Random slot ids and instance ids; the last image has no foreground."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(6, (num_images, 12, 12), generator=generator).to(torch.uint8)
    target[-1] = 1
    prediction = torch.where(target < 3, target.long(), torch.randint(5, target.shape, generator=generator))
    return prediction, target


class Operators(TorchDispatchMode):
    """Names of the operators that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_equals_the_functions() -> None:
    prediction, target = label_maps()
    collection = segmentation_metrics(5, num_background=2, convention="emorl")
    assert isinstance(collection, MetricCollection)
    for part in (slice(0, 5), slice(5, 7)):
        collection.update(prediction[part], target[part])
    values = collection.compute()
    options: dict[str, Any] = {"num_slots": 5, "num_background": 2, "convention": "emorl"}
    expected = {"ari": adjusted_rand_index(prediction, target, **options).mean()}
    expected["ari_fg"] = adjusted_rand_index(prediction, target, foreground=True, **options).mean()
    for name, weighted in (("msc", False), ("sc", True)):
        for suffix, foreground in (("", False), ("_fg", True)):
            score = segmentation_covering(
                prediction, target, foreground=foreground, weighted=weighted, **options
            )
            expected[name + suffix] = score.mean()
    assert list(values) == KEYS
    for name in KEYS:
        torch.testing.assert_close(values[name], expected[name])
    for metric in collection.values():
        assert metric.image_counts()["without_foreground"].item() == 1


def test_pixels_are_counted_once() -> None:
    collection = segmentation_metrics(5)
    for _ in range(2):
        with Operators() as operators:
            collection.update(*label_maps())
        assert sum(name.startswith("scatter_add") for name in operators.names) == 1


def test_scores_that_agree_on_the_first_batch_stay_apart() -> None:
    prediction, target = label_maps()
    collection = segmentation_metrics(6, num_background=2)
    collection.update(target.long(), target)
    collection.update(prediction, target)
    values = collection.compute()
    assert len({round(value.item(), 9) for value in values.values()}) == 6


def test_clones_have_their_own_names_and_states() -> None:
    collection = segmentation_metrics(5, convention="skip")
    validation = collection.clone(prefix="val/", postfix="_attention")
    validation.update(*label_maps())
    assert list(validation.compute()) == [f"val/{key}_attention" for key in KEYS]
    assert all(metric.count.item() == 0 for metric in collection.values())


def test_forward_returns_the_batch_and_keeps_the_sum() -> None:
    prediction, target = label_maps()
    collection = segmentation_metrics(5)
    first, second = (collection(prediction[part], target[part]) for part in (slice(0, 5), slice(5, 7)))
    for name, value in collection.compute().items():
        torch.testing.assert_close(value, (5 * first[name] + 2 * second[name]) / 7)


def test_the_host_never_waits_in_update() -> None:
    prediction, target = label_maps()
    values = torch.rand(7)
    images = torch.rand(2, 7, 3, 4, 4)
    enlarged = target.repeat_interleave(2, dim=1).long()
    collection = segmentation_metrics(5, num_background=2, convention="skip")
    mean, error = PerImageMean(), MeanSquaredError()
    with Operators() as operators:
        collection.update(prediction, target)
        collection.update(prediction, enlarged)
        mean.update(values)
        error.update(*images)
    assert "scatter_add_" in operators.names
    waits = {"_local_scalar_dense", "nonzero", "is_nonzero", "bincount", "masked_select", "equal"}
    waiting = [name for name in operators.names if name in waits or "unique" in name]
    assert not waiting


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_never_waits_for_a_gpu() -> None:
    prediction, target = label_maps()
    collection = segmentation_metrics(5).to("cuda")
    on_device = prediction.cuda(), target.cuda()
    collection.update(*on_device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        collection.update(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = segmentation_metrics(5)
    expected.update(prediction, target)
    for name, value in collection.compute().items():
        torch.testing.assert_close(value.cpu(), expected.compute()[name])


def test_states_survive_saving() -> None:
    prediction, target = label_maps()
    metric = AdjustedRandIndex(5, num_background=2)
    metric.persistent(True)
    metric.update(prediction, target)
    copy = AdjustedRandIndex(5, num_background=2)
    copy.persistent(True)
    copy.load_state_dict(metric.state_dict())
    copy.update(prediction[:2], target[:2])
    metric.update(prediction[:2], target[:2])
    assert torch.equal(copy.compute(), metric.compute())

    collection = segmentation_metrics(5).clone(prefix="test/")
    collection.update(prediction, target)
    restored = pickle.loads(pickle.dumps(collection))
    restored.update(prediction, target)
    for name, value in collection.compute().items():
        torch.testing.assert_close(restored.compute()[name], value)


def test_logged_by_lightning_over_uneven_batches() -> None:
    lightning = pytest.importorskip("pytorch_lightning")
    prediction, target = label_maps()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.scores = segmentation_metrics(5).clone(prefix="val/")
            self.elbo = PerImageMean()

        def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
            self.scores.update(*batch)
            self.log_dict(self.scores)
            self.elbo.update(batch[1].flatten(1).sum(dim=1))
            self.log("val/elbo", self.elbo)

    dataset = torch.utils.data.TensorDataset(prediction, target)
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    (logged,) = trainer.validate(Module(), torch.utils.data.DataLoader(dataset, batch_size=5), verbose=False)
    assert logged["val/ari"] == pytest.approx(
        adjusted_rand_index(prediction, target, num_slots=5).mean().item()
    )
    assert logged["val/elbo"] == pytest.approx(target.double().sum().item() / 7)
    assert set(logged) == {f"val/{key}" for key in KEYS} | {"val/elbo"}


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.metrics.test_segmentation_metrics import one_process
one_process(1, sys.argv[2])
"""


def one_process(rank: int, folder: str) -> dict[str, float]:
    """Five of the images on rank 0, two on rank 1."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=TIMEOUT),
    )
    try:
        prediction, target = label_maps()
        part = slice(0, 5) if rank == 0 else slice(5, 7)
        collection = segmentation_metrics(5, num_background=2, convention="skip")
        mean = PerImageMean()
        collection.update(prediction[part], target[part])
        mean.update(torch.arange(7.0)[part])
        result = {name: value.item() for name, value in collection.compute().items()}
        result["mean"] = mean.compute().item()
        for name, metric in collection.items():
            result.update({f"{name}/{key}": count.item() for key, count in metric.image_counts().items()})
        Path(folder, f"{rank}.json").write_text(json.dumps(result))
    finally:
        torch.distributed.destroy_process_group()
    return result


@pytest.mark.slow  # `tests/test_evaluation_ranks.py` tests on two
def test_two_processes_equal_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SCRIPT, str(ROOT), str(tmp_path)]
    # This process is the other rank: importing torch is what takes the time.
    other = subprocess.Popen(command, env=environment)
    try:
        first = one_process(0, str(tmp_path))
        assert other.wait(timeout=TIMEOUT) == 0
    finally:
        other.kill()
    second = json.loads((tmp_path / "1.json").read_text())

    prediction, target = label_maps()
    collection = segmentation_metrics(5, num_background=2, convention="skip")
    collection.update(prediction, target)
    expected = {name: value.item() for name, value in collection.compute().items()}
    expected["mean"] = 3.0
    for name in KEYS:
        expected[f"{name}/counted"] = 6 if name.endswith("_fg") else 7
        expected[f"{name}/without_foreground"] = 1
    assert first == pytest.approx(expected, abs=1e-12)
    assert second == pytest.approx(expected, abs=1e-12)
