"""EfficientMORL's published checkpoints become ours (specification §7.1, §14.2)."""

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from lightning_genesis.cli import main
from lightning_genesis.errors import CheckpointError
from lightning_genesis.interop.emorl import emorl_key, emorl_state, modern_names
from lightning_genesis.interop.known_models import recognise
from lightning_genesis.interop.official import import_official, load_official
from lightning_genesis.models import EfficientMORL
from lightning_genesis.objectives import FixedBeta, SoftplusGECO
from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.compare import TOTAL, assert_near
from tests.interop.official_files import trained_optimizer
from tests.models.emorl_fixture import CLEVR6, TETROMINOES
from tests.reference.emorl import official_shapes, official_state
from tests.reference.slot_attention import SineNoise, emorl_keys, fixture_images

CASES = [(CLEVR6, "iodine", 64, 78), (TETROMINOES, "small", 32, 76)]
SIZES = {"num_slots": 4, "image_size": 35, "num_layers": 3}
C_EMA, BETA = -100.0, 2.0


def arrays(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in state.items()}


def tetrominoes() -> "OrderedDict[str, Tensor]":
    """The fixture as it stands in a file: with DataParallel's prefix, and somewhere in its training."""
    state = official_state("small", 32)
    state |= {"geco_C_ema": torch.tensor(C_EMA), "geco_beta": torch.tensor(BETA)}
    return state


def file_of(state: dict[str, Tensor], **contents: Any) -> dict[str, Any]:
    return {"model": {f"module.{key}": value for key, value in state.items()}, "step": 199_999, **contents}


def weights(model: EfficientMORL) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if not key.startswith("objective.")}


def assert_same_weights(first: EfficientMORL, second: Any) -> None:
    left, right = weights(first), weights(second)
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[key]) for key, value in left.items())


# ---------------------------------------------------------------- names and layout


@pytest.mark.parametrize(("options", "decoder", "z", "count"), CASES)
def test_official_entries_fill_the_model(options: dict[str, Any], decoder: str, z: int, count: int) -> None:
    official = official_state(decoder, z)
    assert len(official) == count
    assert sum(value.numel() for value in official.values()) == {64: 666_502, 32: 467_238}[z]
    state, expected = emorl_state(arrays(official)), weights(EfficientMORL(**options))
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert all(value.dtype == torch.float32 for value in state.values())


@pytest.mark.parametrize(
    ("z", "key", "shape"),
    [
        (64, "hvae_networks.init_posterior", (1, 128)),
        (32, "hvae_networks.to_k.weight", (32, 64)),
        (64, "hvae_networks.gru.cell.weight_ih_2", (128, 64)),
        (32, "hvae_networks.gru.cell.bias_hh", (128,)),
        (32, "hvae_networks.gru.cell.bias_in", (64,)),
        (32, "hvae_networks.mlp_softplus.2.weight", (32, 64)),
        (64, "hvae_networks.image_decoder.decode.8.weight", (4, 64, 3, 3)),
        (32, "hvae_networks.image_decoder.decode.6.weight", (4, 32, 3, 3)),
        (32, "hvae_networks.indep_prior.z_linear.0.weight", (128, 32)),
        (64, "refinenet.encoding.0.weight", (128, 256)),
        (32, "refinenet.recurrence.bias_hh_l0", (96,)),
    ],
)
def test_shapes_are_the_published_ones(z: int, key: str, shape: tuple[int, ...]) -> None:
    """The table that the tests make files by, against the specification."""
    assert official_shapes("iodine" if z == 64 else "small", z)[key] == shape


def test_dual_gru_is_two_grus() -> None:
    """Against the published cell, written out."""
    official, z = official_state("small", 32), 32
    cell = {
        key.rpartition(".")[2]: value
        for key, value in official.items()
        if key.startswith("hvae_networks.gru.cell.")
    }
    generator = torch.Generator().manual_seed(0)
    x, mean, raw = (torch.randn(5, z, generator=generator) for _ in range(3))
    expected = []
    for half, hidden in enumerate((mean, raw)):
        gates = slice(2 * z * half, 2 * z * (half + 1))
        candidate = slice(z * half, z * (half + 1))
        w = {name[:-2]: value for name, value in cell.items() if name.endswith(f"_{half + 1}")}
        both = x @ w["weight_ih"].t() + cell["bias_ih"][gates]
        both = both + hidden @ w["weight_hh"].t() + cell["bias_hh"][gates]
        reset, update = both.sigmoid().chunk(2, dim=1)
        inner = reset * (hidden @ w["weight_hn"].t() + cell["bias_hn"][candidate])
        new = (x @ w["weight_in"].t() + cell["bias_in"][candidate] + inner).tanh()
        expected.append((1.0 - update) * new + update * hidden)
    state = emorl_state(arrays(official))
    for name, hidden, value in zip(("mean_gru", "scale_gru"), (mean, raw), expected, strict=True):
        gru = nn.GRUCell(z, z)
        parts = {key.rpartition(".")[2]: state[key] for key in state if f".{name}." in key}
        gru.load_state_dict(parts)
        assert_near(gru(x, hidden), value)


