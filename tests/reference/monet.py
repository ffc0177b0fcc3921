"""Official parameter names of MONet, and the order of the published slot VAEs' draws."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tests.reference import FixtureNoise


def official_keys(num_blocks: int = 5, buffers: bool = False) -> list[str]:
    """All keys of an official MONet state dict, in registration order."""
    keys = ["std"] if buffers else []
    for side in ("down", "up"):
        for block in range(num_blocks):
            stem = f"att_process.core.{side}.{block}"
            keys += [f"{stem}.0.weight", f"{stem}.1.weight", f"{stem}.1.bias"]
    keys += [f"att_process.core.mlp.{i}.{part}" for i in (1, 3, 5) for part in ("weight", "bias")]
    keys += ["att_process.core.final_conv.weight", "att_process.core.final_conv.bias"]
    keys += component_vae_keys()
    return keys


def component_vae_keys() -> list[str]:
    """Keys of the component VAE that MONet and GENESIS share."""
    encoder = [f"comp_vae.encoder_module.module.{i}" for i in (0, 2, 4, 6, 9, 11)]
    decoder = [f"comp_vae.decoder_module.seq.{i}" for i in (1, 3, 5, 7, 9)]
    return [f"{stem}.{part}" for stem in (*encoder, *decoder) for part in ("weight", "bias")]


def legacy_key(key: str) -> str:
    """The name that a key had before May 2021."""
    parts = key.split(".")
    if parts[2:3] == ["down"] or parts[2:3] == ["up"]:
        parts[4] = {"0": "conv", "1": "instance_norm"}[parts[4]]
    return ".".join(parts)


class SlotMajorNoise(FixtureNoise):
    """All slots come from one draw `[K B, D]` in which row `k B + b` is slot k of image b."""

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """A draw `[B, K, D]`."""
        batch, num_slots, size = shape
        draw = np.random.RandomState(1000 + self.count).standard_normal((num_slots * self.batch, size))
        self.count += 1
        return (
            torch.from_numpy(draw).to(like).unflatten(0, (num_slots, self.batch))[:, :batch].transpose(0, 1)
        )
