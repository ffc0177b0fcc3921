"""Slot Attention's fixture, and the official model written out in NumPy with TensorFlow's conventions."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Arrays = Mapping[str, np.ndarray]


def emorl_keys(decoder: str = "big") -> list[str]:
    """All keys of EMORL's Slot Attention in state-dict order (specification §14.3)."""

    def pair(stem: str) -> list[str]:
        return [f"{stem}.weight", f"{stem}.bias"]

    keys = ["init_slots", *pair("pos_embed_projection")]
    keys += [key for i in (0, 2, 4, 6) for key in pair(f"encoder_pt_1.{i}")]
    keys += [key for i in (0, 1, 3) for key in pair(f"encoder_pt_2.{i}")]
    keys += [*pair("norm_slots"), *pair("norm_pre_ff"), "to_q.weight", "to_k.weight", "to_v.weight"]
    keys += [*pair("mlp.0"), *pair("mlp.2")]
    keys += ["gru.weight_ih_l0", "gru.weight_hh_l0", "gru.bias_ih_l0", "gru.bias_hh_l0"]
    convolutions = (0, 2, 4, 6, 8, 10) if decoder == "big" else (0, 2, 4, 6)
    keys += [key for i in convolutions for key in pair(f"image_decoder.decode.{i}")]
    return keys + pair("image_decoder.pos_embed_projection")


