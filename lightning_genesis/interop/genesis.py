"""Names of the parameters of GENESIS and GENESIS-S in the authors' checkpoints."""

import re

MASKS, COMPONENTS = "network.mask_vae.", "network.component_vae."
GENESIS = (
    (r"att_process\.core\.q_z_nn\.([0-5])\.", rf"{MASKS}encoder.layers.\1."),
    (r"att_process\.core\.q_z_mean\.", f"{MASKS}mean_head."),
    (r"att_process\.core\.q_z_var\.0\.", f"{MASKS}scale_head."),
    (r"att_process\.core\.p_x_nn\.([0-5])\.", rf"{MASKS}decoder.layers.\1."),
    (r"att_process\.core\.p_x_mean\.", f"{MASKS}decoder.output."),
    (r"att_process\.lstm\.((?:weight|bias)_[ih]h)_l0$", rf"{MASKS}lstm.\1"),
    (r"att_process\.linear\.", f"{MASKS}linear."),
    (r"comp_vae\.encoder_module\.module\.(0|2|4|6|9|11)\.", rf"{COMPONENTS}encoder.\1."),
    # The symmetric component VAE.
    (r"comp_vae\.encoder_module\.0\.([0-5])\.", rf"{COMPONENTS}encoder.layers.\1."),
    (r"comp_vae\.decoder_module\.1\.([0-5])\.", rf"{COMPONENTS}decoder.layers.\1."),
    (r"comp_vae\.decoder_module\.2\.", f"{COMPONENTS}decoder.output."),
    (r"prior_lstm\.", "slot_prior.lstm."),
    (r"prior_linear\.", "slot_prior.linear."),
    (r"prior_mlp\.([024])\.", r"component_prior.\1."),
)
"""Official prefixes and ours. The indices of broadcast decoders also shift by one."""
BROADCAST = (
    (r"comp_vae\.decoder_module\.seq\.([13579])\.", f"{COMPONENTS}decoder.layers."),
    (r"decoder\.seq\.([13579])\.", "network.component_decoder.layers."),
)
"""Broadcast decoders of GENESIS and of GENESIS-S."""
LEGACY = r"(comp_vae\.decoder_module|decoder|vae\.p_x_nn\.1)\.seq\.0\.pixel_coords\.g_[12]$"
"""Coordinates in early checkpoints of GENESIS, GENESIS-S and the BD-VAE; they follow from the size."""


def gated_key(key: str) -> str:
    """Our name of a gated convolution's normalisation, if the key is one."""
    return key.replace(".h_norm.", ".value_norm.").replace(".g_norm.", ".gate_norm.")


def genesis_key(key: str) -> str:
    """Our name of an official parameter or buffer of GENESIS or GENESIS-S.

    The official buffer `std` `[1, 1, 1, 1, K]` is no parameter here: its value is the option `std`, its
    length `num_slots`. Entries that match `LEGACY` have no counterpart either.

    Raises:
        KeyError: if neither model has such a parameter.
    """
    for pattern, ours in BROADCAST:
        decoder = re.match(pattern, key)
        if decoder:
            return f"{ours}{int(decoder[1]) - 1}.{key[decoder.end() :]}"
    for pattern, ours in GENESIS:
        if re.match(pattern, key):
            return gated_key(re.sub(pattern, ours, key, count=1))
    raise KeyError(f"{key!r} is no parameter of the official GENESIS or GENESIS-S")
