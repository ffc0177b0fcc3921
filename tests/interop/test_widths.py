"""Every width of an official checkpoint is read from its parameters, or the file is refused with one line."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.interop.emorl import emorl_state
from lightning_genesis.interop.known_models import recognise
from lightning_genesis.interop.official import import_official, load_official
from lightning_genesis.models import EfficientMORL, SceneModel, SlotAttention
from lightning_genesis.scene import Noise
from tests.interop.official_files import official_state, trained_optimizer
from tests.interop.test_official import assert_same_weights, check_moments
from tests.models import genesis_fixture, monet_fixture, v2_fixture
from tests.models.emorl_fixture import TETROMINOES
from tests.models.sri_fixture import SMALL as SMALL_SRI
from tests.models.sri_fixture import fixture_model as sri_model
from tests.reference import FixtureNoise, fixture_parameter, genesis, genesis_v2, images, monet, sri
from tests.reference.emorl import official_state as emorl_official
from tests.reference.slot_attention import SineNoise, emorl_keys, fixture_images


@torch.no_grad()
def assert_same_outputs(expected: SceneModel, found: SceneModel, batch: Tensor, noise: type[Noise]) -> None:
    """Weights and Scenes are equal, bit for bit, in evaluation mode."""
    assert_same_weights(expected, found)
    first, second = expected.eval()(batch, noise()), found(batch, noise())
    assert torch.equal(first.components, second.components)
    assert torch.equal(first.log_masks, second.log_masks)


# ---------------------------------------------------------------- GENESIS-V2 and SRI


def v2_shapes(width: int, backbone: int, late: int) -> dict[str, tuple[int, ...]]:
    """Shapes of an official GENESIS-V2 at 32 px (specification §9.1, for another `feat_dim` than 64).

    Its latents have `width`, its LSTM `4 width` units, the decoder's last two stages `late` channels.
    """
    f, b = width, backbone
    shapes: dict[str, tuple[int, ...]] = {}
    blocks = {
        "down": [(b, 3), (2 * b, b), (2 * b, 2 * b), (2 * b, 2 * b)],
        "up": [(2 * b, 4 * b), (2 * b, 4 * b), (b, 4 * b), (b, 2 * b)],
    }
    for side, convolutions in blocks.items():
        for i, (out, into) in enumerate(convolutions):
            shapes[f"encoder.{side}.{i}.0.weight"] = (out, into, 3, 3)
            shapes |= dict.fromkeys((f"encoder.{side}.{i}.1.weight", f"encoder.{side}.{i}.1.bias"), (out,))
    linear = {"encoder.mlp.1": (128, 32 * b), "encoder.mlp.3": (128, 128), "encoder.mlp.5": (32 * b, 128)}
    linear |= {"z_head.1": (2 * f, 2 * f), "z_head.3": (2 * f, 2 * f), "prior_linear": (2 * f, 4 * f)}
    linear |= {"att_process.colour_head.conv": (8, f, 1, 1), "feat_head.1": (2 * f, f, 1, 1)}
    linear |= {"decoder_module.13": (4, late, 1, 1)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes |= {"seg_head.0.weight": (f, b, 3, 3), "feat_head.0.0.weight": (f, b, 3, 3)}
    norms = {"seg_head.1": f, "feat_head.0.1": f, "z_head.0": 2 * f}
    stages = [(f + 2, f), (f, f), (f, late), (late, late)]
    for i, (into, out) in enumerate(stages):
        shapes[f"decoder_module.{3 * i + 1}.weight"] = (into, out, 5, 5)
        shapes[f"decoder_module.{3 * i + 1}.bias"] = (out,)
        norms[f"decoder_module.{3 * i + 2}"] = out
    for name, length in norms.items():
        shapes |= {f"{name}.weight": (length,), f"{name}.bias": (length,)}
    shapes |= {"prior_lstm.weight_ih_l0": (16 * f, f), "prior_lstm.weight_hh_l0": (16 * f, 4 * f)}
    shapes |= {"prior_lstm.bias_ih_l0": (16 * f,), "prior_lstm.bias_hh_l0": (16 * f,)}
    return shapes | {"att_process.log_sigma": (), "att_process.colour_head.gate.gate": ()}


def v2_state(width: int, backbone: int, late: int) -> "OrderedDict[str, Tensor]":
    shapes = v2_shapes(width, backbone, late)
    keys = genesis_v2.official_keys(4)
    assert set(shapes) == set(keys)
    return OrderedDict((key, fixture_parameter(key, torch.zeros(shapes[key]))) for key in keys)


@pytest.mark.parametrize(
    ("width", "backbone", "late", "options"),
    [
        (64, 64, 64, {}),
        (32, 32, 32, {"feature_dim": 32, "latent_dim": 32, "prior_dim": 128}),
        (
            128,
            64,
            64,
            {
                "feature_dim": 128,
                "latent_dim": 128,
                "backbone_dim": 64,
                "decoder_dims": [128, 128, 64, 64],
                "prior_dim": 512,
            },
        ),
    ],
)
def test_genesis_v2(width: int, backbone: int, late: int, options: dict[str, Any]) -> None:
    state = v2_state(width, backbone, late)
    found = load_official(state, "genesisv2", 3)
    defaults = {"backbone_dim": None, "decoder_dims": None, "decoder_stages": 4}
    for name, value in {**defaults, **options}.items():
        assert found.hparams[name] == value, name
    expected = v2_fixture.fixture_model(3, 32, **options)
    with torch.no_grad():  # the fixture leaves it, and it is the table's here
        expected.network.colouring.log_sigma.copy_(state["att_process.log_sigma"])
    assert_same_outputs(expected, found, images(32), FixtureNoise)


def test_heads_wider_than_the_backbone_run_nowhere() -> None:
    """The published class with `feat_dim` 128: its backbone is capped at 64, its heads take 128."""
    state = v2_state(128, 64, 64)
    for key in ("seg_head.0.weight", "feat_head.0.0.weight"):
        state[key] = torch.zeros(128, 128, 3, 3)
    with pytest.raises(ConfigurationError, match=r"the backbone gives 64 channels and seg_head.* takes 128"):
        load_official(state, "genesisv2", 3)


def test_sri() -> None:
    options = {**SMALL_SRI, "encoder_options": {"latent_dim": 16, "feature_dim": 24}}
    expected = sri_model(3, 64, **options)
    state = official_state("sri", expected, sri.official_keys())
    found = load_official(state, "sri", 3)
    assert_same_outputs(expected, found, sri.fixture_images(64), sri.FixtureNoise)
    assert {name: found.hparams[name] for name in ("scene_dim", "hidden_dim")} == {
        name: SMALL_SRI[name] for name in ("scene_dim", "hidden_dim")
    }


# ---------------------------------------------------------------- MONet and GENESIS

COMPONENTS = {"encoder_dim": 12, "decoder_dim": 20}


@pytest.mark.parametrize("options", [COMPONENTS, {"feature_dim": 24, "latent_dim": 8}])
def test_monet(options: dict[str, Any]) -> None:
    expected = monet_fixture.fixture_model(3, 32, **options)
    state = official_state("monet", expected, monet.official_keys(4, buffers=True))
    older = OrderedDict((monet.legacy_key(key), value) for key, value in state.items())
    for contents in (state, older):
        found = load_official(contents)
        assert_same_outputs(expected, found, images(32), monet.SlotMajorNoise)
        assert (found.num_slots, found.image_size) == (3, 32)


@pytest.mark.parametrize("attention", [True, False])
def test_monet_of_one_slot(attention: bool) -> None:
    """It runs no attention network; a file may have its parameters, with their moments, all the same."""
    keys = monet.official_keys(4, buffers=True)
    state = official_state("monet", monet_fixture.fixture_model(2, 32, **COMPONENTS), keys)
    state["std"] = torch.full((1, 1, 1, 1, 1), 0.7)
    kept = OrderedDict((k, v) for k, v in state.items() if attention or not k.startswith("att_process."))
    assert recognise(kept) == "monet"
    optimizer, by_key = trained_optimizer(kept)
    contents = {"model_state_dict": kept, "optimiser_state_dict": optimizer}
    found = load_official(contents)
    assert (found.num_slots, found.image_size) == (1, 32)
    scene = found(images(32), monet.SlotMajorNoise())
    assert torch.equal(scene.log_masks, torch.zeros(2, 1, 1, 32, 32))
    used = {key: value for key, value in by_key.items() if not key.startswith("att_process.")}
    check_moments("monet", import_official(contents), found, used)
    weights = {key: value for key, value in found.state_dict().items() if "component_vae" in key}
    theirs = [value for key, value in kept.items() if key.startswith("comp_vae.")]
    assert all(torch.equal(*pair) for pair in zip(weights.values(), theirs, strict=True))


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"feature_dim": 16}, {}),
        ({**COMPONENTS, "prior_dim": 96}, {}),
        ({"feature_dim": 16, "symmetric_components": True}, {"symmetric": True}),
        ({"two_stage": False, "mask_dim": 24, "decoder_dim": 20}, {"two_stage": False}),
    ],
)
def test_genesis(options: dict[str, Any], keys: dict[str, Any]) -> None:
    expected = genesis_fixture.fixture_model(3, 32, **options)
    name = "genesis" if options.get("two_stage", True) else "genesis-s"
    state = official_state(name, expected, genesis.official_keys(buffers=True, **keys))
    found = load_official(state, name)
    assert_same_outputs(expected, found, images(32), genesis_fixture.ForwardNoise)
    for option, value in options.items():
        assert found.hparams[option] == value, option


def test_genesis_of_one_slot_and_another_size() -> None:
    """The side follows from the width of the component VAE, whatever that is."""
    expected = genesis_fixture.fixture_model(1, 48, feature_dim=12, decoder_dim=20)
    found = load_official(
        official_state("genesis", expected, genesis.official_keys(one_slot=True, buffers=True))
    )
    assert found.image_size == 48
    assert_same_outputs(expected, found, images(48), genesis_fixture.ForwardNoise)


# ---------------------------------------------------------------- EfficientMORL's repository


def emorl_file(decoder: str = "small") -> dict[str, Any]:
    state = emorl_official(decoder, 32)
    return {"model": {f"module.{key}": value for key, value in state.items()}, "step": 9}


def emorl_model(weights: str, **options: Any) -> EfficientMORL:
    """Ours with the fixture's weights, without what it has no use for."""
    model = EfficientMORL(**{**TETROMINOES, **options})
    state = emorl_state({key: value.numpy() for key, value in emorl_official(weights, 32).items()})
    model.load_state_dict({k: v for k, v in state.items() if k in model.state_dict()}, strict=False)
    return model


