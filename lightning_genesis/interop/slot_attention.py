"""Names of Slot Attention's parameters in EfficientMORL's repository (PyTorch) and in the official one.

The first are of `SlotAttention(implementation="emorl")`, the second of the default. The official model is in
TensorFlow, with kernels laid out in another way; read its variables into arrays first.
"""

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

EMORL = (
    (r"init_slots$", "network.initial_slots"),
    (r"pos_embed_projection\.", "network.position.projection."),
    (r"encoder_pt_1\.", "network.encoder."),
    (r"encoder_pt_2\.", "network.pixel_mlp."),
    (r"norm_slots\.", "network.attention.norm_slots."),
    (r"norm_pre_ff\.", "network.attention.norm_mlp."),
    (r"to_q\.", "network.attention.query."),
    (r"to_k\.", "network.attention.key."),
    (r"to_v\.", "network.attention.value."),
    (r"mlp\.", "network.attention.mlp."),
    (r"gru\.(weight|bias)_(ih|hh)_l0$", r"network.attention.gru.\1_\2"),
    (r"image_decoder\.decode\.", "network.decoder.layers."),
    (r"image_decoder\.pos_embed_projection\.", "network.decoder.position.projection."),
)
"""Prefixes in EMORL's repository and ours; the first that matches counts."""

TENSORFLOW = {
    "encoder_pos": "network.position.projection",
    "layer_norm": "network.pixel_mlp.0",
    "feedforward/0": "network.pixel_mlp.1",
    "feedforward/1": "network.pixel_mlp.3",
    "slot_attention/norm_inputs": "network.attention.norm_inputs",
    "slot_attention/norm_slots": "network.attention.norm_slots",
    "slot_attention/norm_mlp": "network.attention.norm_mlp",
    "slot_attention/q": "network.attention.query",
    "slot_attention/k": "network.attention.key",
    "slot_attention/v": "network.attention.value",
    "slot_attention/mlp/0": "network.attention.mlp.0",
    "slot_attention/mlp/1": "network.attention.mlp.2",
    "decoder_pos": "network.decoder.position.projection",
}
"""Parts of the official model and ours; convolutions are numbered, see `tensorflow_key`."""
GRU = "slot_attention/gru/"
GRU_KEYS = {"kernel": "weight_ih", "recurrent_kernel": "weight_hh"}


def slot_attention_key(key: str) -> str:
    """Our name of a parameter of EMORL's Slot Attention.

    Raises:
        KeyError: if it has no such parameter.
    """
    for pattern, ours in EMORL:
        if re.match(pattern, key):
            return re.sub(pattern, ours, key, count=1)
    raise KeyError(f"{key!r} is no parameter of EMORL's Slot Attention")


def tensorflow_key(name: str) -> str:
    """Our name of an official variable, other than the initial slots and the GRU's.

    Args:
        name: `part/variable`, such as `encoder_cnn/2/kernel`, `slot_attention/norm_mlp/gamma` or
            `slot_attention/mlp/0/bias`; layers are counted from 0 where a part has several.

    Raises:
        KeyError: if the official model has no such variable.
    """
    part, _, variable = name.rpartition("/")
    ours = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}.get(variable)
    convolution = re.fullmatch(r"(encoder|decoder)_cnn/(\d+)", part)
    if ours is not None and convolution:
        layers = "encoder" if convolution[1] == "encoder" else "decoder.layers"
        return f"network.{layers}.{2 * int(convolution[2])}.{ours}"
    if ours is not None and part in TENSORFLOW:
        return f"{TENSORFLOW[part]}.{ours}"
    raise KeyError(f"{name!r} is no variable of the official Slot Attention")


def tensorflow_state(variables: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The official variables as our state dict, float32.

    Dense kernels `[in, out]`, convolutions `[h, w, in, out]` and transposed ones `[h, w, out, in]` are
    transposed. The GRU's gates change from the order z, r, h to r, z, n, and its two rows of biases become
    two vectors. Mean and log-scale of the initial slots become one vector.

    Args:
        variables: by `part/variable`, see `tensorflow_key`; besides `slot_attention/slots_mu`,
            `slot_attention/slots_log_sigma`, `slot_attention/gru/kernel`, `.../recurrent_kernel` and
            `.../bias`.

    Raises:
        KeyError: if a variable is unknown, or the initial slots are not complete.
    """
    state: dict[str, Tensor] = {}
    start = [variables[f"slot_attention/slots_{name}"].reshape(1, -1) for name in ("mu", "log_sigma")]
    state["network.initial_slots"] = _tensor(np.concatenate(start, axis=1))
    for name, value in variables.items():
        if name in ("slot_attention/slots_mu", "slot_attention/slots_log_sigma"):
            continue
        if name.startswith(GRU):
            gates = np.split(value, 3, axis=-1)
            value = np.concatenate([gates[1], gates[0], gates[2]], axis=-1)
            part = name.removeprefix(GRU)
            if part == "bias":
                state["network.attention.gru.bias_ih"] = _tensor(value[0])
                state["network.attention.gru.bias_hh"] = _tensor(value[1])
            elif part in GRU_KEYS:
                state[f"network.attention.gru.{GRU_KEYS[part]}"] = _tensor(value.T)
            else:
                raise KeyError(f"{name!r} is no variable of the official Slot Attention")
            continue
        # Both kinds of convolution have PyTorch's first axis last: out, or in where it is transposed.
        axes = (3, 2, 0, 1) if value.ndim == 4 else (1, 0)
        state[tensorflow_key(name)] = _tensor(value.transpose(axes) if value.ndim > 1 else value)
    return state


def _tensor(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
