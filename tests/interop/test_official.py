"""The authors' checkpoint files become models and checkpoints of ours."""

import json
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.interop.known_models import OFFICIAL, recognise
from lightning_genesis.interop.official import import_official, load_official
from lightning_genesis.models import SceneModel, SlotAttention
from lightning_genesis.objectives import GECO, FixedBeta
from tests.compare import TOTAL, assert_near
from tests.interop.official_files import CASES, official_state, trained_optimizer, write_file
from tests.models import genesis_fixture, monet_fixture, v2_fixture
from tests.models.test_slot_attention_reference import CLEVR6, TETROMINOES, Official, emorl_fixture
from tests.reference import genesis, genesis_v2, images, monet
from tests.reference.slot_attention import SineNoise, emorl_keys, fixture_images

SMALL = {"feature_dim": 8, "latent_dim": 8}
KEYS_32 = genesis_v2.official_keys(4)


def weights(model: SceneModel) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if not key.startswith("objective.")}


def assert_same_weights(first: SceneModel, second: SceneModel) -> None:
    left, right = weights(first), weights(second)
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


def small_state() -> "OrderedDict[str, Tensor]":
    """An official GENESIS-V2 at 32 px with few channels."""
    return official_state("genesisv2", v2_fixture.fixture_model(3, 32, **SMALL), KEYS_32)


def load_small(source: Any, **arguments: Any) -> SceneModel:
    return load_official(source, "genesisv2", 3, **arguments)


# ---------------------------------------------------------------- weights and outputs


@pytest.fixture(scope="module", params=CASES)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A case, the fixture's model, and the one that came through a file."""
    case = CASES[request.param]
    model = case.model(64).eval()
    state = official_state(request.param, model, case.keys(64))
    path = write_file(tmp_path_factory.mktemp("official") / "model.ckpt-FINAL", state)
    return case, model, load_official(path, request.param, **case.arguments)


@torch.no_grad()
def test_outputs_are_those_of_the_model(imported: Any) -> None:
    case, model, ours = imported
    assert_same_weights(model, ours)
    assert not ours.training
    expected, found = model(images(), case.noise()), ours(images(), case.noise())
    assert torch.equal(expected.components, found.components)
    assert torch.equal(expected.log_masks, found.log_masks)


@torch.no_grad()
def test_outputs_are_the_published_ones(imported: Any) -> None:
    case, _, ours = imported
    terms = ours.loss_terms(ours(images(), case.noise()), images())
    assert_near(terms[ours.branches[0]].nll, case.error, TOTAL)


@pytest.mark.parametrize(
    ("options", "loss"), [(TETROMINOES, 460.5704), (CLEVR6, 3587.555)], ids=["tetrominoes", "clevr6"]
)
@torch.no_grad()
def test_slot_attention_of_emorl(options: dict[str, Any], loss: float, tmp_path: Path) -> None:
    """Its files have another layout, and DataParallel's prefix."""
    model = emorl_fixture(options)
    keys = emorl_keys(options.get("decoder", "big"))
    state = official_state("slot-attention-emorl", model, keys)
    contents = {"model": {f"module.{key}": value for key, value in state.items()}, "step": 41}
    contents |= {"model_opt": trained_optimizer(state)[0], "kl_beta": 1.0}
    torch.save(contents, tmp_path / "emorl.pth")
    sizes = {name: options[name] for name in ("num_slots", "image_size")}
    checkpoint = import_official(tmp_path / "emorl.pth", "slot-attention", **sizes)
    ours = load_official(tmp_path / "emorl.pth", "slot-attention", **sizes)
    assert_same_weights(model, ours)
    inputs = fixture_images(options["image_size"])
    terms = ours.loss_terms(ours(inputs, SineNoise()), inputs)["slot_attention"]
    assert_near(terms.nll.mean(), loss, TOTAL)
    # the file's learning rate is that of a step in the warm-up; ours goes on from there
    assert checkpoint["hyper_parameters"]["learning_rate"] == 4e-4
    assert checkpoint["global_step"] == 42
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 42
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(4e-4 * 42 / 10_000)


@torch.no_grad()
def test_official_slot_attention(tmp_path: Path) -> None:
    """TensorFlow's variables come as arrays."""
    official = Official()
    path = tmp_path / "variables.npz"
    arrays: dict[str, Any] = dict(official.variables)
    np.savez(path, **arrays)
    expected, inputs = official.ours()
    found = load_official(path, "slot-attention", 3, 8)
    assert_same_weights(expected, found)
    scene = found(inputs, official)
    truth = official.forward()["components"].transpose(0, 1, 4, 2, 3)
    assert_near(2.0 * scene.components - 1.0, truth)


