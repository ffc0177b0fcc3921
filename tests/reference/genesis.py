"""Official parameter names of GENESIS and GENESIS-S."""

from tests.reference.monet import component_vae_keys

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def gated_keys(stem: str, norm: str, without: int) -> list[str]:
    """Keys of six gated layers, of which one has no normalisation."""
    entries = {"batch": BATCH_NORM, "instance": BATCH_NORM[:2], "none": ()}[norm]
    keys = []
    for i in range(6):
        keys += [f"{stem}.{i}.conv.weight", f"{stem}.{i}.conv.bias"]
        if i != without:
            keys += [f"{stem}.{i}.{part}.{entry}" for part in ("h_norm", "g_norm") for entry in entries]
    return keys


def weight_and_bias(*stems: str) -> list[str]:
    return [f"{stem}.{part}" for stem in stems for part in ("weight", "bias")]


def lstm_keys(stem: str) -> list[str]:
    return [f"{stem}.{kind}_{part}_l0" for kind in ("weight", "bias") for part in ("ih", "hh")]


def official_keys(
    two_stage: bool = True,
    symmetric: bool = False,
    component_prior: bool = True,
    autoregressive: bool = True,
    norm: str = "batch",
    one_slot: bool = False,
    buffers: bool = False,
) -> list[str]:
    """All keys of an official GENESIS(-S) state dict, in registration order; `std` only with `buffers`."""
    keys = ["std"] if buffers else []
    if not one_slot:
        core = "att_process.core"
        keys += gated_keys(f"{core}.q_z_nn", norm, without=5)
        keys += weight_and_bias(f"{core}.q_z_mean", f"{core}.q_z_var.0")
        keys += gated_keys(f"{core}.p_x_nn", norm, without=0)
        keys += weight_and_bias(f"{core}.p_x_mean")
        keys += [*lstm_keys("att_process.lstm"), *weight_and_bias("att_process.linear")]
    if not two_stage:
        keys += weight_and_bias(*(f"decoder.seq.{i}" for i in (1, 3, 5, 7, 9)))
    elif symmetric:
        keys += gated_keys("comp_vae.encoder_module.0", norm, without=5)
        keys += gated_keys("comp_vae.decoder_module.1", norm, without=0)
        keys += weight_and_bias("comp_vae.decoder_module.2")
    else:
        keys += component_vae_keys()
    if autoregressive and not one_slot:
        keys += [*lstm_keys("prior_lstm"), *weight_and_bias("prior_linear")]
    if component_prior and two_stage and not one_slot:
        keys += weight_and_bias("prior_mlp.0", "prior_mlp.2", "prior_mlp.4")
    return keys
