"""The network with random weights against pytorch-fid's own, from PNG files to features."""

import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_fid import inception as published
from pytorch_fid.fid_score import get_activations
from torch import Tensor

from data_modules.store import DataError
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.evaluation import inception
from lightning_genesis.evaluation.inception import InceptionFeatures, find_weights, load_inception, to_bytes


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Of a scale at which every layer matters."""
    generator = torch.Generator().manual_seed(0)
    state = InceptionFeatures().network.state_dict()
    for name, value in state.items():
        if value.dim() > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
    return state


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The weights in a file that takes the place of the published one."""
    path = tmp_path_factory.mktemp("weights") / "some.pth"
    torch.save(weights, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "WEIGHTS", replace(inception.WEIGHTS, sha256=digest))
        yield path


def test_features_equal_pytorch_fid_from_png_on(
    weights: dict[str, Tensor], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its script does it: truncated to a PNG, read back, in batches of which the last is smaller."""
    monkeypatch.setattr(published, "load_state_dict_from_url", lambda *args, **kwargs: weights)
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    paths = []
    for position, image in enumerate(images):
        paths.append(tmp_path / f"{position}.png")
        Image.fromarray((255 * image.numpy()).astype(np.uint8).transpose(1, 2, 0)).save(paths[-1])
    expected = get_activations(paths, published.InceptionV3(), batch_size=2, num_workers=0)
    found = load_inception(file)(to_bytes(images).float() / 255)
    assert found.shape == (3, 2048)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_is_frozen_and_never_trains(file: Path) -> None:
    network = load_inception(file)
    network.train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_autocast_changes_nothing(file: Path) -> None:
    network, images = load_inception(file), torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = network(images)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, network(images))


# ---------------------------------------------------------------- rounding


@pytest.mark.parametrize("rounding", ["truncate", "round"])
def test_bytes_stay_what_they_are(rounding: inception.Rounding) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(levels.float() / 255, rounding), levels)


def test_rounding_rules() -> None:
    values = torch.tensor([-0.2, 0.0, 0.9999 / 255, 10.4 / 255, 10.6 / 255, 1.0, 1.3])
    assert to_bytes(values).tolist() == [0, 0, 0, 10, 10, 255, 255]
    assert to_bytes(values, "round").tolist() == [0, 0, 1, 10, 11, 255, 255]


# ---------------------------------------------------------------- files


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", inception.NAMES)
def test_weights_are_found_in_the_hub(hub: Path, name: str) -> None:
    assert find_weights() is None
    (hub / name).touch()
    assert find_weights() == hub / name


def test_weights_by_path(hub: Path, file: Path) -> None:
    assert find_weights(file) == file
    with pytest.raises(ConfigurationError, match=r"absent\.pth: no such file, expected pt_inception"):
        find_weights(hub / "absent.pth")


def test_weights_are_fetched_and_checked(hub: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The publisher's place is played by a file of this machine."""
    content = file.read_bytes()
    there = replace(inception.WEIGHTS, url=file.as_uri(), bytes=len(content))
    monkeypatch.setattr(inception, "WEIGHTS", there)
    path = find_weights(fetch=True)
    assert path == hub / there.name
    assert path.read_bytes() == content
    path.unlink()
    monkeypatch.setattr(inception, "WEIGHTS", replace(there, sha256="0" * 64))
    with pytest.raises(DataError, match=r"SHA-256 .* expected 000"):
        find_weights(fetch=True)
    assert not path.exists()


def test_other_weights_are_refused(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigurationError, match=r"other\.pth: SHA-256 .*, expected .* not the papers' FID"):
        load_inception(other)


def test_no_code_in_the_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "trap.pth"
    torch.save({"trap": Trap()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "WEIGHTS", replace(inception.WEIGHTS, sha256=digest))
    with pytest.raises(pickle.UnpicklingError):
        load_inception(path)
    assert not (tmp_path / "sprung").exists()