def test_optimizer_of_emorl_goes_to_the_right_parameters(tmp_path: Path) -> None:
    model = SlotAttention(4, 35, slot_dim=32, implementation="emorl", decoder="small", decoder_dim=32)
    state = official_state("slot-attention-emorl", model, emorl_keys("small"))
    optimizer, by_key = trained_optimizer(state)
    file = {"model": state, "step": 2, "model_opt": optimizer}
    check_moments("slot-attention-emorl", import_official(file, num_slots=4, image_size=35), model, by_key)


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"semi_convolutional": False}, {"semi_convolutional": False}),
        ({"autoregressive_prior": False}, {"autoregressive": False}),
        ({"latent_dim": 16, "feature_dim": 24}, {}),
    ],
)
def test_options_of_genesis_v2(options: dict[str, Any], keys: dict[str, Any]) -> None:
    model = v2_fixture.fixture_model(3, 32, **options)
    ours = load_small(official_state("genesisv2", model, genesis_v2.official_keys(4, **keys)))
    assert_same_weights(model, ours)
    assert {name: ours.hparams[name] for name in options} == options


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"norm": "instance"}, {"norm": "instance"}),
        ({"symmetric_components": True}, {"symmetric": True}),
        ({"component_prior": False}, {"component_prior": False}),
        ({"two_stage": False, "norm": "instance"}, {"two_stage": False, "norm": "instance"}),
    ],
)
def test_options_of_genesis(options: dict[str, Any], keys: dict[str, Any]) -> None:
    model = genesis_fixture.fixture_model(3, 32, **options)
    name = "genesis" if options.get("two_stage", True) else "genesis-s"
    ours = load_official(official_state(name, model, genesis.official_keys(buffers=True, **keys)), name)
    assert_same_weights(model, ours)
    assert {name: ours.hparams[name] for name in options} == options
    assert (ours.num_slots, ours.image_size) == (3, 32)


def test_genesis_of_one_slot() -> None:
    model = genesis_fixture.fixture_model(1, 32)
    state = official_state("genesis", model, genesis.official_keys(one_slot=True, buffers=True))
    ours = load_official(state, "genesis")
    assert_same_weights(model, ours)
    assert (ours.num_slots, ours.image_size) == (1, 32)


@pytest.mark.parametrize(
    ("name", "size"), [("genesisv2", 128), ("monet", 32), ("monet", 128), ("genesis", 128)]
)
def test_size_follows_from_the_parameters(name: str, size: int) -> None:
    case = CASES[name]
    model = case.model(size)
    ours = load_official(official_state(name, model, case.keys(size)), **case.arguments)
    assert ours.image_size == size
    assert ours.num_slots == model.num_slots
    assert_same_weights(model, ours)


def test_standard_deviations_of_monet() -> None:
    model = monet_fixture.fixture_model(4, 32)
    state = official_state("monet", model, monet.official_keys(4, buffers=True))
    state["std"] = torch.tensor([0.09, 0.11, 0.11, 0.11]).view(1, 1, 1, 1, 4)
    ours = load_official(state)
    assert (ours.hparams["background_std"], ours.hparams["std"]) == (0.09, 0.11)
    assert ours.num_slots == 4
    state["std"] = torch.full((1, 1, 1, 1, 4), 0.7)
    ours = load_official(state)
    assert (ours.hparams["background_std"], ours.hparams["std"]) == (None, 0.7)


def test_genesis_with_two_standard_deviations_is_refused() -> None:
    state = official_state(
        "genesis", genesis_fixture.fixture_model(2, 32), genesis.official_keys(buffers=True)
    )
    state["std"] = torch.tensor([0.1, 0.2]).view(1, 1, 1, 1, 2)
    with pytest.raises(ConfigurationError, match=r"standard deviations are 0\.1 and 0\.2"):
        load_official(state)


