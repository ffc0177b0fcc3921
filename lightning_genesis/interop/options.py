"""A model's options as the authors' checkpoints tell them: by their parameters, and by the flags of the run.

Flags are read where no parameter tells. A run's `flags.json` was written before the datasets put in their
defaults, so a flag may be -1; `read_flags` leaves those out.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.objectives import SoftplusGECO

DATASETS = {
    "multidsprites": (5, 64),
    "multid": (5, 64),
    "gqn": (7, 64),
    "shapestacks": (9, 64),
    "objectsroom": (7, 64),
    "sketchy": (10, 128),
    "apc": (10, 128),
    "clevr": (11, 128),
    "tetrominoes": (4, 32),
}
"""Number of slots and side of the images that the published code takes where a flag is -1."""

State = Mapping[str, Tensor]
Flags = Mapping[str, Any]


def dataset_defaults(flags: Flags) -> tuple[int, int] | None:
    """Number of slots and image size of the one dataset that the flags name; None if there is none."""
    named = " ".join(str(value) for name, value in flags.items() if "data" in name and isinstance(value, str))
    named = re.sub(r"[^a-z]", "", named.lower())
    found = {sizes for dataset, sizes in DATASETS.items() if dataset in named}
    return found.pop() if len(found) == 1 else None


def genesis_v2_options(state: State, flags: Flags) -> dict[str, Any]:
    """Options of `GenesisV2`. Kernel, σ, flexible slots and mask consistency are in the flags alone."""
    options: dict[str, Any] = {
        "image_size": _unet_size(state, "encoder.down."),
        "semi_convolutional": "att_process.colour_head.weight" not in state,
        "autoregressive_prior": "prior_lstm.weight_ih_l0" in state,
        "feature_dim": _length(state, "seg_head.0.weight"),
        "latent_dim": _length(state, "z_head.3.bias", 2),
    }
    names = {
        "kernel": "kernel",
        "pixel_std1": "std",
        "dynamic_K": "flexible_slots",
        "klm_loss": "mask_consistency",
        "detach_mr_in_klm": "detach_decoded_masks",
    }
    return options | _renamed(flags, names) | _activation(flags)


def sri_options(state: State, flags: Flags) -> dict[str, Any]:
    """Options of `SRI` on GENESIS-V2. K, likelihood and σ are in no parameter."""
    prefix = "genesisv2."
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    options = genesis_v2_options(part, flags)
    encoder = {
        name: options[name]
        for name in ("semi_convolutional", "feature_dim", "latent_dim", "kernel")
        if options.get(name) is not None
    }
    return {
        "image_size": options["image_size"],
        "std": options.get("std"),
        "encoder_options": encoder,
        "scene_dim": _length(state, "scene_encoder.mu_s.bias"),
        "num_set_layers": _count(state, "scene_encoder.blocks."),
        "hidden_dim": _length(state, "prior_lstm.lstm.weight_hh_l0", axis=1),
        "shared_decoder": not any(key.startswith("decoder.") for key in state),
    }


def genesis_options(state: State, flags: Flags) -> dict[str, Any]:
    """Options of `Genesis`, GENESIS-S included; K and σ are in the buffer `std`.

    Raises:
        ConfigurationError: if the slots' σ differ, which our GENESIS has not.
    """
    std = _slot_std(state)
    background = std.pop("background_std", None)
    if background is not None:
        raise ConfigurationError(
            f"the slots' standard deviations are {background} and {std['std']}; GENESIS has one for all here"
        )
    two_stage = "decoder.seq.1.weight" not in state
    symmetric = "comp_vae.encoder_module.0.0.conv.weight" in state
    options: dict[str, Any] = {**std, "two_stage": two_stage, "symmetric_components": symmetric}
    if symmetric:
        options["component_dim"] = _length(state, "comp_vae.encoder_module.0.5.conv.bias", 4)
        options["image_size"] = _gated_size(state, "comp_vae.encoder_module.0.5.conv.weight", {8: 32, 16: 64})
    elif two_stage:
        options["component_dim"] = _length(state, "comp_vae.encoder_module.module.11.bias", 2)
        features = state.get("comp_vae.encoder_module.module.9.weight")
        if features is not None:
            options["image_size"] = 16 * math.isqrt(features.shape[1] // 64)
    else:
        options["image_size"] = _gated_size(state, "att_process.core.q_z_nn.5.conv.weight")
    if any(key.startswith("att_process.") for key in state):  # with one slot none of these is there
        options["mask_dim"] = _length(state, "att_process.core.q_z_mean.bias")
        options["autoregressive_prior"] = "prior_lstm.weight_ih_l0" in state
        running = "att_process.core.q_z_nn.0.h_norm.running_mean" in state
        options["norm"] = "batch" if running else "instance"
        if two_stage:
            options["component_prior"] = "prior_mlp.0.weight" in state
    return options | _activation(flags)


def monet_options(state: State, flags: Flags) -> dict[str, Any]:
    """Options of `MONet`; K and both σ are in the buffer `std`."""
    options: dict[str, Any] = {"image_size": _unet_size(state, "att_process.core.down."), **_slot_std(state)}
    options["latent_dim"] = _length(state, "comp_vae.encoder_module.module.11.bias", 2)
    if "montecarlo_kl" in flags:
        options["analytic_kl"] = not flags["montecarlo_kl"]
    return options | _renamed(flags, {"prior_mode": "mask_prior"}) | _activation(flags)


def vae_options(state: State, flags: Flags) -> dict[str, Any]:
    """Options of `VAE`; σ is in the flags alone, and where the side is 64 or more, so is the side."""
    options: dict[str, Any] = {
        "num_slots": 1,
        "image_size": _gated_size(state, "vae.q_z_nn.5.conv.weight"),
        "decoder": "broadcast" if "vae.p_x_nn.1.seq.1.weight" in state else "deconv",
        "latent_dim": _length(state, "vae.q_z_mean.bias"),
    }
    return options | _renamed(flags, {"pixel_std": "std"}) | _activation(flags)


def emorl_slot_attention_options(state: State, flags: Flags) -> dict[str, Any]:
    """Options of `SlotAttention` for EMORL's; neither K nor the image size are in a checkpoint."""
    del flags
    big = "image_decoder.decode.8.weight" in state
    first = state.get("image_decoder.decode.0.bias")
    return {
        "implementation": "emorl",
        "slot_dim": _length(state, "init_slots", 2, axis=1),
        "feature_dim": _length(state, "encoder_pt_1.0.bias"),
        "mlp_dim": _length(state, "mlp.0.bias"),
        "decoder": "big" if big else "small",
        "decoder_dim": None if first is None else first.shape[0],
        **({"decoder_stages": _count(state, "image_decoder.decode.") - 2} if big else {}),
    }


