"""`lightning-genesis sample`: the same scenes from the same command, all of them or one clear line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from lightning_genesis import models
from lightning_genesis.cli import main
from lightning_genesis.commands.sample import sample_batches
from lightning_genesis.models import SRI, VAE, Genesis, GenesisV2, SceneModel, SlotAttention
from lightning_genesis.runs.loading import load_model
from lightning_genesis.scene import IndexedNoise
from lightning_genesis.storage.checkpoint import write_checkpoint
from tests.quick import few
from tests.weights_file import export


def small(kind: type[SceneModel], **options: Any) -> SceneModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "Genesis": {"mask_dim": 8, "component_dim": 4, "feature_dim": 8},
        "GenesisV2": {"latent_dim": 8, "feature_dim": 8},
        "MONet": {"latent_dim": 8, "feature_dim": 4},
        "VAE": {"latent_dim": 8},
        "EfficientMORL": {"latent_dim": 8, "feature_dim": 8, "decoder_dim": 8},
        "SceneGenesis": {"mask_dim": 8, "component_dim": 4, "feature_dim": 8, "scene_dim": 6},
        "SceneGenesisV2": {"latent_dim": 8, "feature_dim": 8, "scene_dim": 6},
        "FlowGenesisV2": {"latent_dim": 8, "feature_dim": 8, "flow_width": 8},
        "SRI": {"encoder_options": {"latent_dim": 8, "feature_dim": 8}, "scene_dim": 6, "hidden_dim": 16},
    }
    return kind(num_slots=3, image_size=32, **{**sizes.get(kind.__name__, {}), **options}).eval()


def make_run(path: Path, *checkpoints: str, data: dict[str, Any] | None = None) -> Path:
    """A run's folder with checkpoints of these names, each of weights of its own."""
    (path / "checkpoints").mkdir(parents=True)
    config = {"seed_everything": 0, "data": data or {"class_path": "data_modules.MultiDSprites"}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    model: Any = small(GenesisV2)
    for step, name in enumerate(checkpoints, start=1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.0 + 0.1 * step)
        contents = {
            "model_class": "GenesisV2",
            "hyper_parameters": dict(model.hparams),
            "state_dict": model.state_dict(),
            "global_step": step,
        }
        write_checkpoint(path / f"checkpoints/{name}.ckpt", contents)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def read_latents(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize(
    "name",
    few(
        [name for name in models.__all__ if name not in ("SceneModel", "SlotAttention")],
        *("GenesisV2", "SRI", "EfficientMORL"),
    ),
)
def test_every_generative_model(folder: Path, name: str, capsys: Any) -> None:
    kind = getattr(models, name)
    model: Any = small(kind)
    export(model, folder / "model.safetensors")
    options = ["--num_images", "3", "--seed", "5", "--images", "--latents"]
    assert main(["sample", "model.safetensors", "--output", "one", *options]) == 0
    assert f"model.safetensors -> one: {kind.__name__}, seed 5" in capsys.readouterr().out
    names = {path.name for path in (folder / "one").iterdir()}
    assert names == {"samples.png", "order.png", "steps.png", "images", "latents.safetensors"}
    latents = read_latents(folder / "one/latents.safetensors")
    with torch.no_grad():
        expected = model.sample(3, noise=IndexedNoise(5, range(3)))
        again = model.decode(latents["sample"])
    assert torch.allclose(again.reconstruction, expected.reconstruction, atol=1e-6)
    for number, image in enumerate(expected.reconstruction.clamp(0.0, 1.0)):
        written = pixels(folder / f"one/images/{number:06d}.png")
        assert np.abs(written - 255.0 * image.permute(1, 2, 0).numpy()).max() <= 0.51

    # the same again, byte for byte; and the first ones of more are the same
    assert main(["sample", "model.safetensors", "--output", "two", *options]) == 0
    for path in (folder / "one").rglob("*.*"):
        assert path.read_bytes() == (folder / "two" / path.relative_to(folder / "one")).read_bytes()
    assert not list(folder.glob(".*"))


def test_settings_are_swept_with_the_same_noise(folder: Path) -> None:
    model: Any = small(GenesisV2)
    export(model, folder / "model.safetensors")
    options = ["--num_images", "2", "--temperature", "0.5", "1", "--num_slots", "2", "5", "--latents"]
    assert main(["sample", "model.safetensors", "--output", "out/deep", *options]) == 0
    names = {path.name for path in (folder / "out/deep").iterdir()}
    settings = {f"temperature_{t}_{k}_slots" for t in ("0.5", "1") for k in (2, 5)}
    assert names == {"sweep.png", *settings}
    for setting, temperature, num_slots in (
        ("temperature_0.5_5_slots", 0.5, 5),
        ("temperature_1_2_slots", 1.0, 2),
    ):
        expected = model.sample(2, num_slots, temperature, IndexedNoise(0, range(2)))
        file = folder / "out/deep" / setting / "latents.safetensors"
        latents = read_latents(file)["sample"]
        assert latents.shape == (2, num_slots, 8)
        assert torch.allclose(latents, expected.latents["sample"], atol=1e-6)
        with safe_open(file, framework="pt") as opened:
            told = json.loads(opened.metadata()["lightning_genesis"])
        assert told == {
            "model_class": "GenesisV2",
            "checkpoint": "model.safetensors",
            "seed": 0,
            "temperature": temperature,
            "num_slots": num_slots,
            "prior": None,
        }


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model: Any = small(Genesis)
    scenes = [
        torch.cat([scene.reconstruction for scene in sample_batches(model, 7, seed=2, batch_size=size)])
        for size in (7, 3, 1)
    ]
    assert torch.allclose(scenes[0], scenes[1], atol=1e-6)
    assert torch.allclose(scenes[0], scenes[2], atol=1e-6)
    assert not torch.allclose(scenes[0][0], scenes[0][1], atol=1e-6)
    other = next(sample_batches(model, 7, seed=3)).reconstruction
    assert not torch.allclose(scenes[0], other, atol=1e-6)


def test_given_scene_variables(folder: Path) -> None:
    model: Any = small(SRI)
    export(model, folder / "model.safetensors")
    given = np.random.default_rng(0).normal(size=(4, 6))
    np.save(folder / "scenes.npy", given)
    np.save(folder / "one.npy", given[2])
    common = ["sample", "model.safetensors", "--latents", "--scene_latent"]
    assert main([*common, "scenes.npy", "--output", "four"]) == 0
    four = read_latents(folder / "four/latents.safetensors")["sample"]
    assert len(four) == 4  # as many as there are scene variables
    latent = torch.from_numpy(given).float()
    expected = model.sample(4, noise=IndexedNoise(0, range(4)), scene_latent=latent)
    assert torch.allclose(four, expected.latents["sample"], atol=1e-6)
    assert main([*common, "one.npy", "--output", "same", "--num_images", "3"]) == 0
    same = read_latents(folder / "same/latents.safetensors")["sample"]
    assert torch.allclose(same[2], four[2], atol=1e-6)


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (np.zeros((2, 5)), [], "has shape [2, 5], expected [6] or [num_images, 6]"),
        (np.zeros((0, 6)), [], "has shape [0, 6]"),
        (np.full(6, np.nan), [], "not finite"),
        (np.zeros((2, 6)), ["--num_images", "3"], "holds 2 scene variables, but --num_images is 3"),
        (np.array([{"a": 1}], dtype=object), [], "no readable .npy"),
        (b"rubbish", [], "no readable .npy"),
        (None, [], "no readable .npy"),
    ],
)
def test_wrong_scene_variables(
    folder: Path, content: Any, options: list[str], said: str, capsys: Any
) -> None:
    export(small(SRI), folder / "model.safetensors")
    if isinstance(content, bytes):
        (folder / "scenes.npy").write_bytes(content)
    elif content is not None:
        np.save(folder / "scenes.npy", content, allow_pickle=True)
    args = ["sample", "model.safetensors", "--output", "out", "--scene_latent", "scenes.npy", *options]
    assert main(args) == 2
    assert said in error_line(capsys)
    assert not (folder / "out").exists()


