"""S-Acc through a Trainer, against the same samples judged at once."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from data_modules import MultiDSprites
from lightning_genesis.callbacks.pictures import SAMPLE_SEED
from lightning_genesis.callbacks.structure import JUDGE, StructureCallback, share_text
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.metrics.structural_accuracy import StructuralAccuracy
from lightning_genesis.models import VAE, GenesisV2, SceneModel, SlotAttention
from lightning_genesis.models.base import EVALUATION_SEED
from lightning_genesis.scene import IndexedNoise, Scene
from tests.stand_in import SpriteTowers


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model() -> SceneModel:
    torch.manual_seed(0)
    return GenesisV2(num_slots=3, image_size=32, latent_dim=8, feature_dim=8).eval()


def make_data(root: str, kind: type[MultiDSprites] = SpriteTowers) -> MultiDSprites:
    sizes = {"image_size": 32, "train_size": 4, "val_size": 4, "test_size": 3, "num_slots": 3}
    return kind(root=root, **sizes)


def run_test(
    callback: StructureCallback, model: SceneModel, data: MultiDSprites, **options: Any
) -> dict[str, float]:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[callback],
        use_distributed_sampler=False,
        **options,
    )
    trainer.test(model, data, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for name, value in callback.values.items():
        assert logged[f"test/{name}"] == pytest.approx(value)
    return callback.values


def test_equals_all_at_once(model: SceneModel, root: str) -> None:
    expected = judged(model.sample(7, temperature=1.5, noise=IndexedNoise(SAMPLE_SEED, range(7))))
    for batch_size in (3, 50):
        callback = StructureCallback(num_images=7, temperature=1.5, batch_size=batch_size)
        found = run_test(callback, model, make_data(root))
        assert {name: found[name] for name in expected} == expected
        assert callback.options == {
            "num_samples": 7,
            "num_controls": 3,
            "temperature": 1.5,
            "sample_seed": SAMPLE_SEED,
            "judge": JUDGE,
        }


def judged(scene: Scene) -> dict[str, float]:
    metric = StructuralAccuracy()
    metric.update(scene.segmentation(), scene.reconstruction)
    return metric.compute()


@pytest.mark.parametrize("seen", [None, 2])
def test_controls(model: SceneModel, root: str, caplog: pytest.LogCaptureFixture, seen: int | None) -> None:
    """The test images with their true masks, and as the model makes them again, beside the samples."""
    data = make_data(root)
    data.batch_size = 1
    with caplog.at_level("INFO"):
        limit = {} if seen is None else {"limit_test_batches": seen}
        found = run_test(StructureCallback(num_images=7), model, data, **limit)
    dataset: Any = data.dataset("test")
    batch = dataset.__getitems__(list(range(seen or 3)))
    images = batch["image"].float() / 255
    true = StructuralAccuracy()
    true.update(batch["segmentation"], images)
    scene = model(images, IndexedNoise(EVALUATION_SEED, batch["index"]))
    for control, values in (("true", true.compute()), ("reconstructed", judged(scene))):
        for name in ("s_acc", "num_blocks"):
            assert found[f"{name}_{control}"] == values[name]
    assert found["num_blocks_true"] > 0
    assert (
        f"of 7 samples; {share_text(true.compute())} of {seen or 3} test images by their true" in caplog.text
    )


def test_data_without_towers(model: SceneModel, root: str) -> None:
    assert run_test(StructureCallback(2), model, make_data(root, MultiDSprites)) == {}
    assert run_test(StructureCallback(0), model, make_data(root)) == {}
    assert run_test(StructureCallback(2), model, make_data(root), fast_dev_run=True) == {}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(SlotAttention, "SlotAttention has no prior"), (VAE, "VAE has one slot, and so no masks")],
)
def test_skipped_with_a_line(
    kind: type[SceneModel], reason: str, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    small: dict[str, Any] = {"slot_dim": 8, "feature_dim": 8} if kind is SlotAttention else {"latent_dim": 4}
    with caplog.at_level("INFO"):
        assert (
            run_test(StructureCallback(2), kind(num_slots=3, image_size=32, **small), make_data(root)) == {}
        )
    assert f"S-Acc is skipped: {reason}" in caplog.text


@pytest.mark.parametrize(("option", "value"), [("num_images", -1), ("batch_size", 0)])
def test_options(option: str, value: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"structure.{option}: {value}, expected"):
        StructureCallback(**{option: value})


def test_published_data_are_towers(tmp_path: Path) -> None:
    from data_modules import ShapeStacks

    assert ShapeStacks(root=str(tmp_path)).shows_towers