def test_flags_give_what_the_parameters_do_not(tmp_path: Path) -> None:
    flags = {
        "K_steps": 6,
        "img_size": 32,
        "pixel_std1": 0.3,
        "kernel": "epanechnikov",
        "dynamic_K": True,
        "klm_loss": True,
        "detach_mr_in_klm": False,
        "pixel_bound": False,
        "g_goal": 0.5,
        "g_init": 1e-10,
        "batch_size": 32,
    }
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(flags))
    source = write_file(tmp_path / "model.ckpt-FINAL", small_state(), beta=None, err_ema=None)
    values = load_official(source, flags=path).hparams
    assert (values["num_slots"], values["image_size"], values["std"]) == (6, 32, 0.3)
    assert (values["kernel"], values["flexible_slots"]) == ("epanechnikov", True)
    assert (values["mask_consistency"], values["detach_decoded_masks"]) == (True, False)
    assert values["component_activation"] == "linear"
    assert values["objective"]["init_args"]["goal"] == 0.5
    assert values["objective"]["init_args"]["beta"] == 1e-10


def test_what_is_given_counts_before_the_flags() -> None:
    flags = {"K_steps": 6, "kernel": "laplacian"}
    ours = load_official(small_state(), num_slots=4, flags=flags, kernel="gaussian", objective=FixedBeta(0.5))
    assert (ours.num_slots, ours.hparams["kernel"]) == (4, "gaussian")
    assert isinstance(ours.objective, FixedBeta)


def test_minus_one_is_the_default_of_the_dataset() -> None:
    flags = {"K_steps": -1, "img_size": -1, "data_config": "datasets/x.py", "dataset": "objects_room"}
    assert load_official(small_state(), flags=flags).num_slots == 7
    del flags["dataset"]
    with pytest.raises(ConfigurationError, match="neither its parameters nor flags tell num_slots"):
        load_official(small_state(), flags=flags)
    state = official_state("dc-vae", CASES["dc-vae"].model(64), CASES["dc-vae"].keys(64))
    assert load_official(state, flags={"img_size": -1, "data_config": "gqn_config.py"}).image_size == 64


def test_flags_of_another_run() -> None:
    with pytest.raises(ConfigurationError, match=r"image_size is 32 by its parameters and 64 by the flags"):
        load_small(small_state(), flags={"img_size": 64})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "holds a list, expected a JSON object"),
        ("{", "not readable as JSON"),
        ('{"K_steps": "5"}', "K_steps is '5', expected a int"),
        ('{"g_goal": "low"}', "g_goal is 'low', expected a number"),
        ('{"kernel": "square", "K_steps": 3}', "kernel='square' is unknown"),
    ],
)
def test_bad_flags(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "flags.json").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_official(small_state(), flags=tmp_path / "flags.json")


# ---------------------------------------------------------------- forms of files


def test_bare_state_dict_has_no_training_state() -> None:
    checkpoint = import_official(small_state(), num_slots=3)
    assert "optimizer_states" not in checkpoint
    assert checkpoint["global_step"] == 0
    assert float(checkpoint["state_dict"]["objective.beta"]) == 1.0


def test_prefix_of_data_parallel() -> None:
    state = {f"module.{key}": value for key, value in small_state().items()}
    assert_same_weights(load_small(state), load_small(small_state()))


def test_double_precision_becomes_single() -> None:
    """Checkpoints written with recent NumPy hold `log_sigma` in float64."""
    state = small_state()
    state["att_process.log_sigma"] = state["att_process.log_sigma"].double() + 0.25
    ours = load_small(state)
    assert ours.state_dict()["network.colouring.log_sigma"].dtype == torch.float32
    assert ours.state_dict()["network.colouring.log_sigma"] == state["att_process.log_sigma"].float()


