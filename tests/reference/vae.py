"""Official parameter names of the DC-VAE and the BD-VAE."""

from tests.reference.genesis import gated_keys, weight_and_bias


def official_keys(decoder: str) -> list[str]:
    """All keys of an official state dict, in registration order; `decoder` as in our `VAE`."""
    keys = gated_keys("vae.q_z_nn", "none", without=5)
    keys += weight_and_bias("vae.q_z_mean", "vae.q_z_var.0")
    if decoder == "deconv":
        keys += gated_keys("vae.p_x_nn", "none", without=0)
    else:
        keys += weight_and_bias(*(f"vae.p_x_nn.1.seq.{i}" for i in (1, 3, 5, 7, 9)))
    return [*keys, *weight_and_bias("vae.p_x_mean")]
