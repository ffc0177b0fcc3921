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
        "latent_dim": _length(state, "z_head.3.bias", 2),
        **_genesis_v2_widths(state),
    }
    names = {
        "kernel": "kernel",
        "pixel_std1": "std",
        "dynamic_K": "flexible_slots",
        "klm_loss": "mask_consistency",
        "detach_mr_in_klm": "detach_decoded_masks",
    }
    return options | _renamed(flags, names) | _activation(flags)


def _genesis_v2_widths(state: State) -> dict[str, Any]:
    """Widths of the parts, where they are not those of the heads.

    The published code caps backbone and late stages of the decoder at 64 channels.

    Raises:
        ConfigurationError: if the heads do not fit the backbone, as the published ones above 64 channels.
    """
    width, backbone = _length(state, "seg_head.0.weight"), _length(state, "encoder.down.0.0.weight")
    taken = _length(state, "seg_head.0.weight", axis=1)
    if backbone is not None and taken is not None and backbone != taken:
        raise ConfigurationError(
            f"the backbone gives {backbone} channels and seg_head.0.weight takes {taken}; no model runs so, "
            "the published one neither, whose feat_dim is at most 64"
        )
    stages = sorted(
        int(found[1]) for key in state if (found := re.fullmatch(r"decoder_module\.(\d+)\.weight", key))
    )[:-1:2]  # each is a convolution and its normalisation; the last convolution is the output
    decoder = [length for i in stages if (length := _length(state, f"decoder_module.{i}.weight", axis=1))]
    return {
        "feature_dim": width,
        "backbone_dim": None if backbone == width else backbone,
        "decoder_stages": None if len(decoder) in (0, 4) else len(decoder),  # 4 are published
        "decoder_dims": None if set(decoder) <= {width} else decoder,
        "prior_dim": _length(state, "prior_lstm.weight_hh_l0", axis=1),
    }


def sri_options(state: State, flags: Flags) -> dict[str, Any]:
    """Options of `SRI` on GENESIS-V2. K, likelihood and σ are in no parameter."""
    prefix = "genesisv2."
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    options = genesis_v2_options(part, flags)
    encoder = {
        name: options[name]
        for name in (
            "semi_convolutional",
            "feature_dim",
            "backbone_dim",
            "decoder_dims",
            "decoder_stages",
            "latent_dim",
            "kernel",
        )
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
        options["image_size"] = _component_size(state)
        options["component_dim"] = _length(state, "comp_vae.encoder_module.module.11.bias", 2)
    else:
        options["image_size"] = _gated_size(state, "att_process.core.q_z_nn.5.conv.weight")
    if any(key.startswith("att_process.") for key in state):  # with one slot none of these is there
        options["mask_dim"] = _length(state, "att_process.core.q_z_mean.bias")
        options["autoregressive_prior"] = "prior_lstm.weight_ih_l0" in state
        running = "att_process.core.q_z_nn.0.h_norm.running_mean" in state
        options["norm"] = "batch" if running else "instance"
        if two_stage:
            options["component_prior"] = "prior_mlp.0.weight" in state
    width = _length(state, "att_process.core.q_z_nn.0.conv.bias", 2)
    if symmetric and width is None:
        width = _length(state, "comp_vae.encoder_module.0.0.conv.bias", 2)
    options["prior_dim"] = _length(state, "prior_lstm.weight_hh_l0", axis=1)
    return options | _component_widths(state, width) | _activation(flags)


def _component_size(state: State) -> int | None:
    """Side of the images, by what the component VAE's convolutions leave of it, a sixteenth."""
    width = _length(state, "comp_vae.encoder_module.module.6.bias")
    features = _length(state, "comp_vae.encoder_module.module.9.weight", axis=1)
    return None if not width or not features else 16 * math.isqrt(features // width)


def _component_widths(state: State, width: int | None) -> dict[str, Any]:
    """Channels of the outer convolutions, and those of the component VAE's two parts where they are others.

    Args:
        state: official parameters.
        width: of the part that makes the masks; None if there is none.
    """
    encoder = _length(state, "comp_vae.encoder_module.module.0.bias")
    decoder = _length(state, "comp_vae.decoder_module.seq.1.bias") or _length(state, "decoder.seq.1.bias")
    width = width or encoder
    return {
        "feature_dim": width,
        "encoder_dim": None if encoder == width else encoder,
        "decoder_dim": None if decoder == width else decoder,
    }


def monet_options(state: State, flags: Flags) -> dict[str, Any]:
    """Options of `MONet`; K and both σ are in the buffer `std`."""
    options: dict[str, Any] = {"image_size": _unet_size(state, "att_process.core.down."), **_slot_std(state)}
    options["image_size"] = options["image_size"] or _component_size(state)  # with one slot
    first = ("att_process.core.down.0.0.weight", "att_process.core.down.0.conv.weight")
    width = next((state[key].shape[0] for key in first if key in state), None)
    if options.get("num_slots") != 1:
        options |= _component_widths(state, width)
    else:
        options |= _component_widths(state, None)
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
    return {
        "implementation": "emorl",
        "slot_dim": _length(state, "init_slots", 2, axis=1),
        "feature_dim": _length(state, "encoder_pt_1.0.bias"),
        "mlp_dim": _length(state, "mlp.0.bias"),
        **_slot_decoder(state, "image_decoder.decode."),
    }


def _slot_decoder(state: State, prefix: str) -> dict[str, Any]:
    """Kind, width and stages of a decoder of EMORL's repository, told by the shapes of its kernels."""
    layers = _count(state, prefix)
    first, last = (state.get(f"{prefix}{2 * layer}.weight") for layer in (0, layers - 1))
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        return {}
    width = _length(state, f"{prefix}0.bias")
    if first.shape[-1] == 3:
        return {"decoder": "iodine", "decoder_dim": width}
    if last.shape[1] == 4 and last.shape[0] == width:  # a transposed convolution: inputs come first
        return {"decoder": "big", "decoder_dim": width, "decoder_stages": layers - 2}
    return {"decoder": "small", "decoder_dim": width}


def emorl_options(state: State, flags: Flags) -> dict[str, Any]:
    """Options of `EfficientMORL`; K, image size, likelihood and curriculum are in no checkpoint.

    The small decoder is taken for Tetrominoes, with its settings; Multi-dSprites looks like CLEVR6. Nor is
    the number of layers, which share their parameters, except that without a prior between them it is 1.
    """
    del flags
    prefix = "hvae_networks."
    decoder = _slot_decoder(state, f"{prefix}image_decoder.decode.")
    tetrominoes = {
        "likelihood": "gaussian",
        "std": 0.3,
        "final_refinements": 3,
        "objective": SoftplusGECO(goal=-1.224),
    }
    return {
        "latent_dim": _length(state, f"{prefix}init_posterior", 2, axis=-1),
        "feature_dim": _length(state, f"{prefix}encoder_pt_1.0.bias"),
        "num_layers": None if any(key.startswith(f"{prefix}indep_prior.") for key in state) else 1,
        **decoder,
        **(tetrominoes if decoder.get("decoder") == "small" else {}),
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
