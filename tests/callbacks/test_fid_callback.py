"""FID and KID through a Trainer, against pytorch-fid's distance on samples drawn at once."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import Tensor

from data_modules import MultiDSprites
from data_modules.base import Split
from lightning_genesis.callbacks.fid import FIDCallback
from lightning_genesis.callbacks.pictures import SAMPLE_SEED
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.evaluation.inception import to_bytes
from lightning_genesis.evaluation.split import choose_images
from lightning_genesis.metrics.kid import kernel_inception_distance
from lightning_genesis.models import VAE, SceneModel, SlotAttention
from lightning_genesis.scene import IndexedNoise
from tests.stand_in import StandIn, StandInFID

NUM_TEST = 13
TOGETHER: tuple[tuple[Split, int], ...] = (("test", NUM_TEST), ("val", 4))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model() -> SceneModel:
    torch.manual_seed(0)
    return VAE(num_slots=1, image_size=32, latent_dim=4).eval()


def make_data(root: str, **options: Any) -> MultiDSprites:
    sizes = {"image_size": 32, "train_size": 4, "val_size": 4, "test_size": NUM_TEST, "batch_size": 5}
    return MultiDSprites(root=root, num_slots=1, **{**sizes, **options})


def run_test(fid: FIDCallback, model: SceneModel, data: MultiDSprites, **options: Any) -> dict[str, float]:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[fid],
        use_distributed_sampler=False,
        **options,
    )
    trainer.test(model, data, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for name, value in fid.values.items():
        assert logged[f"test/{name}"] == pytest.approx(value, rel=1e-6)
    return fid.values


def distances(real: Tensor, fake: Tensor) -> tuple[float, float]:
    moments = [(x.double().mean(dim=0).numpy(), np.cov(x.double().numpy().T)) for x in (real, fake)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fid = calculate_frechet_distance(*moments[0], *moments[1])
    return float(fid), float(kernel_inception_distance(real, fake))


@pytest.mark.parametrize("num_images", [10_000, 11])
def test_equals_all_at_once(model: SceneModel, root: str, num_images: int) -> None:
    fid, data = StandInFID(num_images=num_images, batch_size=4, temperature=0.8), make_data(root)
    values = run_test(fid, model, data)
    count = min(num_images, NUM_TEST)
    chosen = choose_images(NUM_TEST, num_images)
    assert len(chosen) == count
    images = data.dataset("test").__getitems__(chosen)["image"]  # type: ignore[attr-defined]
    noise = IndexedNoise(SAMPLE_SEED, range(count))
    samples = model.sample(count, temperature=0.8, noise=noise).reconstruction
    network = StandIn()
    real = network(images / 255)
    for rounding, suffix in (("truncate", ""), ("round", "_round")):
        fake = network(to_bytes(samples, rounding).float() / 255)  # type: ignore[arg-type]
        expected = distances(real, fake)
        assert values[f"fid{suffix}"] == pytest.approx(expected[0], rel=1e-4, abs=1e-6)
        assert values[f"kid{suffix}"] == pytest.approx(expected[1], rel=1e-4, abs=1e-6)
    assert values["fid"] != values["fid_round"]
    assert fid.options["num_images"] == count
    assert fid.options["temperature"] == 0.8


@pytest.mark.parametrize("num_images", [10_000, 9])
def test_validation_and_test_images_together(
    model: SceneModel, root: str, tmp_path: Path, num_images: int
) -> None:
    """As for CLEVR6, whose test split has half of the papers' images."""
    fid, data = StandInFID(num_images=num_images, cache=str(tmp_path), val_and_test=True), make_data(root)
    values = dict(run_test(fid, model, data))
    both = torch.cat([data.dataset(split).__getitems__(range(n))["image"] for split, n in TOGETHER])
    chosen = choose_images(NUM_TEST + 4, num_images)
    assert len(chosen) == fid.options["num_images"] == fid.options["num_samples"] == min(num_images, 17)
    assert fid.options["splits"] == ["test", "val"]
    samples = model.sample(len(chosen), noise=IndexedNoise(SAMPLE_SEED, range(len(chosen)))).reconstruction
    network = StandIn()
    fake = network(to_bytes(samples, "truncate").float() / 255)
    expected = distances(network(both[chosen] / 255), fake)
    assert (values["fid"], values["kid"]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    # kept apart from the features of the test images alone
    (name, _) = sorted(path.name for path in tmp_path.iterdir())
    assert name == f"test-13+val-{len(chosen)}-round.safetensors"
    again = StandInFID(num_images=num_images, cache=str(tmp_path), val_and_test=True)
    assert run_test(again, model, make_data(root)) == pytest.approx(values, rel=1e-6, abs=1e-9)
    assert again.extractor.num_seen == 2 * len(chosen)


def test_batch_size_does_not_matter(model: SceneModel, root: str, tmp_path: Path) -> None:
    caches = (str(tmp_path / "one"), str(tmp_path / "other"))
    first = run_test(StandInFID(batch_size=13, cache=caches[0]), model, make_data(root, batch_size=13))
    second = run_test(StandInFID(batch_size=3, cache=caches[1]), model, make_data(root, batch_size=2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=1e-5, abs=1e-7)


def test_images_are_gone_through_once(model: SceneModel, root: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "features")
    first = StandInFID(cache=cache)
    values = dict(run_test(first, model, make_data(root)))
    assert first.extractor.num_seen == 3 * NUM_TEST  # two roundings of samples; bytes are the same under both
    assert len(list((tmp_path / "features").iterdir())) == 2
    second = StandInFID(cache=cache)
    assert run_test(second, model, make_data(root)) == pytest.approx(values, rel=1e-6, abs=1e-9)
    assert second.extractor.num_seen == 2 * NUM_TEST


def test_features_are_kept_beside_the_data(model: SceneModel, root: str) -> None:
    data = make_data(root)
    kept = data.plan("test").path.parent / "inception" / f"test-{NUM_TEST}-{NUM_TEST}-round.safetensors"
    kept.unlink(missing_ok=True)
    run_test(StandInFID(roundings=["round"]), model, data)
    assert kept.is_file()


def test_features_of_other_data_are_refused(model: SceneModel, root: str, tmp_path: Path) -> None:
    cache = str(tmp_path)
    run_test(StandInFID(cache=cache), model, make_data(root))
    with pytest.raises(ConfigurationError, match=r"reference features of split_sha256 .*--fid\.cache"):
        run_test(StandInFID(cache=cache), model, make_data(root, variant="unique"))


def test_features_of_another_network_are_refused(
    model: SceneModel, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_test(StandInFID(cache=str(tmp_path)), model, make_data(root))
    monkeypatch.setattr(StandIn, "identity", "another")
    with pytest.raises(ConfigurationError, match="weights_sha256 'stand-in', expected 'another'"):
        run_test(StandInFID(cache=str(tmp_path)), model, make_data(root))


@pytest.mark.parametrize("damage", ["rubbish", "byte"])
def test_damaged_features_are_refused(model: SceneModel, root: str, tmp_path: Path, damage: str) -> None:
    run_test(StandInFID(cache=str(tmp_path)), model, make_data(root))
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(b"rubbish" if damage == "rubbish" else content)
    with pytest.raises(ConfigurationError, match=r"(not readable as reference features|damaged).*remove it"):
        run_test(StandInFID(cache=str(tmp_path)), model, make_data(root))


# ---------------------------------------------------------------- nothing under its name


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that were said about FID."""
    lines: list[str] = []
    monkeypatch.setattr("lightning_genesis.callbacks.fid.rank_zero_info", lines.append)
    return lines


def test_skipped_without_weights(
    model: SceneModel, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    fid = FIDCallback()
    assert run_test(fid, model, make_data(root)) == {}
    assert fid.options == {}
    (line,) = said
    assert "FID is skipped" in line
    assert all(way in line for way in ("--fid.weights", "--fid.download true", "pt_inception-2015-12-05"))


def test_wrong_weights_stop_before_the_test(model: SceneModel, root: str, tmp_path: Path) -> None:
    (tmp_path / "other.pth").write_bytes(b"other")
    with pytest.raises(ConfigurationError, match=r"other\.pth: SHA-256"):
        run_test(FIDCallback(weights=str(tmp_path / "other.pth")), model, make_data(root))


def test_skipped_by_a_model_that_cannot_sample(root: str, said: list[str]) -> None:
    small = {"slot_dim": 8, "feature_dim": 8, "mlp_dim": 16, "decoder_dim": 8, "decoder_stages": 2}
    model = SlotAttention(num_slots=3, image_size=32, **small)
    assert run_test(StandInFID(), model, make_data(root)) == {}
    assert "FID is skipped: SlotAttention" in said[0]


def test_skipped_where_images_are_missing(
    model: SceneModel, root: str, said: list[str], tmp_path: Path
) -> None:
    fid = StandInFID(cache=str(tmp_path))
    assert run_test(fid, model, make_data(root), limit_test_batches=1) == {}
    assert fid.options == {}
    assert f"5 of the {NUM_TEST} images" in said[-1]
    assert list(tmp_path.iterdir()) == []


def test_turned_off(model: SceneModel, root: str, said: list[str]) -> None:
    assert run_test(StandInFID(num_images=0), model, make_data(root)) == {}
    assert said == []


@pytest.mark.parametrize("options", [{"num_images": 1}, {"num_images": -3}, {"batch_size": 0}])
def test_wrong_options(options: dict[str, int]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"fid.{name}: "):
        FIDCallback(**options)


def test_generators_are_left_alone(model: SceneModel, root: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run_test(StandInFID(), model, make_data(root))
    assert torch.equal(torch.rand(3), expected)
