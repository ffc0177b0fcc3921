"""`fit-prior`, then `--prior` in the commands that draw samples; what is refused, and what is left behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_modules import MultiDSprites
from lightning_genesis.cli import main
from lightning_genesis.errors import CheckpointError, ConfigurationError, NonFiniteError
from lightning_genesis.evaluation.prior_scores import score_prior
from lightning_genesis.figures.walk import random_walk
from lightning_genesis.models import SRI, VAE, EfficientMORL, Genesis, GenesisV2, MONet, SlotAttention
from lightning_genesis.priors import PRIORS, StandardNormal, attach_prior
from lightning_genesis.priors.encoding import encode_slots
from lightning_genesis.runs.priors import read_prior, read_slots, sha256_of, write_prior, write_slots
from lightning_genesis.runs.results import read_results
from lightning_genesis.scene import IndexedNoise
from tests.quick import few
from tests.test_sampling import error_line, make_run, small
from tests.weights_file import export

DATA: dict[str, Any] = {"image_size": 32, "num_slots": 3, "train_size": 12, "val_size": 4, "test_size": 12}
SECTION = {"class_path": "data_modules.MultiDSprites", "init_args": DATA}
QUICK = ["--num_images", "12", "--steps", "4", "--num_scored", "2"]
TINY = ["--width", "8", "--num_layers", "1", "--num_heads", "1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("priors")
    MultiDSprites(**DATA, root=str(root / "data")).prepare()
    return root


@pytest.fixture
def folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(root / "data")
    return tmp_path


def test_a_prior_is_kept_with_the_run_and_used_by_name(folder: Path, capsys: Any) -> None:
    make_run(Path("run"), "best", "last", data=SECTION)
    assert main(["fit-prior", "run", *QUICK, *TINY]) == 0
    told = capsys.readouterr().out
    assert "encoding 12 train images into 3 x 8 slots" in told
    config = json.loads(Path("run/priors/set_flow/config.json").read_text())
    assert config["kind"] == "set_flow"
    assert config["settings"]["width"] == 8
    assert config["model"]["path"] == "checkpoints/best.ckpt"
    assert set(config["scores"]) > {"held_out_loss", "log_density", "elbo", "elbo_own"}
    assert load_file("run/priors/slots/train-12.safetensors")["mean"].shape == (12, 3, 8)

    assert main(["fit-prior", "run", *QUICK, "--kind", "gaussian", "--name", "plain"]) == 0
    assert "encoding" not in capsys.readouterr().out  # the split is encoded once
    # samples: those of the prior, the same again, of any number of slots
    for output in ("one", "two"):
        options = ["--prior", "set_flow", "--num_images", "3", "--num_slots", "5", "--latents"]
        assert main(["sample", "run", "--output", output, *options]) == 0
    found, again = (load_file(f"{output}/latents.safetensors")["sample"] for output in ("one", "two"))
    assert torch.equal(found, again)
    prior = read_prior(Path("run/priors/set_flow"))
    torch.testing.assert_close(found, prior.draw(3, 5, noise=IndexedNoise(0, range(3))))
    assert main(["figures", "run", "--prior", "plain", "--only", "samples", "--num_images", "2"]) == 0
    assert Path("run/figures/plain/samples.png").is_file()
    assert main(["label", "run", "--prior", "plain", "--output", "page.html", "--num_images", "2"]) == 0
    # all of it in one table
    capsys.readouterr()
    few = ["--num_images", "6", "--classifier_seeds", "--prior", "plain", "set_flow"]
    assert main(["generation", "run", *few]) == 0
    result = read_results("run")[0]
    rows = {name.partition("/")[0] for name in result.metrics}
    assert rows == {"reconstructions", "recombined", "own", "plain", "set_flow"}
    assert result.options["priors"]["plain"]["kind"] == "gaussian"
    assert result.metrics["plain/random_net_mmd"] is not None
    # other weights are other slots
    for command in (["sample", "run", "--output", "three"], ["figures", "run", "--only", "samples"]):
        assert main([*command, "--prior", "plain", "--checkpoint", "last"]) == 2
        assert "was fitted to checkpoints/best.ckpt of step 1" in error_line(capsys)
    assert not Path("three").exists()


@pytest.mark.parametrize("kind", few([SRI, VAE, EfficientMORL, Genesis, MONet, SlotAttention], SlotAttention))
def test_any_model_with_a_decoder_gets_a_prior(folder: Path, kind: Any) -> None:
    """Slot Attention too, which has nothing to sample from."""
    model = small(kind, **({"slot_dim": 8, "feature_dim": 8} if kind is SlotAttention else {}))
    export(model, Path("model.safetensors"), SECTION)
    for prior, options in (("scene_set_flow", TINY), ("diagonal", [])):
        command = ["fit-prior", "model.safetensors", "--output", "out", "--kind", prior]
        assert main([*command, *QUICK, *options]) == 0
        config = json.loads(Path(f"out/priors/{prior}/config.json").read_text())
        assert config["settings"]["ordered"] is (kind is Genesis)
        place = f"out/priors/{prior}"
        assert main(["sample", "model.safetensors", "--prior", place, "--output", f"{prior}-samples"]) == 0
    attach_prior(model, read_prior(Path("out/priors/scene_set_flow")))
    assert model.scene_dim == 8
    frames = next(iter(random_walk(model, 3)))  # walks in the scene, which the model has none of
    assert len(frames.components) == 3


def test_the_elbo_with_the_prior_it_was_trained_with_is_its_own(folder: Path) -> None:
    dataset = MultiDSprites(**DATA, root="data").dataset("test")
    for kind, options in ((GenesisV2, {"autoregressive_prior": False}), (MONet, {}), (VAE, {})):
        model = small(kind, **options)
        scores = score_prior(model, StandardNormal(8, model.num_slots), dataset, [0, 3, 5])
        assert scores["elbo"] == pytest.approx(scores["elbo_own"], rel=1e-5), kind
        exact = np.mean(
            [
                model.log_weight(
                    model.on_after_batch_transfer(dataset.__getitems__([index]), 0)["image"],
                    IndexedNoise(0, [index]),
                ).item()
                for index in (0, 3, 5)
            ]
        )
        assert scores["elbo_own"] == pytest.approx(exact, rel=1e-5), kind
    # GENESIS-V2's own is autoregressive: its density is another
    scores = score_prior(small(GenesisV2), StandardNormal(8, 3), dataset, [0])
    assert scores["elbo"] - scores["elbo_own"] == pytest.approx(
        scores["log_density"] - scores["log_density_own"],
        abs=0.01,  # of hundreds, in float32
    )
    assert "elbo" not in score_prior(small(SlotAttention, slot_dim=8), StandardNormal(8, 3), dataset, [0])


def test_flexible_slots_are_not_encoded() -> None:
    model = small(GenesisV2, flexible_slots=True, min_pixels=2000.0)
    with pytest.raises(ConfigurationError, match="flexible_slots is true"):
        encode_slots(model, _Images(), [0])


class _Images:
    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {"image": torch.rand(len(indices), 3, 32, 32), "index": torch.tensor(indices)}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--steps", "0"], "--steps 0, expected 1 or more"),
        (["--num_images", "1"], "--num_images 1"),
        (["--name", "../up"], "--name '../up'"),
        (["--name", "slots"], "another name than 'slots'"),
        (["--hidden_dim", "8"], "--hidden_dim 8: a set_flow takes --num_heads, --num_layers, --width"),
        (["--kind", "gaussian", "--width", "8"], "a gaussian has no sizes"),
        (["--kind", "flow"], "invalid choice: 'flow'"),
        (["--width", "9", "--num_heads", "2"], "width=9 does not divide into 2 heads"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    folder: Path, options: list[str], told: str, capsys: Any
) -> None:
    make_run(Path("run"), "best", data=SECTION)
    assert main(["fit-prior", "run", *QUICK, *options]) == 2
    assert told in error_line(capsys)
    assert not [*Path("run").glob("priors/[!s]*"), *Path("run").glob("priors/.*"), *Path().glob("up")]


def test_a_prior_is_never_overwritten_and_one_that_is_not_there_is_named(folder: Path, capsys: Any) -> None:
    make_run(Path("run"), "best", data=SECTION)
    assert main(["sample", "run", "--prior", "set_flow", "--output", "out"]) == 2
    assert "no prior 'set_flow'; there is none; `fit-prior` makes one" in error_line(capsys)
    quick = ["fit-prior", "run", *QUICK, "--kind", "diagonal"]
    assert main(quick) == 0
    capsys.readouterr()
    before = Path("run/priors/diagonal/config.json").read_bytes()
    assert main(quick) == 2
    assert "is there already" in error_line(capsys)
    assert Path("run/priors/diagonal/config.json").read_bytes() == before
    assert main(["sample", "run", "--prior", "set_flow", "--output", "out"]) == 2
    assert "there are diagonal" in error_line(capsys)


def test_damaged_and_foreign_files_are_refused(folder: Path) -> None:
    make_run(Path("run"), "best", data=SECTION)
    assert main(["fit-prior", "run", *QUICK, *TINY]) == 0
    place = Path("run/priors/set_flow")
    text, weights = (place / "config.json").read_text(), (place / "prior.safetensors").read_bytes()
    (place / "prior.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged: its SHA-256"):
        read_prior(place)
    (place / "prior.safetensors").write_bytes(weights)
    config = json.loads(text)
    for change, kind, told in (
        ({"kind": "os.system"}, ConfigurationError, "`kind` is 'os.system'"),
        ({"format": 2}, ConfigurationError, "`format` is 2, expected 1"),
        ({"settings": {**config["settings"], "width": 16}}, CheckpointError, "names, shapes or types"),
        ({"settings": {**config["settings"], "width": 10**9}}, CheckpointError, "width=1000000000"),
        ({"settings": {**config["settings"], "num_layers": 4096}}, CheckpointError, "far more than the"),
        ({"settings": {**config["settings"], "run": 1}}, CheckpointError, "run"),
        ({"slots": [12]}, ConfigurationError, r"`slots` is \[12\], expected dict"),
    ):
        (place / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(kind, match=told):
            read_prior(place)
    tensors = load_file(place / "prior.safetensors")
    for spoilt, told in ((torch.double, "names, shapes or types"), (torch.nan, "not finite: shift")):
        shift = tensors["shift"]
        shift = shift.to(spoilt) if isinstance(spoilt, torch.dtype) else torch.full_like(shift, spoilt)
        save_file({**tensors, "shift": shift}, place / "prior.safetensors")
        digest = sha256_of(place / "prior.safetensors")
        (place / "config.json").write_text(json.dumps({**config, "sha256": digest}))
        with pytest.raises(CheckpointError, match=told):
            read_prior(place)
    (place / "prior.safetensors").write_bytes(weights)
    (place / "config.json").write_text(text)
    assert type(read_prior(place)) is PRIORS["set_flow"]
    # slots that say they are of this split, and are something else
    slots = Path("run/priors/slots/train-12.safetensors")
    for tensors in ({"sample": torch.zeros(12, 3)}, {"mean": torch.zeros(12, 3, 8)}, {}):
        write_slots(slots, tensors, config["slots"])
        with pytest.raises(CheckpointError, match="no readable slots"):
            read_slots(slots, config["slots"])


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    prior = StandardNormal(8, 3)
    prior.scale[3] = torch.nan
    with pytest.raises(NonFiniteError, match=r"the prior is not finite \(scale\), and not written"):
        write_prior(tmp_path / "priors/standard", prior, {})
    assert not [*tmp_path.iterdir()]


def test_rows_of_one_name_are_refused(capsys: Any) -> None:
    for names, row in ((["a/flow", "b/flow"], "flow"), (["priors/own"], "own")):
        assert main(["generation", "run", "--prior", *names]) == 2
        assert f"--prior {names[-1]}: there is a row {row!r} already" in error_line(capsys)


def test_nothing_is_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    make_run(Path("run"), "best", data=SECTION)
    monkeypatch.setattr(MultiDSprites, "prepares_on_fit", False)
    for command in (["fit-prior", "run", *QUICK], ["generation", "run"]):
        assert main([*command, "--root", "nowhere"]) == 2
        assert "run `lightning-genesis prepare multi_dsprites --root nowhere" in error_line(capsys)
    assert not Path("nowhere").exists()


def test_a_test_draws_from_the_prior_and_says_so(
    folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = ["fit", "--model", "GenesisV2", "--model.feature_dim", "8", "--model.latent_dim", "8"]
    fit += ["--data", "MultiDSprites", *(f"--data.{name}={value}" for name, value in DATA.items())]
    fit += ["--data.batch_size", "4", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    fit += ["--run.name", "run", "--run.wandb", "false", "--pictures.num_images", "0"]
    assert main(fit) == 0
    assert main(["fit-prior", "runs/run", *QUICK, "--kind", "gaussian", "--checkpoint", "last"]) == 0
    test = ["test", "--config", "runs/run/config.yaml", "--ckpt_path", "last", "--pictures.num_images", "0"]
    assert main([*test, "--prior", "gaussian"]) == 0
    (result,) = read_results("runs/run")
    assert result.options["prior"]["name"] == "gaussian"
    capsys.readouterr()
    assert main(["test", "--config", "runs/run/config.yaml", "--prior", "gaussian"]) == 2
    assert "no --ckpt_path" in error_line(capsys)
