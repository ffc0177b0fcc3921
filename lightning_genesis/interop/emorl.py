"""Names and layout of EfficientMORL's parameters in the authors' checkpoints."""

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

EMORL = (
    (r"init_posterior$", "initial_posterior"),
    (r"pos_embed_projection\.", "position.projection."),
    (r"encoder_pt_1\.", "encoder."),
    (r"encoder_pt_2\.", "pixel_mlp."),
    (r"norm_slots\.", "norm_slots."),
    (r"norm_mu_pre_ff\.", "norm_mean."),
    (r"norm_softplus_pre_ff\.", "norm_scale."),
    (r"to_q\.", "query."),
    (r"to_k\.", "key."),
    (r"to_v\.", "value."),
    (r"mlp_mu\.", "mean_mlp."),
    (r"mlp_softplus\.", "scale_mlp."),
    (r"image_decoder\.decode\.", "decoder.layers."),
    (r"image_decoder\.pos_embed_projection\.", "decoder.position.projection."),
    (r"indep_prior\.z_linear\.0\.", "layer_prior.hidden."),
    (r"indep_prior\.z_mu\.", "layer_prior.mean."),
    (r"indep_prior\.z_softplus\.", "layer_prior.scale."),
)
"""Prefixes below `hvae_networks.` and ours; the first that matches counts."""
EMORL_REFINEMENT = (
    (r"recurrence\.(weight|bias)_(ih|hh)_l0$", r"recurrence.\1_\2"),
    (r"encoding\.", "encoding."),
    (r"loc\.", "mean."),
    (r"softplus\.", "scale."),
)
"""The same below `refinenet.`."""
GECO_STATE = ("geco_C_ema", "geco_beta")
"""The moving average of `goal - nll` and β, which are parameters there."""
DUAL_GRU = "hvae_networks.gru.cell."
LEGACY = r".*generation_relation|.*gru\.cell\.zeros(_n)?$"
"""Entries of older checkpoints that the model no longer has."""


def modern_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of an older EfficientMORL under present names; any other model's as it is."""
    if not any(key.startswith("refinenet.") for key in state):
        return dict(state)
    return {
        re.sub(
            r"^(object_discovery_block\.|(?=pos_embed_projection\.|encoder_pt_))", "hvae_networks.", key
        ): value
        for key, value in state.items()
        if not re.match(LEGACY, key)
    }


def emorl_key(key: str) -> str:
    """Our name of an official parameter, other than GECO's state and the DualGRU's.

    Raises:
        KeyError: if there is no such parameter.
    """
    for prefix, names, ours in (
        ("hvae_networks.", EMORL, "network."),
        ("refinenet.", EMORL_REFINEMENT, "network.refinement."),
    ):
        part = key.removeprefix(prefix)
        for pattern, name in names:
            if part != key and re.match(pattern, part):
                return ours + re.sub(pattern, name, part, count=1)
    raise KeyError(f"{key!r} is no parameter of the official EfficientMORL")


def emorl_state(official: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Official parameters, or an optimiser's moments of them, as our state dict, float32.

    The DualGRU is one cell there, with the reset and update gates of both halves apart from their candidates;
    here it is two GRU cells. β becomes the weights that the refinement follows.

    Raises:
        KeyError: if a parameter is unknown, or a part of the DualGRU or of GECO's state is missing.
    """
    state: dict[str, Tensor] = {}
    if 0 < len(official.keys() & set(GECO_STATE)) < 2:
        raise KeyError(f"one of {' and '.join(GECO_STATE)} is missing")
    for key, value in official.items():
        if key == "geco_beta":
            weight = np.log1p(np.exp(float(value)))
            state["network.step_weights"] = torch.tensor([weight, 1.0], dtype=torch.float32)
        elif key not in GECO_STATE and not key.startswith(DUAL_GRU):
            value = value.reshape(-1) if key.endswith(".init_posterior") else value
            state[emorl_key(key)] = _tensor(value)
    cell = {key.removeprefix(DUAL_GRU): value for key, value in official.items() if key.startswith(DUAL_GRU)}
    for half, name in enumerate(("mean_gru", "scale_gru")):
        for side, (gates, candidate) in {"ih": ("ih", "in"), "hh": ("hh", "hn")}.items():
            weights = [cell.pop(f"weight_{part}_{half + 1}") for part in (gates, candidate)]
            biases = [np.split(cell[f"bias_{part}"], 2)[half] for part in (gates, candidate)]
            state[f"network.{name}.weight_{side}"] = _tensor(np.concatenate(weights))
            state[f"network.{name}.bias_{side}"] = _tensor(np.concatenate(biases))
    unknown = cell.keys() - {"bias_ih", "bias_in", "bias_hh", "bias_hn"}
    if unknown:
        raise KeyError(f"{DUAL_GRU + min(unknown)!r} is no parameter of the official EfficientMORL")
    return state


def _tensor(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