def emorl_options(state: State, flags: Flags) -> dict[str, Any]:
    """Options of `EfficientMORL`; K, image size, likelihood and curriculum are in no checkpoint.

    The small decoder is taken for Tetrominoes, with its settings; Multi-dSprites looks like CLEVR6.
    """
    del flags
    prefix = "hvae_networks."
    small = f"{prefix}image_decoder.decode.8.weight" not in state
    tetrominoes = {
        "likelihood": "gaussian",
        "std": 0.3,
        "final_refinements": 3,
        "objective": SoftplusGECO(goal=-1.224),
    }
    return {
        "latent_dim": _length(state, f"{prefix}init_posterior", 2, axis=-1),
        "feature_dim": _length(state, f"{prefix}encoder_pt_1.0.bias"),
        "decoder": "small" if small else "iodine",
        "decoder_dim": _length(state, f"{prefix}image_decoder.decode.0.bias"),
        **(tetrominoes if small else {}),
    }


def slot_attention_options(state: State, flags: Flags) -> dict[str, Any]:
    """Options of `SlotAttention` for the official one, by TensorFlow's names; see above."""
    del flags
    return {
        "implementation": "official",
        "slot_dim": _length(state, "slot_attention/slots_mu", axis=-1),
        "feature_dim": _length(state, "encoder_cnn/0/bias"),
        "mlp_dim": _length(state, "slot_attention/mlp/0/bias"),
        "decoder_dim": _length(state, "decoder_cnn/0/bias"),
        "decoder_stages": _count(state, "decoder_cnn/", "/") - 2,
    }


def _renamed(flags: Flags, names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: flags[name] for name, ours in names.items() if name in flags}


def _activation(flags: Flags) -> dict[str, Any]:
    if "pixel_bound" not in flags:
        return {}
    return {"component_activation": "sigmoid" if flags["pixel_bound"] else "linear"}


def _length(state: State, key: str, parts: int = 1, axis: int = 0) -> int | None:
    """Length of a parameter over a number of parts; None if it is not there: the key check will say so."""
    return state[key].shape[axis] // parts if key in state else None


def _count(keys: Iterable[str], prefix: str, separator: str = ".") -> int:
    """Number of modules in a list, by the keys below it."""
    return len({key.removeprefix(prefix).split(separator)[0] for key in keys if key.startswith(prefix)})


def _gated_size(state: State, key: str, sizes: Mapping[int, int] | None = None) -> int | None:
    """Side of the images, by the kernel that takes the whole map; that of 16 is for 64, 128 and 256 px."""
    if key not in state:
        return None
    return (sizes or {8: 32}).get(state[key].shape[-1])


def _unet_size(state: State, prefix: str) -> int | None:
    """Side of the images, by the UNet's number of blocks and the side of its bottleneck."""
    blocks = _count(state, prefix)
    last = f"{prefix}{blocks - 1}"
    width = _length(state, f"{last}.0.weight") or _length(state, f"{last}.conv.weight")
    features = state.get(f"{prefix.removesuffix('down.')}mlp.1.weight")
    if width is None or features is None:
        return None
    return math.isqrt(features.shape[1] // width) * 2 ** (blocks - 1)


def _slot_std(state: State) -> dict[str, Any]:
    """K, σ, and the σ of the first slot if that is another."""
    if "std" not in state:
        return {}
    std = [round(value, 7) for value in state["std"].flatten().tolist()]
    return {
        "num_slots": len(std),
        "std": std[-1],
        "background_std": std[0] if std[0] != std[-1] else None,
    }
