"""Official parameter names of GENESIS-V2."""


def official_keys(
    num_blocks: int = 5, semi_convolutional: bool = True, autoregressive: bool = True
) -> list[str]:
    """All keys of an official GENESIS-V2 state dict, in registration order."""
    keys = []
    for side in ("down", "up"):
        for block in range(num_blocks):
            stem = f"encoder.{side}.{block}"
            keys += [f"{stem}.0.weight", f"{stem}.1.weight", f"{stem}.1.bias"]
    keys += [f"encoder.mlp.{i}.{part}" for i in (1, 3, 5) for part in ("weight", "bias")]
    keys.append("att_process.log_sigma")
    if semi_convolutional:
        keys += ["att_process.colour_head.conv.weight", "att_process.colour_head.conv.bias"]
        keys.append("att_process.colour_head.gate.gate")
    else:
        keys += ["att_process.colour_head.weight", "att_process.colour_head.bias"]
    keys += ["seg_head.0.weight", "seg_head.1.weight", "seg_head.1.bias"]
    keys += ["feat_head.0.0.weight", "feat_head.0.1.weight", "feat_head.0.1.bias"]
    keys += ["feat_head.1.weight", "feat_head.1.bias"]
    keys += [f"z_head.{i}.{part}" for i in (0, 1, 3) for part in ("weight", "bias")]
    keys += [
        f"decoder_module.{i}.{part}" for i in (1, 2, 4, 5, 7, 8, 10, 11, 13) for part in ("weight", "bias")
    ]
    if autoregressive:
        keys += [f"prior_lstm.{kind}_{part}_l0" for kind in ("weight", "bias") for part in ("ih", "hh")]
        keys += ["prior_linear.weight", "prior_linear.bias"]
    return keys