@pytest.mark.parametrize(
    "key", ["", "to_q.weight", "hvae_networks.to_o.weight", "refinenet.to_q.weight", "hvae_networks.loc.bias"]
)
def test_unknown_names(key: str) -> None:
    with pytest.raises(KeyError, match="no parameter of the official EfficientMORL"):
        emorl_key(key)


# ---------------------------------------------------------------- files


def test_a_file_gives_the_published_numbers(tmp_path: Path) -> None:
    torch.save(file_of(tetrominoes()), tmp_path / "tetrominoes.pth")
    model: Any = load_official(tmp_path / "tetrominoes.pth", "emorl", **SIZES, refinement_batch_size=2)
    assert isinstance(model, EfficientMORL)
    assert (model.likelihood, model.std, model.final_refinements) == ("gaussian", 0.3, 3)
    objective = model.objective
    assert isinstance(objective, SoftplusGECO)
    dimensions = 3 * 35**2
    assert objective.goal == -1.224
    assert_near((objective.goal * dimensions - objective.average)[0], C_EMA, TOTAL, of=objective.average)
    assert objective.beta.item() == BETA
    assert objective.step == 200_000
    assert model.network.step_weights.tolist() == pytest.approx([2.126928, 1.0])
    images = fixture_images(35)
    terms = model.loss_terms(model(images, SineNoise()), images)
    assert_near(objective(terms, dimensions), 1189.164, TOTAL)  # that of training


def test_clevr6_takes_our_defaults() -> None:
    model: Any = load_official(file_of(official_state()), num_slots=7, image_size=96, num_layers=3)
    assert model.hparams["objective"] == SoftplusGECO().plain()
    assert (model.likelihood, model.std, model.hparams["decoder"]) == ("mixture", 0.1, "iodine")


def test_multi_dsprites_has_no_constraint() -> None:
    """Its files have GECO's state all the same, which nothing moved."""
    options: dict[str, Any] = {"likelihood": "gaussian", "objective": FixedBeta(), "num_layers": 3}
    model: Any = load_official(file_of(official_state()), num_slots=6, image_size=64, **options)
    assert isinstance(model.objective, FixedBeta)
    assert model.objective.step == 200_000
    assert model.network.step_weights.tolist() == [1.0, 1.0]


def older(state: dict[str, Tensor], prefix: str) -> "OrderedDict[str, Tensor]":
    """Names of older checkpoints, and what they have besides."""
    found: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in state.items():
        key = re.sub(r"^hvae_networks\.(pos_embed_projection\.|encoder_pt_)", r"\1", key)
        found[key.replace("hvae_networks.", prefix)] = value
    found[f"{prefix}gru.cell.zeros"] = torch.zeros(64, 32)
    found[f"{prefix}gru.cell.zeros_n"] = torch.zeros(32, 32)
    found["generation_relation.mlp.0.weight"] = torch.zeros(3, 3)
    return found


@pytest.mark.parametrize("prefix", ["object_discovery_block.", "hvae_networks."])
def test_older_names(prefix: str) -> None:
    state = tetrominoes()
    expected, found = (load_official(file_of(x), **SIZES) for x in (state, older(state, prefix)))
    assert_same_weights(expected, found)  # type: ignore[arg-type]


def test_slot_attention_is_told_apart() -> None:
    """The published loader renames its parameters too, and then does not find them."""
    slot_attention = dict.fromkeys(emorl_keys(), torch.zeros(1))
    assert modern_names(slot_attention) == slot_attention
    assert recognise(slot_attention) == "slot-attention-emorl"
    assert recognise(official_state()) == "emorl"
    assert recognise(modern_names(older(tetrominoes(), "object_discovery_block."))) == "emorl"


