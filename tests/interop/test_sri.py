"""Import of the authors' SRI checkpoint (specification §7.1, §14.1)."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from lightning_genesis.cli import main
from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.interop.known_models import recognise
from lightning_genesis.interop.official import import_official, load_official
from lightning_genesis.interop.sri import sri_key
from lightning_genesis.models import SRI
from tests.compare import TOTAL, assert_near
from tests.interop.official_files import official_state, trained_optimizer, write_file
from tests.models.sri_fixture import fixture_model
from tests.reference.sri import FixtureNoise, fixture_images, official_keys

GECO_STATE: dict[str, Any] = {"beta": 0.9, "beta_sri": 0.8, "err_ema": 7000.0, "err_sri_ema": 6900.0}


@pytest.fixture(scope="module")
def state() -> "OrderedDict[str, Tensor]":
    """The state dict of the official model with the fixture's weights."""
    return official_state("sri", fixture_model(), official_keys())


@pytest.fixture
def file(state: "OrderedDict[str, Tensor]", tmp_path: Path) -> Path:
    optimizer = trained_optimizer(state, lr=1e-4)[0]
    key = "genesisv2.att_process.log_sigma"  # which is in float64 there
    state = OrderedDict((name, value.double() if name == key else value) for name, value in state.items())
    return write_file(
        tmp_path / "sri.ckpt", state, **GECO_STATE, iter_idx=500_000, optimiser_state_dict=optimizer
    )


# ---------------------------------------------------------------- names


def test_published_model_has_150_entries() -> None:
    assert len(official_keys()) == len(set(official_keys())) == 150


@pytest.mark.parametrize(("image_size", "num_blocks"), [(64, 5), (96, 5), (128, 6)])
def test_names_are_a_bijection(image_size: int, num_blocks: int) -> None:
    ours = [sri_key(key) for key in official_keys(num_blocks)]
    model = SRI(7, image_size)
    assert len(set(ours)) == len(ours)
    assert set(ours) == {key for key in model.state_dict() if not key.startswith("objective.")}


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    return SRI(9, 64).state_dict()


@pytest.mark.parametrize(
    ("official", "shape"),
    [
        ("genesisv2.encoder.mlp.1.weight", (128, 2048)),
        ("genesisv2.decoder_module.13.weight", (4, 64, 1, 1)),
        ("scene_encoder.blocks.0.k.weight", (64, 64)),
        ("scene_encoder.blocks.2.relational_v.0.weight", (64, 128)),
        ("scene_encoder.blocks.1.mlp.2.bias", (64,)),
        ("scene_encoder.project_to_scene_dim.0.weight", (128, 64)),
        ("scene_encoder.sp_s.weight", (128, 128)),
        ("prior_lstm.scene_encoder.0.weight", (64, 128)),
        ("prior_lstm.lstm.weight_hh_l0", (1024, 256)),
        ("prior_lstm.mu.weight", (64, 256)),
        ("posterior_lstm.lstm.weight_ih_l0", (1024, 64)),
        ("posterior_lstm.sp.bias", (64,)),
        ("decoder.1.weight", (66, 64, 5, 5)),
    ],
)
def test_shapes_are_the_published_ones(own: dict[str, Any], official: str, shape: tuple[int, ...]) -> None:
    assert own[sri_key(official)].shape == shape


@pytest.mark.parametrize(
    "key", ["genesisv2.prior_lstm.weight_ih_l0", "genesisv2.std", "encoder.down.0.0.weight", "decoder.", ""]
)
def test_unknown_name(key: str) -> None:
    with pytest.raises(KeyError, match="no parameter of the official"):
        sri_key(key)


# ---------------------------------------------------------------- weights, GECO, optimiser


def test_model_is_told_by_its_parameters(state: "OrderedDict[str, Tensor]") -> None:
    assert recognise(state) == "sri"
    assert recognise({"prior_lstm.scene_encoder.0.bias": torch.zeros(1)}) == "sri"


@torch.no_grad()
def test_outputs_are_the_published_ones(file: Path) -> None:
    model = load_official(file, "sri", num_slots=9)
    assert isinstance(model, SRI)
    assert not model.training
    images = fixture_images(64)
    terms = model.loss_terms(model(images, FixtureNoise()), images)
    assert_near(terms["segregation"].nll, [8474.09, 8497.58], TOTAL)
    assert_near(terms["sri"].nll, [8477.034, 8477.537], TOTAL)
    assert_near(terms["sri"].kl["slot"], [82.67255, 96.0515])


