"""EfficientMORL's fixture: official names and shapes in state-dict order (specification §13, §14.2)."""

from collections import OrderedDict

import torch
from torch import Tensor

from tests.reference.slot_attention import fixture_parameter


def official_shapes(decoder: str = "iodine", z: int = 64) -> dict[str, tuple[int, ...]]:
    """Shapes of all entries; "iodine" with z = 64 is CLEVR6, "small" with z = 32 Tetrominoes.

    "big" has two stages, for 24 px; its layers are named as Slot Attention's (specification §14.3).
    """
    shapes: dict[str, tuple[int, ...]] = {"geco_C_ema": (), "geco_beta": ()}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    h = "hvae_networks"
    shapes[f"{h}.init_posterior"] = (1, 2 * z)
    layer(f"{h}.pos_embed_projection", 64, 4)
    for i in (0, 2, 4, 6):
        layer(f"{h}.encoder_pt_1.{i}", 64, 64 if i else 3, 5, 5)
    layer(f"{h}.encoder_pt_2.0", 64)
    for i in (1, 3):
        layer(f"{h}.encoder_pt_2.{i}", 64, 64)
    for name in ("slots", "mu_pre_ff", "softplus_pre_ff"):
        layer(f"{h}.norm_{name}", z)
    shapes |= {f"{h}.to_q.weight": (z, z), f"{h}.to_k.weight": (z, 64), f"{h}.to_v.weight": (z, 64)}
    for half in (1, 2):
        shapes |= {f"{h}.gru.cell.weight_{kind}_{half}": (2 * z, z) for kind in ("ih", "hh")}
    shapes |= {f"{h}.gru.cell.bias_ih": (4 * z,), f"{h}.gru.cell.bias_hh": (4 * z,)}
    for half in (1, 2):
        shapes |= {f"{h}.gru.cell.weight_{kind}_{half}": (z, z) for kind in ("in", "hn")}
    shapes |= {f"{h}.gru.cell.bias_in": (2 * z,), f"{h}.gru.cell.bias_hn": (2 * z,)}
    for name in ("mu", "softplus"):
        layer(f"{h}.mlp_{name}.0", 2 * z, z)
        layer(f"{h}.mlp_{name}.2", z, 2 * z)
    if decoder == "iodine":
        for i in (0, 2, 4, 6, 8):
            layer(f"{h}.image_decoder.decode.{i}", 4 if i == 8 else 64, 64 if i else z, 3, 3)
    elif decoder == "big":
        for i in (0, 2, 4):  # transposed: inputs come first
            shapes[f"{h}.image_decoder.decode.{i}.weight"] = (64 if i else z, 64, 5, 5)
            shapes[f"{h}.image_decoder.decode.{i}.bias"] = (64,)
        shapes[f"{h}.image_decoder.decode.6.weight"] = (64, 4, 3, 3)
        shapes[f"{h}.image_decoder.decode.6.bias"] = (4,)
    else:
        for i in (0, 2, 4):
            layer(f"{h}.image_decoder.decode.{i}", 32, 32 if i else z, 5, 5)
        layer(f"{h}.image_decoder.decode.6", 4, 32, 3, 3)
    layer(f"{h}.image_decoder.pos_embed_projection", z, 4)
    layer(f"{h}.indep_prior.z_linear.0", 128, z)
    for name in ("mu", "softplus"):
        layer(f"{h}.indep_prior.z_{name}", z, 128)
    for kind, rows in (("weight", (3 * z, z)), ("bias", (3 * z,))):
        shapes |= {f"refinenet.recurrence.{kind}_{part}_l0": rows for part in ("ih", "hh")}
    layer("refinenet.encoding.0", 128, 4 * z)
    layer("refinenet.encoding.2", z, 128)
    for name in ("loc", "softplus"):
        layer(f"refinenet.{name}", z, z)
    return shapes


def official_state(decoder: str = "iodine", z: int = 64) -> "OrderedDict[str, Tensor]":
    """The fixture's values: GECO's scalars 0 and 0.55, all others by their place in the state dict."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    for position, (key, shape) in enumerate(official_shapes(decoder, z).items()):
        value = torch.zeros(shape)
        state[key] = fixture_parameter(position, key, value) if shape else value
    state["geco_beta"] = torch.tensor(0.55)
    return state