def broken(change: str) -> dict[str, Tensor]:
    state = tetrominoes()
    if change == "added":
        state["hvae_networks.to_o.weight"] = torch.zeros(3)
    elif change == "gru":
        state["hvae_networks.gru.cell.bias_x"] = torch.zeros(3)
    else:
        del state[change]
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("added", "'hvae_networks.to_o.weight' is no parameter of the official EfficientMORL"),
        ("gru", "'hvae_networks.gru.cell.bias_x' is no parameter"),
        ("hvae_networks.gru.cell.weight_in_2", "not those of the official model .*weight_in_2"),
        ("hvae_networks.to_q.weight", "lacks parameter network.query.weight"),
        ("geco_beta", "one of geco_C_ema and geco_beta is missing"),
    ],
)
def test_other_parameters_are_refused(change: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load_official(file_of(broken(change)), **SIZES)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- optimiser


@pytest.mark.parametrize("geco_among_them", [True, False])
def test_moments_go_to_the_right_parameters(geco_among_them: bool) -> None:
    """Two per parameter, and the parts of the DualGRU joined as its weights are."""
    state = tetrominoes()
    trained = OrderedDict((k, v) for k, v in state.items() if not k.startswith("geco_"))
    optimizer, by_key = trained_optimizer(trained)
    if geco_among_them:  # listed, never stepped
        optimizer["state"] = {number + 2: value for number, value in optimizer["state"].items()}
        optimizer["param_groups"][0]["params"] = list(range(len(state)))
    checkpoint = import_official(file_of(state, model_opt=optimizer), **SIZES)
    (found,) = checkpoint["optimizer_states"]
    model = EfficientMORL(**TETROMINOES)
    names = [name for name, _ in model.named_parameters()]
    assert list(found["state"]) == list(range(len(names)))
    for moment in ("exp_avg", "exp_avg_sq"):
        expected = emorl_state(arrays({key: value[moment] for key, value in by_key.items()}))
        assert set(expected) == set(names)
        for place, name in enumerate(names):
            assert torch.equal(found["state"][place][moment], expected[name])
    assert {float(value["step"]) for value in found["state"].values()} == {3.0}
    assert checkpoint["hyper_parameters"]["learning_rate"] == 4e-4
    assert checkpoint["global_step"] == checkpoint["lr_schedulers"][0]["last_epoch"] == 200_000
    rate = 4e-4 * 0.5 ** (190_000 / 100_000)
    assert found["param_groups"][0]["lr"] == pytest.approx(rate)


def test_optimizer_of_another_model_is_refused() -> None:
    state = tetrominoes()
    few = OrderedDict((key, state[key]) for key in ("refinenet.loc.weight", "refinenet.loc.bias"))
    with pytest.raises(CheckpointError, match="the optimiser has 2 parameters, expected the model's 74"):
        import_official(file_of(state, model_opt=trained_optimizer(few)[0]), **SIZES)


# ---------------------------------------------------------------- the command


@pytest.mark.slow  # `test_import_command.py` goes on with one of GENESIS-V2
def test_imported_checkpoint_is_scored_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = tetrominoes()
    optimizer, _ = trained_optimizer(OrderedDict((k, v) for k, v in state.items() if "geco" not in k))
    torch.save(file_of(state, model_opt=optimizer), "tetrominoes.pth")
    sizes = ["--num_slots", "4", "--image_size", "35", "--num_layers", "3"]
    assert main(["import", "tetrominoes.pth", "--output", "emorl.ckpt", *sizes]) == 0
    assert "EfficientMORL, 4 slots, 35 px, after 200000 steps" in capsys.readouterr().out
    data = {"class_path": "data_modules.Tetrominoes", "init_args": {"synthetic": 4, "batch_size": 2}}
    Path("data.yaml").write_text(yaml.safe_dump({"data": data}))
    args = ["--config", "emorl.yaml", "--config", "data.yaml", "--ckpt_path", "emorl.ckpt"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    args += [*quiet, "--run.wandb", "false", "--run.name", "on", "--pictures.num_images", "0"]
    assert main(["test", *args, "--trainer.limit_test_batches", "1"]) == 0
    assert main(["fit", *args, "--trainer.max_steps", "200001"]) == 0
    last = read_checkpoint("runs/on/checkpoints/last.ckpt")
    assert last["global_step"] == 200_001
    assert float(last["state_dict"]["objective.step"]) == 200_001