def test_names_before_may_2021() -> None:
    model = monet_fixture.fixture_model(3, 32)
    state = official_state("monet", model, monet.official_keys(4, buffers=True))
    legacy = OrderedDict(
        (key if key == "std" else monet.legacy_key(key), value) for key, value in state.items()
    )
    assert legacy.keys() != state.keys()
    ours = load_official(legacy)
    assert_same_weights(ours, model)
    assert ours.image_size == 32


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("genesis", "comp_vae.decoder_module.seq.0"),
        ("genesis-s", "decoder.seq.0"),
        ("bd-vae", "vae.p_x_nn.1.seq.0"),
    ],
)
def test_stored_coordinates_are_left_out(name: str, prefix: str) -> None:
    model = CASES[name].model(32)
    state = official_state(name, model, CASES[name].keys(32))
    state |= {f"{prefix}.pixel_coords.{part}": torch.zeros(1, 1, 40, 40) for part in ("g_1", "g_2")}
    assert_same_weights(load_official(state, name), model)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_numpy_scalars(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "model.ckpt-latest"
    contents = {
        "model_state_dict": small_state(),
        "iter_idx": np.int64(9),
        "beta": kind(0.5),
        "err_ema": kind(9.0),
    }
    torch.save(contents, path)
    checkpoint = import_official(path, num_slots=3)
    assert checkpoint["global_step"] == 10
    assert float(checkpoint["state_dict"]["objective.average"]) == 9.0


def test_old_file_format(tmp_path: Path) -> None:
    """PyTorch 1.3 wrote no zip archives."""
    path = tmp_path / "model.ckpt-100"
    torch.save({"model_state_dict": small_state()}, path, _use_new_zipfile_serialization=False)
    assert_same_weights(load_small(path), load_small(small_state()))


def test_all_names_are_told_apart() -> None:
    for name, case in CASES.items():
        assert recognise(dict.fromkeys(case.keys(64), torch.zeros(1))) == name
    assert recognise(dict.fromkeys(emorl_keys(), torch.zeros(1))) == "slot-attention-emorl"
    assert recognise({"conv.weight": torch.zeros(1)}) is None


# ---------------------------------------------------------------- optimiser


def check_moments(
    name: str, checkpoint: dict[str, Any], model: SceneModel, by_key: dict[str, dict[str, Any]]
) -> None:
    """Every parameter has the moments that the official one of its name has."""
    (state,) = checkpoint["optimizer_states"]
    names = [parameter for parameter, _ in model.named_parameters()]
    assert len(state["state"]) == len(by_key) == len(names)
    for key, expected in by_key.items():
        found = state["state"][names.index(OFFICIAL[name].rename(key))]
        assert found.keys() == expected.keys()
        for moment, value in expected.items():
            assert torch.equal(found[moment], torch.as_tensor(value)), f"{key} {moment}"


@pytest.mark.parametrize("name", CASES)
def test_moments_by_name(name: str) -> None:
    case = CASES[name]
    model = case.model(32)
    state = official_state(name, model, case.keys(32))
    optimizer, by_key = trained_optimizer(state, betas=(0.8, 0.9))
    arguments = {**case.arguments, "image_size": 32}
    checkpoint = import_official(
        {"model_state_dict": state, "optimiser_state_dict": optimizer}, name, **arguments
    )
    check_moments(name, checkpoint, model, by_key)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["betas"]) == (3e-4, (0.8, 0.9))
    assert checkpoint["hyper_parameters"]["learning_rate"] == 3e-4


def test_optimizer_of_an_old_version() -> None:
    """It numbered parameters by their addresses, in any order, and counted steps with a number."""
    state = small_state()
    optimizer, by_key = trained_optimizer(state)
    address = {number: 140_000_000 + (number * 7919) % 100_003 for number in optimizer["state"]}
    old = {address[number]: {**value, "step": 3} for number, value in optimizer["state"].items()}
    groups = [
        {**group, "params": [address[n] for n in group["params"]]} for group in optimizer["param_groups"]
    ]
    contents = {
        "model_state_dict": state,
        "optimiser_state_dict": {"state": dict(sorted(old.items())), "param_groups": groups},
    }
    model = load_small(state)
    check_moments("genesisv2", import_official(contents, num_slots=3), model, by_key)


@pytest.mark.parametrize(("kind", "options"), [("RMSprop", {}), ("SGD", {"momentum": 0.9})])
def test_other_optimizers(kind: str, options: dict[str, Any]) -> None:
    state = small_state()
    optimizer, by_key = trained_optimizer(state, kind, **options)
    contents = {"model_state_dict": state, "optimiser_state_dict": optimizer}
    checkpoint = import_official(contents, num_slots=3)
    assert checkpoint["hyper_parameters"]["optimizer"] == kind
    model = load_small(state, optimizer=kind)
    check_moments("genesisv2", checkpoint, model, by_key)
    ours: Any = model.configure_optimizers()
    ours.load_state_dict(checkpoint["optimizer_states"][0])
    assert ours.param_groups[0].get("momentum", 0.0) == options.get("momentum", 0.0)


def test_rmsprop_with_momentum_is_refused() -> None:
    """It has no fused form: without a gradient its momentum would still move weights."""
    state = small_state()
    contents = {"model_state_dict": state}
    contents["optimiser_state_dict"] = trained_optimizer(state, "RMSprop", momentum=0.9)[0]
    with pytest.raises(CheckpointError, match=r"RMSprop has momentum 0.9 in the file, expected none"):
        import_official(contents, num_slots=3)


