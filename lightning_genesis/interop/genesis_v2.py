"""Names of GENESIS-V2's parameters in the authors' checkpoints."""

import re

GENESIS_V2 = (
    (r"encoder\.", "network.backbone."),
    (r"att_process\.log_sigma", "network.colouring.log_sigma"),
    (r"att_process\.colour_head\.conv\.", "network.colouring.embedding."),
    (r"att_process\.colour_head\.gate\.gate", "network.colouring.gate"),
    (r"att_process\.colour_head\.", "network.colouring.embedding."),
    (r"seg_head\.", "network.attention_head."),
    (r"feat_head\.0\.", "network.feature_head."),
    (r"feat_head\.1\.", "network.feature_projection."),
    (r"z_head\.", "network.posterior_head."),
    (r"prior_lstm\.", "slot_prior.lstm."),
    (r"prior_linear\.", "slot_prior.linear."),
)
"""Official prefixes and ours; the first that matches counts. The decoder's indices also shift by one."""


def decoder_key(key: str, prefix: str) -> str | None:
    """Our name, within a decoder, of an official parameter below `prefix`; None if it is not there."""
    found = re.match(rf"{prefix}\.(\d+)\.(.+)", key)
    return found and f"layers.{int(found[1]) - 1}.{found[2]}"


def genesis_v2_key(key: str) -> str:
    """Our name of an official GENESIS-V2 parameter.

    Raises:
        KeyError: if GENESIS-V2 has no such parameter.
    """
    if (decoder := decoder_key(key, "decoder_module")) is not None:
        return f"network.decoder.{decoder}"
    for pattern, ours in GENESIS_V2:
        if re.match(pattern, key):
            return re.sub(pattern, ours, key, count=1)
    raise KeyError(f"{key!r} is no parameter of the official GENESIS-V2")