def test_no_prior_no_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(small(SlotAttention), folder / "slots.safetensors")
    assert main(["sample", "slots.safetensors", "--output", "out"]) == 2
    assert "SlotAttention has no prior over scenes and cannot sample" in error_line(capsys)
    export(small(VAE), folder / "vae.safetensors")
    # fails only at the second setting: the first one is not left behind
    assert main(["sample", "vae.safetensors", "--output", "out", "--num_slots", "1", "4"]) == 2
    assert "num_slots=4: a VAE has no masks; use 1" in error_line(capsys)
    assert {path.name for path in folder.iterdir()} == {"slots.safetensors", "vae.safetensors"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--output", "taken"], "taken is there already"),
        (["--output", "model.safetensors"], "model.safetensors is there already"),
        ([], "the following arguments are required: --output"),
        (["--output", "out", "--num_images", "0"], "--num_images 0, expected a number of at least 1"),
        (
            ["--output", "out", "--temperature", "1", "-0.5"],
            "--temperature -0.5, expected a number of at least 0",
        ),
        (["--output", "out", "--temperature", "nan"], "--temperature nan"),
        (["--output", "out", "--temperature", "hot"], "invalid float value: 'hot'"),
        (["--output", "out", "--num_slots", "0"], "--num_slots 0, expected"),
        (["--output", "out", "--seed", "-1"], "--seed -1, expected"),
        (["--output", "out", "--device", "abacus"], "--device abacus"),
        (["--output", "out", "--scene_latent", "x.npy"], "a GenesisV2 has no scene variable"),
        (["--output", "out", "--num_imgs", "3"], "unrecognized arguments: --num_imgs 3"),
    ],
)
def test_wrong_options(folder: Path, args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    export(small(GenesisV2), folder / "model.safetensors")
    (folder / "taken").mkdir()
    (folder / "taken/file").touch()
    assert main(["sample", "model.safetensors", *args]) == 2
    assert said in error_line(capsys)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "taken"}


