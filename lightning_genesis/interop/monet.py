"""Names of MONet's parameters in the authors' checkpoints."""

import re

MONET = (
    (r"att_process\.core\.final_conv\.", r"network.attention.logit."),
    # Before May 2021 the members of a block had names instead of numbers.
    (r"att_process\.core\.((?:down|up)\.\d+)\.conv\.", r"network.attention.unet.\1.0."),
    (r"att_process\.core\.((?:down|up)\.\d+)\.instance_norm\.", r"network.attention.unet.\1.1."),
    (r"att_process\.core\.((?:down|up)\.\d+\.[01]|mlp\.[135])\.", r"network.attention.unet.\1."),
    (r"comp_vae\.encoder_module\.module\.(0|2|4|6|9|11)\.", r"network.component_vae.encoder.\1."),
)
"""Official prefixes and ours. The decoder's indices also shift by one."""


def monet_key(key: str) -> str:
    """Our name of an official MONet parameter, under its present name or the one before May 2021.

    The official buffer `std` `[1, 1, 1, 1, K]` is no parameter here: its first entry is the option
    `background_std`, the others are `std`, and their number is `num_slots`.

    Raises:
        KeyError: if MONet has no such parameter.
    """
    decoder = re.match(r"comp_vae\.decoder_module\.seq\.([13579])\.", key)
    if decoder:
        return f"network.component_vae.decoder.layers.{int(decoder[1]) - 1}.{key[decoder.end() :]}"
    for pattern, ours in MONET:
        if re.match(pattern, key):
            return re.sub(pattern, ours, key, count=1)
    raise KeyError(f"{key!r} is no parameter of the official MONet")
