"""Names of the parameters of the DC-VAE and the BD-VAE in the authors' checkpoints."""

import re

VAE = (
    (r"vae\.q_z_nn\.([0-5])\.", r"network.encoder.layers.\1."),
    (r"vae\.q_z_mean\.", "network.mean_head."),
    (r"vae\.q_z_var\.0\.", "network.scale_head."),
    (r"vae\.p_x_nn\.([0-5])\.conv\.", r"network.decoder.layers.\1.conv."),
    (r"vae\.p_x_mean\.", "network.decoder.output."),
)
"""Official prefixes and ours. The indices of the BD-VAE's decoder also shift by one."""


def vae_key(key: str) -> str:
    """Our name of an official parameter of the DC-VAE or the BD-VAE.

    Coordinates in early checkpoints of the BD-VAE (`interop.genesis.LEGACY`) have no counterpart.

    Raises:
        KeyError: if neither model has such a parameter.
    """
    decoder = re.match(r"vae\.p_x_nn\.1\.seq\.([13579])\.", key)
    if decoder:
        return f"network.decoder.broadcast.layers.{int(decoder[1]) - 1}.{key[decoder.end() :]}"
    for pattern, ours in VAE:
        if re.match(pattern, key):
            return re.sub(pattern, ours, key, count=1)
    raise KeyError(f"{key!r} is no parameter of the official DC-VAE or BD-VAE")