def test_missing_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "nothing.ckpt", "--output", "out"]) == 2
    assert "nothing.ckpt: no such checkpoint" in error_line(capsys)
    (folder / "run").mkdir()
    assert main(["sample", "run", "--output", "out"]) == 2
    assert "has the run been trained?" in error_line(capsys)


# ---------------------------------------------------------------- what commands of a run share


def test_the_checkpoint_that_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(folder / "runs/one", "best", "last")
    for name, chosen in (
        ("best", []),
        ("best", ["--checkpoint", "best"]),
        ("last", ["--checkpoint", "last"]),
    ):
        place = f"out{len(list(folder.iterdir()))}"
        assert main(["sample", "runs/one", "--output", place, "--num_images", "1", "--latents", *chosen]) == 0
        assert f"runs/one/checkpoints/{name}.ckpt -> {place}" in capsys.readouterr().out
        file = folder / place / "latents.safetensors"
        with safe_open(file, framework="pt") as opened:
            told = json.loads(opened.metadata()["lightning_genesis"])
        assert told["checkpoint"] == f"one/checkpoints/{name}.ckpt"
        expected = load_model(folder / f"runs/one/checkpoints/{name}.ckpt")
        latents = expected.sample(1, noise=IndexedNoise(0, [0])).latents["sample"]
        assert torch.allclose(read_latents(file)["sample"], latents, atol=1e-6)


@pytest.mark.parametrize("command", ["sample", "label", "figures", "probe"])
def test_checkpoints_are_chosen_of_runs_alone(
    folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"class_path": "data_modules.MultiDSprites", "init_args": {"image_size": 32}}
    export(small(GenesisV2), folder / "model.safetensors", data)
    output = "page.html" if command == "label" else "out"
    arguments = [command, "model.safetensors", "--output", output, "--checkpoint"]
    assert main([*arguments, "last"]) == 2
    assert "--checkpoint last: model.safetensors is no run's folder" in error_line(capsys)
    assert main([*arguments, "newest"]) == 2
    assert f"{command}: argument --checkpoint: invalid choice: 'newest'" in error_line(capsys)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors"}


UNTRAINED = {
    "test": ["--config", "runs/new/config.yaml", "--ckpt_path", "last"],
    "sample": ["runs/new", "--output", "out"],
    "label": ["runs/new", "--output", "page.html"],
    "figures": ["runs/new", "--output", "out"],
    "probe": ["runs/new", "--output", "out"],
}


@pytest.mark.parametrize("emptied", [True, False], ids=["no file", "no folder"])
@pytest.mark.parametrize("command", UNTRAINED)
def test_a_run_without_a_checkpoint(
    folder: Path, command: str, emptied: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(folder / "runs/new")
    config = {
        "model": {"class_path": "lightning_genesis.models.GenesisV2"},
        "data": {"class_path": "data_modules.MultiDSprites"},
        "run": {"name": "new", "wandb": False},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if not emptied:
        (run / "checkpoints").rmdir()
    assert main([command, *UNTRAINED[command]]) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("lightning-genesis: ")]
    assert line.startswith("lightning-genesis: error: runs/new/checkpoints: no ")
    assert line.endswith("has the run been trained?")
    assert {path.name for path in folder.iterdir()} == {"runs"}