@pytest.mark.parametrize("prior_is_there", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_layers_of_emorl(num_layers: int, prior_is_there: bool) -> None:
    """Their number is in no parameter, but for the prior between them, which one layer does not need."""
    file = emorl_file()
    if not prior_is_there:
        file["model"] = {k: v for k, v in file["model"].items() if "indep_prior" not in k}
    told: dict[str, Any] = {"num_slots": 4, "image_size": 35}
    if num_layers > 1 and not prior_is_there:
        with pytest.raises(CheckpointError, match=r"lacks parameter network.layer_prior"):
            load_official(file, **told, num_layers=num_layers)
        return
    if prior_is_there:
        with pytest.raises(ConfigurationError, match="no parameter tells num_layers; give --num_layers"):
            load_official(file, **told)
        told["num_layers"] = num_layers
    found: Any = load_official(file, **told)
    assert found.network.num_layers == num_layers
    expected = emorl_model("small", num_layers=num_layers)
    expected.network.step_weights.copy_(found.network.step_weights)
    assert_same_outputs(expected, found, fixture_images(35), SineNoise)


def test_no_layers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="num_layers=0 is too small"):
        load_official(emorl_file(), num_slots=4, image_size=35, num_layers=0)


def test_big_decoder_of_emorl() -> None:
    told: dict[str, Any] = {"num_slots": 3, "image_size": 24, "num_layers": 3}
    found: Any = load_official(emorl_file("big"), **told)
    values = found.hparams
    assert (values["decoder"], values["decoder_dim"], values["decoder_stages"]) == ("big", 64, 2)
    assert (found.likelihood, found.std) == ("mixture", 0.1)
    settings = {name: values[name] for name in ("likelihood", "std", "final_refinements")}
    sizes = {"decoder": "big", "decoder_dim": 64, "decoder_stages": 2, **told, **settings}
    expected = emorl_model("big", **sizes)
    expected.network.step_weights.copy_(found.network.step_weights)
    assert_same_outputs(expected, found, fixture_images(24), SineNoise)


@pytest.mark.parametrize(
    ("decoder", "stages"), [("small", None), ("big", 4), ("big", 2)], ids=["small", "big", "big of two"]
)
def test_slot_attention_of_emorl(decoder: Any, stages: int | None) -> None:
    widths = {"slot_dim": 24, "feature_dim": 16, "mlp_dim": 40, "decoder_dim": 12}
    options: dict[str, Any] = {"implementation": "emorl", "decoder": decoder, **widths}
    if stages is not None:
        options["decoder_stages"] = stages
    expected = SlotAttention(3, 32, **options)
    dropped = [f"image_decoder.decode.{i}." for i in (8, 10)] if stages == 2 else []
    keys = [key for key in emorl_keys(decoder) if not key.startswith(tuple(dropped))]
    state = official_state("slot-attention-emorl", expected, keys)
    found = load_official(state, "slot-attention", 3, 32)
    assert {name: found.hparams[name] for name in options} == options
    assert_same_outputs(expected, found, fixture_images(32), SineNoise)
