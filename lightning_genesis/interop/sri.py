"""Names of SRI's parameters in the authors' checkpoints: GENESIS-V2's under a prefix, and its own."""

import re

from lightning_genesis.interop.genesis_v2 import decoder_key, genesis_v2_key

OWN = (
    (r"scene_encoder\.blocks\.(\d+)\.k\.", r"scene_encoder.blocks.\1.key."),
    (r"scene_encoder\.blocks\.(\d+)\.q\.", r"scene_encoder.blocks.\1.query."),
    (r"scene_encoder\.blocks\.(\d+)\.relational_v\.", r"scene_encoder.blocks.\1.value."),
    (r"scene_encoder\.blocks\.(\d+)\.norm_pre_ff\.", r"scene_encoder.blocks.\1.norm."),
    (r"scene_encoder\.blocks\.(\d+)\.mlp\.", r"scene_encoder.blocks.\1.mlp."),
    (r"scene_encoder\.project_to_scene_dim\.", "scene_encoder.projection."),
    (r"scene_encoder\.mu_s\.", "scene_encoder.mean."),
    (r"scene_encoder\.sp_s\.", "scene_encoder.raw_scale."),
    (r"(prior|posterior)_lstm\.scene_encoder\.", r"slot_\1.scene_projection."),
    (r"(prior|posterior)_lstm\.lstm\.", r"slot_\1.lstm."),
    (r"(prior|posterior)_lstm\.sp\.", r"slot_\1.raw_scale."),
    (r"prior_lstm\.mu\.", "slot_prior.mean."),
)
"""Official prefixes and ours; the first that matches counts."""


def sri_key(key: str) -> str:
    """Our name of an official SRI parameter.

    Raises:
        KeyError: if SRI has no such parameter.
    """
    if key.startswith("genesisv2.") and not re.match(r"genesisv2\.prior_", key):
        return f"segregation.{genesis_v2_key(key.removeprefix('genesisv2.'))}"
    if (decoder := decoder_key(key, "decoder")) is not None:
        return f"decoder.{decoder}"
    for pattern, ours in OWN:
        if re.match(pattern, key):
            return re.sub(pattern, ours, key, count=1)
    raise KeyError(f"{key!r} is no parameter of the official SRI")