def fixture_parameter(position: int, key: str, value: Tensor) -> Tensor:
    """Value of the parameter at `position` of the state dict (specification §13)."""
    j = np.arange(value.numel())
    w = 0.1 * np.sin(1.7 * position + 0.9 * j + 0.3 * (j // 7))
    if value.ndim == 1 and key.endswith("weight"):
        w = w + 1.0
    return torch.from_numpy(w.astype(np.float32)).view_as(value)


def fixture_images(size: int, batch: int = 2) -> Tensor:
    """The fixture's images, which are in [-1, 1], in [0, 1]."""
    x = np.sin(0.01 * np.arange(batch * 3 * size * size)).reshape(batch, 3, size, size)
    return torch.from_numpy((0.5 * (x + 1.0)).astype(np.float32))


class SineNoise:
    """Every draw is `sin(1.3 n + 0.5)`."""

    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        n = np.arange(np.prod(shape)).reshape(shape)
        return torch.from_numpy(np.sin(1.3 * n + 0.5).astype(np.float32)).to(like)

    uniform = normal


# ---------------------------------------------------------------- the official model, float64, channels last


def tensorflow_shapes(
    feature: int, slot: int, hidden: int, decoder: int, stages: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of the official variables (specification §14.4) of a model of these widths."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *kernel: int, bias: int | None = None) -> None:
        shapes[f"{name}/kernel"] = kernel
        shapes[f"{name}/bias"] = (kernel[-1] if bias is None else bias,)

    for i in range(4):
        layer(f"encoder_cnn/{i}", 5, 5, feature if i else 3, feature)
    layer("encoder_pos", 4, feature)
    layer("decoder_pos", 4, slot)
    norms = {"layer_norm": feature, "slot_attention/norm_inputs": feature}
    norms |= {"slot_attention/norm_slots": slot, "slot_attention/norm_mlp": slot}
    for name, width in norms.items():
        shapes[f"{name}/gamma"] = shapes[f"{name}/beta"] = (width,)
    for i in range(2):
        layer(f"feedforward/{i}", feature, feature)
    shapes["slot_attention/slots_mu"] = shapes["slot_attention/slots_log_sigma"] = (1, 1, slot)
    shapes["slot_attention/q/kernel"] = (slot, slot)
    shapes["slot_attention/k/kernel"] = shapes["slot_attention/v/kernel"] = (feature, slot)
    shapes["slot_attention/gru/kernel"] = shapes["slot_attention/gru/recurrent_kernel"] = (slot, 3 * slot)
    shapes["slot_attention/gru/bias"] = (2, 3 * slot)
    layer("slot_attention/mlp/0", slot, hidden)
    layer("slot_attention/mlp/1", hidden, slot)
    for i in range(stages + 1):  # [h, w, out, in]
        layer(f"decoder_cnn/{i}", 5, 5, decoder, decoder if i else slot, bias=decoder)
    layer(f"decoder_cnn/{stages + 1}", 3, 3, 4, decoder, bias=4)
    return shapes


def same_convolution(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """TensorFlow's SAME convolution of `[B, H, W, C]`, output pixel by output pixel."""
    size, side = x.shape[1], kernel.shape[0]
    out = -(-size // stride)
    padding = max((out - 1) * stride + side - size, 0)
    before = padding // 2
    x = np.pad(x, ((0, 0), (before, padding - before), (before, padding - before), (0, 0)))
    y = np.zeros((len(x), out, out, kernel.shape[3]))
    for i in range(out):
        for j in range(out):
            patch = x[:, i * stride : i * stride + side, j * stride : j * stride + side]
            y[:, i, j] = np.einsum("bhwc,hwco->bo", patch, kernel)
    return y


def same_transposed_convolution(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """The adjoint of the SAME convolution that maps the output's size to the input's; kernel [h, w, out, in].

    This is how TensorFlow defines it: every input pixel adds its kernel where a convolution would have read.
    """
    size, side = x.shape[1], kernel.shape[0]
    out = size * stride
    padding = max((size - 1) * stride + side - out, 0)
    before = padding // 2
    y = np.zeros((len(x), out + padding, out + padding, kernel.shape[2]))
    for i in range(size):
        for j in range(size):
            stamp = np.einsum("bc,hwoc->bhwo", x[:, i, j], kernel)
            y[:, i * stride : i * stride + side, j * stride : j * stride + side] += stamp
    return y[:, before : before + out, before : before + out]


def official_forward(
    w: Arrays, images: np.ndarray, noise: np.ndarray, stages: int, iterations: int, halvings: int = 0
) -> dict[str, np.ndarray]:
    """The official model, float64.

    Args:
        w: variables by the names of `tensorflow_shapes`.
        images: `[B, S, S, 3]` in [-1, 1].
        noise: `[B, K, D]`.
        stages: transposed convolutions of stride 2 in the decoder.
        iterations: of the attention.
        halvings: how many of the encoder's middle convolutions have stride 2.
    """

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0.0)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-x))

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-3) * w[f"{name}/gamma"] + w[f"{name}/beta"]

    def position(size: int, name: str) -> np.ndarray:
        axis = np.linspace(0.0, 1.0, size)
        row, column = np.meshgrid(axis, axis, indexing="ij")
        return dense(np.stack([row, column, 1.0 - row, 1.0 - column], -1), name)

    def softmax(x: np.ndarray, axis: int) -> np.ndarray:
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return e / e.sum(axis=axis, keepdims=True)

    def gru(x: np.ndarray, h: np.ndarray) -> np.ndarray:
        bias = w["slot_attention/gru/bias"]
        xz, xr, xh = np.split(x @ w["slot_attention/gru/kernel"] + bias[0], 3, axis=-1)
        hz, hr, hh = np.split(h @ w["slot_attention/gru/recurrent_kernel"] + bias[1], 3, axis=-1)
        z, r = sigmoid(xz + hz), sigmoid(xr + hr)
        return z * h + (1.0 - z) * np.tanh(xh + r * hh)

    x = images
    for i in range(4):
        stride = 2 if 1 <= i <= halvings else 1
        x = relu(same_convolution(x, w[f"encoder_cnn/{i}/kernel"], stride) + w[f"encoder_cnn/{i}/bias"])
    x = x + position(x.shape[1], "encoder_pos")
    x = norm(x.reshape(len(x), -1, x.shape[-1]), "layer_norm")
    x = dense(relu(dense(x, "feedforward/0")), "feedforward/1")

    x = norm(x, "slot_attention/norm_inputs")
    k, v = x @ w["slot_attention/k/kernel"], x @ w["slot_attention/v/kernel"]
    slots = w["slot_attention/slots_mu"] + np.exp(w["slot_attention/slots_log_sigma"]) * noise
    attention = np.zeros(())
    for _ in range(iterations):
        q = norm(slots, "slot_attention/norm_slots") @ w["slot_attention/q/kernel"]
        attention = softmax(k @ q.swapaxes(1, 2) * q.shape[-1] ** -0.5, axis=2)  # [B, N, K]
        weights = attention + 1e-8
        weights = weights / weights.sum(axis=1, keepdims=True)
        slots = gru(weights.swapaxes(1, 2) @ v, slots)
        y = relu(dense(norm(slots, "slot_attention/norm_mlp"), "slot_attention/mlp/0"))
        slots = slots + dense(y, "slot_attention/mlp/1")

    side = images.shape[1] // 2**stages
    maps = slots.reshape(-1, 1, 1, slots.shape[-1]) + position(side, "decoder_pos")
    for i in range(stages + 2):
        stride = 2 if i < stages else 1
        maps = same_transposed_convolution(maps, w[f"decoder_cnn/{i}/kernel"], stride)
        maps = maps + w[f"decoder_cnn/{i}/bias"]
        maps = maps if i == stages + 1 else relu(maps)
    maps = maps.reshape(len(images), -1, *maps.shape[1:])
    components, masks = maps[..., :3], softmax(maps[..., 3:], axis=1)
    reconstruction = (components * masks).sum(axis=1)
    return {
        "attention": attention,
        "slots": slots,
        "components": components,
        "masks": masks,
        "loss": np.square(reconstruction - images).mean(axis=(1, 2, 3)),
    }
