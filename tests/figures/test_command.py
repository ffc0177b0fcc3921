"""`lightning-genesis figures`: what applies to a model is drawn, what does not is named."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_modules import MultiDSprites
from lightning_genesis.cli import main
from lightning_genesis.commands import figures as command
from lightning_genesis.commands import run_figures
from lightning_genesis.commands.figures import FIGURES, RunFigures, known_fid
from lightning_genesis.commands.run_figures import is_tower
from lightning_genesis.figures import failure_cases
from lightning_genesis.figures.drawing import sample_grid
from lightning_genesis.models import SRI, VAE, EfficientMORL, GenesisV2, SceneModel, SlotAttention
from lightning_genesis.runs.results import Checkpoint
from lightning_genesis.scene import IndexedNoise, Scene
from tests.quick import few
from tests.report.fake_runs import add_result
from tests.stand_in import SpriteTowers
from tests.test_sampling import error_line, make_run, small
from tests.weights_file import export

DATA: dict[str, Any] = {"image_size": 32, "num_slots": 3, "train_size": 8, "val_size": 4, "test_size": 6}
SAMPLED = {"samples", "generation", "generation_order", "temperatures", "slots", "random_walk"}
INFERRED = {
    *("reconstructions", "decomposition", "inference_seeds", "latent_traversal", "failures"),
    "data_examples",
}
FEW = ["--num_images", "2", "--num_frames", "3"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared images."""
    root = tmp_path_factory.mktemp("figures")
    MultiDSprites(**DATA, root=str(root / "data")).prepare()
    return root


@pytest.fixture
def folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(root / "data")
    return tmp_path


def exported(model: SceneModel, name: str) -> str:
    export(model, Path(name), {"class_path": "data_modules.MultiDSprites", "init_args": dict(DATA)})
    return name


def drawn(folder: Path) -> set[str]:
    return {path.name if path.is_dir() else path.stem for path in folder.iterdir()}


def duration(path: Path) -> int:
    """Milliseconds of an animation; frames that are equal may be stored as one that lasts longer."""
    total = 0
    with Image.open(path) as animation:
        for frame in range(animation.n_frames):
            animation.seek(frame)
            total += animation.info["duration"]
    return total


@pytest.mark.parametrize(
    ("kind", "expected"),
    few(
        [
            (GenesisV2, INFERRED | SAMPLED | {"initial_masks"}),
            (SRI, INFERRED | SAMPLED | {"imagination", "initial_masks"}),
            (EfficientMORL, INFERRED | SAMPLED | {"initial_masks"}),
            (SlotAttention, INFERRED | {"initial_masks"}),
            (VAE, INFERRED | SAMPLED - {"slots"}),
        ],
        *(SRI, SlotAttention, VAE),
    ),
)
def test_what_applies_is_drawn(folder: Path, kind: Any, expected: set[str], capsys: Any) -> None:
    assert main(["figures", exported(small(kind), "model.safetensors"), "--output", "out", *FEW]) == 0
    assert drawn(folder / "out") == expected
    for path in (folder / "out").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) >= 96
    if "random_walk" in expected:
        assert duration(folder / "out/random_walk.gif") == 3 * 170
    told = capsys.readouterr().out
    missing = set(FIGURES) - expected
    assert all(name in told.split("not drawn", 1)[1] for name in missing)