def test_options_by_the_parameters(file: Path) -> None:
    options = load_official(file, num_slots=9).hparams
    assert options["image_size"] == 64
    assert options["encoder_options"] == {"semi_convolutional": True, "feature_dim": 64, "latent_dim": 64}
    assert (options["scene_dim"], options["num_set_layers"], options["hidden_dim"]) == (128, 3, 256)
    assert options["shared_decoder"] is False
    given = load_official(file, num_slots=9, std=0.1, normalized_likelihood=False)
    assert (given.std, given.segregation.std) == (0.1, 0.1)  # type: ignore[operator, union-attr]


def test_other_sizes() -> None:
    for size, blocks in ((96, 5), (128, 6)):
        model = fixture_model(7, size)
        state = official_state("sri", model, official_keys(blocks))
        assert load_official(state, num_slots=7).image_size == size
    shared = official_state("sri", model, [key for key in official_keys(6) if not key.startswith("decoder.")])
    assert load_official(shared, num_slots=7).decoder is None


def test_both_constraints_come_along(file: Path) -> None:
    """The file's β are those of the last loss; the update that is missing is made up for."""
    geco: Any = load_official(file, num_slots=9).objective
    assert geco.branches == ("segregation", "sri")
    assert (geco.goal, geco.step_size) == (0.5655, 1e-6)
    assert geco.average.tolist() == [7000.0, 6900.0]
    goal = torch.tensor(0.5655 * 12288, dtype=torch.float64)
    expected = [
        0.9 * torch.exp(1e-6 * (goal - 7000.0)).item(),
        0.8 * torch.exp(1e-5 * (goal - 6900.0)).item(),
    ]
    assert geco.beta.tolist() == pytest.approx(expected, rel=1e-7)
    assert geco.step == 500_001


def test_optimizer_comes_along_by_name(state: "OrderedDict[str, Tensor]", file: Path) -> None:
    checkpoint = import_official(file, num_slots=9)
    (optimizer,) = checkpoint["optimizer_states"]
    by_key = trained_optimizer(state, lr=1e-4)[1]
    names = [name for name, _ in SRI(9, 64).named_parameters()]
    assert checkpoint["global_step"] == 500_001
    assert len(optimizer["state"]) == len(by_key) == 150
    for key in ("genesisv2.seg_head.0.weight", "posterior_lstm.sp.bias", "decoder.13.bias"):
        moments = optimizer["state"][names.index(sri_key(key))]
        assert torch.equal(moments["exp_avg"], by_key[key]["exp_avg"])


# ---------------------------------------------------------------- command, wrong files


def test_command_writes_what_fit_reads(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(file), "--num_slots", "9"]) == 0
    assert "SRI, 9 slots, 64 px, after 500001 steps" in capsys.readouterr().out
    section = yaml.safe_load(file.with_name("sri.ckpt.imported.yaml").read_text())["model"]
    assert section["class_path"] == "lightning_genesis.models.SRI"
    assert section["init_args"]["objective"]["init_args"]["step_size"] == 1e-6
    loaded = SRI.load_from_checkpoint(file.with_name("sri.ckpt.imported.ckpt"))
    assert torch.equal(loaded.objective.average, torch.tensor([7000.0, 6900.0]))


def test_number_of_slots_has_to_be_given(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="neither its parameters nor flags tell num_slots"):
        load_official(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_sri": None}, "has 1 β and 2 error averages, expected 2 of each for SRI"),
        ({"err_sri_ema": float("nan")}, "err_sri_ema is nan, expected a finite number"),
        ({"beta_sri": "one"}, "beta_sri is a str, expected a number"),
    ],
)
def test_wrong_constraints(
    state: "OrderedDict[str, Tensor]", tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write_file(tmp_path / "wrong.ckpt", state, **{**GECO_STATE, **change})
    with pytest.raises(CheckpointError, match=message):
        load_official(path, num_slots=9)


def test_missing_and_foreign_parameters(state: "OrderedDict[str, Tensor]") -> None:
    missing = OrderedDict((key, value) for key, value in state.items() if key != "posterior_lstm.sp.bias")
    with pytest.raises(CheckpointError, match=r"slot_posterior\.raw_scale\.bias"):
        load_official(missing, num_slots=9)
    with pytest.raises(CheckpointError, match="no parameter of the official SRI"):
        load_official({**state, "scene_encoder.extra": torch.zeros(1)}, num_slots=9)
    with pytest.raises(CheckpointError, match="holds the parameters of sri, expected those of genesisv2"):
        load_official(state, "genesisv2", num_slots=9)
