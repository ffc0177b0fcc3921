"""The trained models that come along: cards, names wherever weights are taken, and their scores again."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import lightning_genesis
from benchmarks.zoo_entry import score
from lightning_genesis.cli import main
from lightning_genesis.commands import demo
from lightning_genesis.figures.walk import PERIOD
from lightning_genesis.runs import zoo
from lightning_genesis.runs.experiments import find_experiment
from lightning_genesis.runs.priors import use_prior
from lightning_genesis.runs.zoo import KEYS, find_in_zoo, find_weights, list_zoo, zoo_folder
from tests.quick import few

NAMES = [card.name for card in list_zoo()]
FIRST = "genesis-v2_sprites"


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one's own with one model."""
    shutil.copytree(zoo_folder() / FIRST, tmp_path / FIRST)
    monkeypatch.setattr(zoo, "zoo_folder", lambda: tmp_path)
    return tmp_path / FIRST


@pytest.mark.parametrize("name", NAMES)
def test_cards(name: str) -> None:
    card = find_in_zoo(name)
    assert card.contents.keys() == KEYS.keys()
    for key, kind in KEYS.items():
        assert type(card.contents[key]) is kind, key
        assert card.contents[key] not in ("", [], {}), key
    assert card.weights.stat().st_size <= 3_000_000
    for mean, error in card.contents["scores"].values():
        assert abs(mean) > error > 0
    assert f"--ckpt_path zoo:{name}" in card.contents["test"]


def test_the_zoo_is_not_large() -> None:
    assert sum(path.stat().st_size for path in zoo_folder().rglob("*") if path.is_file()) <= 30_000_000
    assert FIRST in NAMES


@pytest.mark.parametrize("name", few(NAMES, FIRST))
def test_the_experiment_makes_the_model_of_the_weights(name: str, tmp_path: Path) -> None:
    """`--ckpt_path` compares them: another option of the mathematics would be refused."""
    model, data = lightning_genesis.load(f"zoo:{name}")
    small = ["--data.root", str(tmp_path), "--run.root", str(tmp_path / "runs"), "--run.wandb", "false"]
    small += ["--data.train_size", "8", "--data.val_size", "8", "--data.test_size", "8"]
    small += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    assert main(["test", "--config", f"zoo:{name}", "--ckpt_path", f"zoo:{name}", *small]) == 0
    assert model.image_size == data.image_size
    assert not model.training


def test_the_commands_take_its_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = ["sample", f"zoo:{FIRST}", "--num_images", "2", "--device", "cpu"]
    assert main([*sample, "--output", str(tmp_path / "samples")]) == 0
    assert (tmp_path / "samples" / "samples.png").is_file()
    label = ["label", f"zoo:{FIRST}", "--num_images", "2", "--device", "cpu"]
    assert main([*label, "--output", str(tmp_path / "page.html")]) == 0
    assert main(["zoo"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in NAMES)
    assert main(["zoo", FIRST]) == 0
    told = capsys.readouterr().out
    assert "Apache-2.0" in told
    assert str(find_weights(f"zoo:{FIRST}")) in told


@pytest.mark.parametrize(
    ("name", "prior"),
    [
        (card.name, path.parent.name)
        for card in list_zoo()
        for path in card.folder.glob("priors/*/config.json")
    ],
)
def test_priors_that_come_along_belong_to_the_weights(name: str, prior: str, tmp_path: Path) -> None:
    output = str(tmp_path / "samples")
    given = ["sample", f"zoo:{name}", "--prior", prior, "--num_images", "2", "--device", "cpu"]
    assert main([*given, "--output", output]) == 0
    assert (tmp_path / "samples" / "samples.png").is_file()


def test_the_demo_shows_the_weights_that_come_along(tmp_path: Path) -> None:
    model, data = lightning_genesis.load(demo.SHIPPED)
    data.root, data.train_size, data.test_size = tmp_path, 8, 8
    data.prepare()
    weights = find_weights(demo.SHIPPED)
    used = use_prior(model, weights, demo.PRIOR, weights)
    assert used["name"] == demo.PRIOR
    picture, walk = demo.draw({"shipped weights": model}, data, tmp_path / "pictures", num_images=2)
    with Image.open(picture) as found:
        assert found.height > 4 * 96  # two images, two samples
    with Image.open(walk) as found:
        assert getattr(found, "n_frames", 1) == 4 * PERIOD


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "zoo:genesis-v2", "--output", "never"],
        ["figures", "zoo:genesis-v2", "--output", "never"],
        ["zoo", "genesis-v2"],
        ["test", "--config", "zoo:genesis-v2"],
        ["test", "--config", "quickstart", "--ckpt_path", "zoo:genesis-v2"],
        ["fit", "--config", "quickstart", "--init_from", "zoo:genesis-v2", "--run.root", "never"],
    ],
)
def test_a_name_that_is_not_there(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"genesis-v2: not in the zoo (did you mean zoo:{FIRST}?)" in error
    assert not any(tmp_path.rglob("*.ckpt"))


def test_a_changed_byte_is_refused(copied: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = copied / f"{FIRST}.safetensors"
    assert find_weights(f"zoo:{FIRST}") == file
    contents = bytearray(file.read_bytes())
    contents[-1000] ^= 1
    file.write_bytes(contents)
    with pytest.raises(lightning_genesis.errors.CheckpointError, match="was changed: SHA-256"):
        lightning_genesis.load(f"zoo:{FIRST}")
    assert main(["sample", f"zoo:{FIRST}", "--output", str(tmp_path / "never")]) == 2
    assert "was changed: SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "never").exists()
    file.unlink()
    with pytest.raises(lightning_genesis.errors.CheckpointError, match="is not there"):
        find_weights(f"zoo:{FIRST}")


def test_its_experiment_is_found_by_name() -> None:
    assert find_experiment(f"zoo:{FIRST}") == zoo_folder() / FIRST / f"{FIRST}.yaml"


def test_other_paths_stay_as_they_are() -> None:
    assert find_weights("runs/zoo") == Path("runs/zoo")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_scores_again_on_fresh_scenes(name: str, tmp_path: Path) -> None:
    """Scenes of another seed, which no training and no choice has seen."""
    card = find_in_zoo(name)
    torch.manual_seed(0)
    again = score(f"zoo:{name}", 2000, str(tmp_path), seed=1, train_size=8, val_size=8)
    for metric, (mean, error) in card.contents["scores"].items():
        found, its_error = again[metric]
        assert abs(found - mean) < 4 * (error**2 + its_error**2) ** 0.5, metric