def test_figures_of_a_run_stand_in_its_folder(folder: Path) -> None:
    tiny = {
        "model": {
            "class_path": "lightning_genesis.models.GenesisV2",
            "init_args": {"feature_dim": 8, "latent_dim": 8},
        },
        "data": {
            "class_path": "data_modules.MultiDSprites",
            "init_args": {**DATA, "batch_size": 4, "root": str((folder / "data").resolve())},
        },
        "trainer": {
            "max_steps": 2,
            "val_check_interval": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
        },
        "pictures": {"num_images": 2, "every": 2, "walk_frames": 3},
        "run": {"wandb": False, "name": "run.1-seed0"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    assert duration(folder / "runs/run.1-seed0/pictures/random_walk.gif") == 3 * 170
    run, only = "runs/run.1-seed0", ["--only", "samples", "failures"]
    assert main(["figures", run, *FEW, *only]) == 0
    assert drawn(folder / run / "figures") == {"samples", "failures"}
    first = (folder / run / "figures/samples.png").read_bytes()
    # of a checkpoint alone it is not known where to write and what to show
    checkpoint = f"{run}/checkpoints/last.ckpt"
    (folder / "data.yaml").write_text(yaml.safe_dump(tiny["data"]))
    assert main(["figures", checkpoint, "--output", "out", "--data", "data.yaml", *FEW, *only]) == 0
    assert (folder / "out/samples.png").read_bytes() == first
    # several runs
    both = ["figures", run, checkpoint, "--output", "both", "--data", "data.yaml", "--fid", "71", "73.25"]
    assert main([*both, *FEW, "--only", "samples"]) == 0
    assert drawn(folder / "both") == {"run.1-seed0", "last", "samples_by_run"}
    assert main([*both, *FEW, "--only", "reconstructions"]) == 0
    assert "comparison" in drawn(folder / "both")
    # the sheet of all is drawn where some have samples, though another figure does not apply
    assert (
        main([*both[:3], "--data", "data.yaml", "--output", "some", *FEW, "--only", "imagination", "samples"])
        == 0
    )
    assert "samples_by_run" in drawn(folder / "some")
    assert main([*both[:3], "--data", "data.yaml", "--output", "none", *FEW, "--only", "failures"]) == 0
    assert drawn(folder / "none") == {"run.1-seed0", "last"}


def test_images_of_data_without_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = {"class_path": "data_modules.MultiDSprites", "init_args": dict(DATA)}
    (folder / "data.yaml").write_text(yaml.safe_dump(section))
    assert main(["figures", "--data", "data.yaml", "--output", "out"]) == 0
    assert drawn(folder / "out") == {"data_examples"}
    with Image.open(folder / "out/data_examples.png") as picture:
        shown = np.asarray(picture)
    (image,) = MultiDSprites(**DATA, root=str(folder / "data")).examples("test", 1)["image"]
    enlarged = np.asarray(image.movedim(0, -1)).repeat(3, 0).repeat(3, 1)
    assert np.array_equal(shown[2:98, 2:98], enlarged)
    for args, said in (
        (["--output", "out"], "expected a RUN, or --data FILE and --output FOLDER"),
        (["--data", "data.yaml", "--output", "out", "--only", "samples"], "--only samples: needs a RUN"),
    ):
        assert main(["figures", *args]) == 2
        assert said in error_line(capsys)


def test_initial_masks_are_of_untrained_weights_of_the_same_model(folder: Path) -> None:
    """They depend on the seed alone, not on what was learnt."""
    data = MultiDSprites(**DATA, root="data")
    model = small(GenesisV2)
    first = RunFigures(model, data, num_images=2).initial_masks()
    state = torch.random.get_rng_state()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    assert torch.equal(RunFigures(model, data, num_images=2).initial_masks(), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(RunFigures(model, data, num_images=2, seed=9).initial_masks(), first)


def test_failures_are_the_worst_images(folder: Path) -> None:
    model: Any = small(GenesisV2)
    data = MultiDSprites(**DATA)
    figures = RunFigures(model, data, num_images=2)
    with torch.no_grad():
        bounds = []
        for batch in data.dataset("test"):  # one by one
            scene = model(batch["image"] / 255.0, IndexedNoise(0, batch["index"]))
            bounds.append(model.elbo(scene, batch["image"] / 255.0).item())
    worst = np.argsort(bounds)[:2]
    batch = data.dataset("test").__getitems__(worst.tolist())  # type: ignore[attr-defined]
    images = batch["image"] / 255.0
    with torch.no_grad():
        scene = model(images, IndexedNoise(0, batch["index"]))
        expected = failure_cases(scene, model.elbo(scene, images), "ELBO", images)
    picture = figures.failures()
    assert torch.allclose(picture[:, -expected.shape[1] :, : expected.shape[2]], expected, atol=1e-4)


def test_failures_by_structure_are_the_samples_of_lowest_score(folder: Path) -> None:
    model: Any = small(GenesisV2)

    def brightness(scene: Scene) -> torch.Tensor:
        return scene.reconstruction.mean(dim=(1, 2, 3))

    figures = RunFigures(
        model, MultiDSprites(**DATA), num_images=2, num_scored=40, structure_score=brightness
    )
    written, reasons = figures.draw(["structure_failures"], folder / "out")
    assert [path.name for path in written] == ["structure_failures.png"]
    assert not reasons
    samples = model.sample(40, noise=IndexedNoise(0, range(40)))
    values, worst = brightness(samples).sort()
    expected = failure_cases(model.sample(2, noise=IndexedNoise(0, worst[:2])), values[:2], "structure")
    picture = figures.structure_failures()
    assert torch.allclose(picture[:, -expected.shape[1] :, : expected.shape[2]], expected, atol=1e-4)


def test_samples_that_are_no_tower(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = small(GenesisV2)
    wrong = [3, 34, 35]

    def judged(scene: Scene) -> torch.Tensor:
        start = 0 if len(scene.components) == 32 else 32  # batches of 32 and 8
        return torch.tensor([number not in wrong for number in range(start, start + len(scene.components))])

    titles = []
    monkeypatch.setattr(run_figures, "is_tower", judged)
    monkeypatch.setattr(run_figures, "titled", lambda title, picture: titles.append(title) or picture)
    figures = RunFigures(model, SpriteTowers(**DATA), num_images=2, num_scored=40)
    expected = model.sample(2, noise=IndexedNoise(0, wrong[:2]))
    picture = sample_grid(expected, ["sample\n3", "sample\n34"])
    assert torch.allclose(figures.structure_failures(), picture, atol=1e-4)
    assert titles == ["samples that are no tower: 3 of 40"]
    wrong.clear()
    assert figures.draw(["structure_failures"], folder / "out") == (
        [],
        {"structure_failures": "all of 40 samples are towers"},
    )


def test_towers_are_sought_where_the_data_show_some(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ["--output", "out", "--only", "structure_failures", "--num_scored", "6", *FEW]
    for kind, data, said in (
        (GenesisV2, "data_modules.MultiDSprites", "the data show no towers of blocks"),
        (VAE, "tests.stand_in.SpriteTowers", "a model of one slot has no masks"),
        (GenesisV2, "tests.stand_in.SpriteTowers", None),
    ):
        export(small(kind), folder / "model.safetensors", {"class_path": data, "init_args": dict(DATA)})
        assert main(["figures", "model.safetensors", *only]) == 0
        told = capsys.readouterr().out
        assert "not drawn" not in told if said is None else f"not drawn: structure_failures: {said}" in told
        assert (folder / "out").exists() == (said is None)
    samples: Any = small(GenesisV2).sample(6, noise=IndexedNoise(0, range(6)))
    assert not is_tower(samples).all()


# ---------------------------------------------------------------- checkpoints, and what is known of them


def captions(monkeypatch: pytest.MonkeyPatch, *args: str) -> list[str]:
    """What `samples_by_run.png` says above the samples of every run."""
    seen: list[str] = []
    sheet = torch.zeros(3, 8, 8)
    monkeypatch.setattr(command, "samples_by_run", lambda dreams: seen.extend(dreams) or sheet)
    assert main(["figures", *args, "--output", "out", "--only", "samples", *FEW]) == 0
    return seen


def test_pictures_and_fid_are_of_one_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"class_path": "data_modules.MultiDSprites", "init_args": dict(DATA)}
    first, second = (make_run(folder / name, "best", "last", data=data) for name in ("first", "second"))

    def scored(checkpoint: str, fid: float | None, age: int, **other: Any) -> None:
        about = Checkpoint.of(first / f"checkpoints/{checkpoint}.ckpt", first, 1)
        path = add_result(first, "genesisv2_multidsprites", 0, {"fid": fid}, checkpoint=about, **other)
        os.utime(path, (path.stat().st_mtime - age,) * 2)

    scored("last", 71.0, 200, protocol="genesis")
    scored("last", 73.26, 100, protocol="sri")
    scored("last", None, 0, protocol="emorl")  # newer, and without FID
    runs = [str(first), str(second)]
    assert captions(monkeypatch, *runs, "--checkpoint", "last") == ["first: FID 73.3", "second"]
    told = capsys.readouterr().out
    assert f"{first}/checkpoints/last.ckpt: GenesisV2" in told
    assert "no FID" not in told
    last = (folder / "out/first/samples.png").read_bytes()
    # another checkpoint's FID is not written above the samples of this one
    assert captions(monkeypatch, *runs) == ["first", "second"]
    told = capsys.readouterr().out
    assert f"{first}/checkpoints/best.ckpt: GenesisV2" in told
    assert f"no FID in the caption: {first}/metrics has that of checkpoints/last.ckpt of step 1, not" in told
    assert (folder / "out/first/samples.png").read_bytes() != last
    assert captions(monkeypatch, *runs, "--fid", "8", "9.25") == ["first: FID 8", "second: FID 9.25"]
    (first / "metrics/test-none-0.json").write_text("{")
    assert captions(monkeypatch, *runs, "--checkpoint", "last") == ["first", "second"]
    assert "test-none-0.json: not readable as JSON" in capsys.readouterr().out
    assert known_fid(second, second / "checkpoints/best.ckpt") is None


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["model.safetensors"], "model.safetensors is no run's folder: give --output"),
        (["model.safetensors", "--output", "out", "--only", "smaples"], "invalid choice: 'smaples'"),
        (["model.safetensors", "--output", "out", "--num_frames", "0"], "--num_frames 0, expected"),
        (["model.safetensors", "--output", "out", "--fid", "1", "2"], "--fid has 2 numbers for 1 runs"),
        (["model.safetensors", "model.safetensors"], "several runs need --output"),
        (["model.safetensors", "--output", "out", "--data", "no.yaml"], "no.yaml: no such file"),
        (["model.safetensors", "--output", "out", "--data", "list.yaml"], "list.yaml: holds a list"),
        (
            ["model.safetensors", "--output", "out", "--data", "large.yaml"],
            "for images of 32 px, but the data",
        ),
        (["other.ckpt", "--output", "out"], "other.ckpt does not say which data it belongs to: give --data"),
    ],
)
def test_wrong_input(folder: Path, args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    exported(small(GenesisV2), "model.safetensors")
    (folder / "list.yaml").write_text("[1, 2]")
    large = {"class_path": "data_modules.MultiDSprites", "init_args": {**DATA, "image_size": 64}}
    (folder / "large.yaml").write_text(yaml.safe_dump(large))
    assert main(["figures", *args]) == 2
    assert said in error_line(capsys)
    assert not (folder / "out").exists()
