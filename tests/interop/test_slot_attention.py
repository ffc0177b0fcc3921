"""Names of the published weights of Slot Attention (specification §14.3, §14.4)."""

from typing import Any

import numpy as np
import pytest
import torch

from lightning_genesis.interop.slot_attention import slot_attention_key, tensorflow_key, tensorflow_state
from lightning_genesis.models import SlotAttention
from tests.reference.slot_attention import emorl_keys, tensorflow_shapes

BIG: dict[str, Any] = {"num_slots": 7, "image_size": 96, "implementation": "emorl"}
SMALL: dict[str, Any] = {
    "num_slots": 4,
    "image_size": 35,
    "slot_dim": 32,
    "implementation": "emorl",
    "decoder": "small",
    "decoder_dim": 32,
}


def network_state(options: dict[str, Any]) -> dict[str, torch.Tensor]:
    state = SlotAttention(**options).state_dict()
    return {name: value for name, value in state.items() if not name.startswith("objective.")}


@pytest.mark.parametrize(("options", "count"), [(BIG, 46), (SMALL, 42)])
def test_names_are_a_bijection(options: dict[str, Any], count: int) -> None:
    keys = emorl_keys(options.get("decoder", "big"))
    ours = [slot_attention_key(key) for key in keys]
    assert len(keys) == len(set(ours)) == count
    assert set(ours) == set(network_state(options))


@pytest.mark.parametrize(
    ("options", "key", "shape"),
    [
        (BIG, "init_slots", (1, 128)),
        (BIG, "pos_embed_projection.weight", (64, 4)),
        (BIG, "encoder_pt_1.0.weight", (64, 3, 5, 5)),
        (BIG, "encoder_pt_2.0.weight", (64,)),
        (BIG, "encoder_pt_2.3.weight", (64, 64)),
        (BIG, "mlp.2.weight", (64, 128)),
        (BIG, "gru.bias_hh_l0", (192,)),
        (BIG, "image_decoder.decode.8.weight", (64, 64, 5, 5)),
        (BIG, "image_decoder.decode.10.weight", (64, 4, 3, 3)),
        (SMALL, "init_slots", (1, 64)),
        (SMALL, "norm_pre_ff.weight", (32,)),
        (SMALL, "to_q.weight", (32, 32)),
        (SMALL, "to_v.weight", (32, 64)),
        (SMALL, "mlp.0.weight", (128, 32)),
        (SMALL, "gru.weight_ih_l0", (96, 32)),
        (SMALL, "image_decoder.decode.0.weight", (32, 32, 5, 5)),
        (SMALL, "image_decoder.decode.6.weight", (4, 32, 3, 3)),
        (SMALL, "image_decoder.pos_embed_projection.weight", (32, 4)),
    ],
)
def test_shapes_are_the_published_ones(options: dict[str, Any], key: str, shape: tuple[int, ...]) -> None:
    assert network_state(options)[slot_attention_key(key)].shape == shape


@pytest.mark.parametrize(
    "key", ["", "init_slots2", "module.to_q.weight", "gru.weight_ih_l1", "norm_inputs.weight"]
)
def test_unknown_names(key: str) -> None:
    with pytest.raises(KeyError, match="no parameter of EMORL's Slot Attention"):
        slot_attention_key(key)


# ---------------------------------------------------------------- TensorFlow

OFFICIAL_128 = {"feature": 64, "slot": 64, "hidden": 128, "decoder": 64, "stages": 4}


def variables() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=shape) for name, shape in tensorflow_shapes(**OFFICIAL_128).items()}


def test_official_variables_fill_the_official_model() -> None:
    official = variables()
    assert sum(value.size for value in official.values()) == 890_308
    state, expected = tensorflow_state(official), network_state({"num_slots": 7, "image_size": 128})
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert all(value.dtype == torch.float32 for value in state.values())


def test_kernels_are_transposed() -> None:
    """The numbers themselves are right because the whole model is: `test_slot_attention_reference.py`."""
    official = variables()
    state = tensorflow_state(official)
    kernel, ours = official["encoder_cnn/1/kernel"], state["network.encoder.2.weight"]
    assert ours[7, 3, 4, 1].item() == pytest.approx(kernel[4, 1, 3, 7])
    kernel, ours = official["decoder_cnn/5/kernel"], state["network.decoder.layers.10.weight"]
    assert ours[9, 2, 0, 1].item() == pytest.approx(kernel[0, 1, 2, 9])
    kernel, ours = official["slot_attention/mlp/0/kernel"], state["network.attention.mlp.0.weight"]
    assert ours[100, 5].item() == pytest.approx(kernel[5, 100])
    kernel, ours = official["slot_attention/gru/kernel"], state["network.attention.gru.weight_ih"]
    assert ours[0, 5].item() == pytest.approx(kernel[5, 64])  # r stands second there, first here
    assert ours[64, 5].item() == pytest.approx(kernel[5, 0])


@pytest.mark.parametrize(
    "name", ["encoder_cnn/0/moving_mean", "slot_attention/o/kernel", "slot_attention/gru/gamma", "step"]
)
def test_unknown_variables(name: str) -> None:
    with pytest.raises(KeyError, match="no variable of the official Slot Attention"):
        tensorflow_state({**variables(), name: np.zeros(3)})
    if "gru" not in name:
        with pytest.raises(KeyError):
            tensorflow_key(name)


def test_incomplete_variables() -> None:
    incomplete = variables()
    del incomplete["slot_attention/slots_mu"]
    with pytest.raises(KeyError, match="slots_mu"):
        tensorflow_state(incomplete)