def test_other_optimizer_is_not_taken_over() -> None:
    """Moments of Adam mean nothing to another optimiser."""
    state = small_state()
    contents = {"model_state_dict": state, "optimiser_state_dict": trained_optimizer(state)[0]}
    with pytest.raises(ConfigurationError, match=r"optimizer is Adam in the file and SGD here"):
        import_official(contents, num_slots=3, optimizer="SGD")


# ---------------------------------------------------------------- GECO


@pytest.mark.parametrize(
    ("average", "before", "after"),
    # §12.6: goal 6948.864 at 64 px; each β is the one before the update with this average
    [
        (9000.0, 1.0, 0.9796976),
        (8990.0, 0.9796976, 0.9599033),
        (8919.904, 0.9220642, 0.9040679),
        (8811.798, 0.8866817, 0.8703164),
    ],
)
def test_beta_gets_the_update_that_the_file_lacks(average: float, before: float, after: float) -> None:
    model = v2_fixture.fixture_model(2, 64, **SMALL)
    state = official_state("genesisv2", model, genesis_v2.official_keys(5))
    contents = {"model_state_dict": state, "beta": before, "err_ema": average, "iter_idx": 6}
    geco = load_official(contents, num_slots=2).objective
    assert isinstance(geco, GECO)
    assert geco.beta.tolist() == pytest.approx([after], rel=2e-7)
    assert geco.average.tolist() == [pytest.approx(average)]
    assert geco.step == 7


def test_beta_rises_where_the_goal_is_met() -> None:
    """At 32 px steps are 4 times as long; below the goal 10 times as long; β has an upper bound."""
    contents = {
        "model_state_dict": small_state(),
        "beta": torch.tensor([2.0]),
        "err_ema": torch.tensor(1000.0),
    }
    flags = {"g_goal": 0.5}
    geco = load_small(contents, flags=flags).objective
    expected = 2.0 * math.exp(1e-5 * 4 * 10 * (0.5 * 3 * 32 * 32 - 1000.0))
    assert geco.beta.tolist() == pytest.approx([expected], rel=1e-6)  # type: ignore[operator]
    assert geco.goal == 0.5
    contents["beta"] = torch.tensor(1e10)
    assert load_small(contents, flags=flags).objective.beta.tolist() == [1e10]  # type: ignore[operator]


def test_file_without_error_average_had_a_fixed_beta() -> None:
    contents = {"model_state_dict": small_state(), "beta": 0.5, "iter_idx": 99}
    objective = load_small(contents).objective
    assert isinstance(objective, FixedBeta)
    assert objective.beta == 0.5
    assert objective.step == 100


# ---------------------------------------------------------------- what is refused


def without(state: "OrderedDict[str, Tensor]", key: str) -> "OrderedDict[str, Tensor]":
    return OrderedDict((name, value) for name, value in state.items() if name != key)


REFUSED: dict[str, tuple[Any, str]] = {
    "missing": (lambda s: without(s, "z_head.1.bias"), "lacks parameter network.posterior_head.1.bias"),
    "mark": (lambda s: without(s, "seg_head.0.weight"), "lacks parameter network.attention_head.0.weight"),
    "extra": (
        lambda s: s | {"extra.weight": torch.zeros(1)},
        "'extra.weight' is no parameter of the official",
    ),
    "additional": (lambda s: s | {"z_head.5.bias": torch.zeros(1)}, "has the additional parameter"),
    "shape": (
        lambda s: s | {"z_head.1.bias": torch.zeros(3)},
        r"network.posterior_head.1.bias has shape \[3\]",
    ),
    "expanded": (
        lambda s: s | {"z_head.1.bias": torch.zeros(1).expand(10**12)},
        "entry 'z_head.1.bias' is not stored in full",
    ),
    "scalar": (lambda s: s | {"seg_head.0.weight": torch.zeros(())}, "other shapes than GenesisV2's"),
    "other": (
        lambda s: {"conv.weight": torch.zeros(1)},
        r"\(conv.weight, ...\) are those of none of genesisv2",
    ),
    "empty": (lambda s: {}, "holds no parameters"),
    "numbers": (lambda s: {"epoch": 3}, "entry 'epoch' is a int, expected a state dict of tensors"),
    "ours": (lambda s: {"model_class": "GenesisV2"}, "a checkpoint of Lightning Genesis already"),
    "state": (lambda s: {"model_state_dict": 3}, "holds no parameters"),
    "beta": (lambda s: {"model_state_dict": s, "beta": "x"}, "beta is a str, expected a number"),
    "nan": (
        lambda s: {"model_state_dict": s, "beta": 1.0, "err_ema": math.nan},
        "err_ema is nan, expected a finite",
    ),
    "moments": (
        lambda s: {
            "model_state_dict": s,
            "optimiser_state_dict": {"state": {}, "param_groups": [{"params": [0]}]},
        },
        "the optimiser has 1 parameters, expected the model's 72",
    ),
    "optimiser": (
        lambda s: {"model_state_dict": s, "optimiser_state_dict": 3},
        "lacks state or param_groups",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_line(case: str, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    path = tmp_path / "model.ckpt-1"
    torch.save(change(small_state()), path)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_official(path, num_slots=3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_moments_of_another_shape() -> None:
    state = small_state()
    optimizer, _ = trained_optimizer(state)
    optimizer["state"][2]["exp_avg"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"exp_avg is \[3\], expected \[8\]"):
        import_official({"model_state_dict": state, "optimiser_state_dict": optimizer}, num_slots=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o["param_groups"][0].update(lr="fast"), "the optimiser's lr is a str, expected a number"),
        (lambda o: o["state"][0].update(step="many"), "step is a str, expected a number"),
        (
            lambda o: o["state"][0].update(velocity=torch.zeros(1)),
            r"velocity is \[1\], expected \[8, 3, 3, 3\]",
        ),
        (lambda o: o["state"].update({0: 3}), "backbone.down.0.0.weight is a int, expected a dict"),
    ],
)
def test_damaged_optimizer(change: Any, message: str) -> None:
    state = small_state()
    optimizer, _ = trained_optimizer(state)
    change(optimizer)
    with pytest.raises(CheckpointError, match=message):
        import_official({"model_state_dict": state, "optimiser_state_dict": optimizer}, num_slots=3)


def test_wrong_model() -> None:
    with pytest.raises(CheckpointError, match="holds the parameters of genesisv2, expected those of monet"):
        load_official(small_state(), "monet", 3)
    with pytest.raises(ConfigurationError, match="model='genesis3' is unknown: use one of genesisv2, "):
        load_official(small_state(), "genesis3", 3)


def test_unknown_option() -> None:
    with pytest.raises(
        ConfigurationError, match=r"GenesisV2 has no option 'kernle' \(did you mean kernel\?\)"
    ):
        load_small(small_state(), kernle="gaussian")


def test_number_of_slots_has_to_be_told() -> None:
    with pytest.raises(
        ConfigurationError, match="neither its parameters nor flags tell num_slots; give --num_slots"
    ):
        load_official(small_state())


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("where", ["model_state_dict", "beta", "optimiser_state_dict"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_no_code_of_a_file_runs(tmp_path: Path, where: str, form: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.ckpt-FINAL"
    contents = {"model_state_dict": small_state(), where: Malicious(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({**contents, "model_state_dict": Malicious(marker)}))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match="not a readable checkpoint of weights alone") as caught:
        load_small(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_stand_ins_for_numpy_let_nothing_else_through(tmp_path: Path) -> None:
    """An array of objects would be unpickled again by NumPy."""
    path = tmp_path / "model.ckpt-FINAL"
    for value in (
        np.array([1.0, 2.0]),
        np.array([Malicious(tmp_path / "marker")]),
        np.datetime64("2020-01-01"),
    ):
        torch.save({"model_state_dict": small_state(), "beta": value}, path)
        with pytest.raises(CheckpointError):
            load_small(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}", b"hello", bytes(4096)])
@pytest.mark.parametrize("suffix", ["", ".npz"])
def test_damaged_file(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable"):
        load_small(path)


def test_damage_anywhere_is_one_line(tmp_path: Path) -> None:
    """A cut file, at any place, is refused; a flipped byte is, or it changes the numbers."""
    path = write_file(tmp_path / "model.ckpt-FINAL", small_state())
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(content) - 1, 40):
        path.write_bytes(content[:position])
        with pytest.raises(CheckpointError):
            load_small(path)
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        try:
            load_small(path)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_small(tmp_path / "missing")
