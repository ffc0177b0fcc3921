"""SRI's fixture (specification §13) and official parameter names (§14.1)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tests.reference import genesis_v2
from tests.reference.slot_attention import SineNoise


def official_keys(num_blocks: int = 5, num_layers: int = 3) -> list[str]:
    """All keys of an official SRI state dict, in registration order."""

    def pair(*stems: str) -> list[str]:
        return [f"{stem}.{part}" for stem in stems for part in ("weight", "bias")]

    def lstm(stem: str) -> list[str]:
        return [f"{stem}.{kind}_{part}_l0" for kind in ("weight", "bias") for part in ("ih", "hh")]

    keys = [f"genesisv2.{key}" for key in genesis_v2.official_keys(num_blocks, autoregressive=False)]
    for layer in range(num_layers):
        stem = f"scene_encoder.blocks.{layer}"
        keys += [f"{stem}.k.weight", f"{stem}.q.weight"]
        names = ("relational_v.0", "relational_v.2", "norm_pre_ff", "mlp.0", "mlp.2")
        keys += pair(*(f"{stem}.{name}" for name in names))
    keys += pair(*(f"scene_encoder.{name}" for name in ("project_to_scene_dim.0", "mu_s", "sp_s")))
    keys += [*pair("prior_lstm.scene_encoder.0"), *lstm("prior_lstm.lstm")]
    keys += pair("prior_lstm.sp", "prior_lstm.mu")
    keys += [*pair("posterior_lstm.scene_encoder.0"), *lstm("posterior_lstm.lstm")]
    keys += pair("posterior_lstm.sp")
    return keys + pair(*(f"decoder.{i}" for i in (1, 2, 4, 5, 7, 8, 10, 11, 13)))


def fixture_images(size: int, batch: int = 2) -> Tensor:
    """The fixture's images, in [0, 1]."""
    n = np.arange(batch * 3 * size * size).reshape(batch, 3, size, size)
    return torch.from_numpy((0.5 + 0.5 * np.sin(0.01 * n)).astype(np.float32))


class FixtureNoise(SineNoise):
    """A normal draw `[B, D]` is `sin(1.3 n + 0.5)`, times `scale`; K slots get equal ones, `[B, K, D]`."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        draw = self.scale * super().normal((shape[0], shape[-1]), like)
        return draw if len(shape) == 2 else draw.unsqueeze(1).expand(*shape)

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        n = np.arange(np.prod(shape)).reshape(shape)
        return torch.from_numpy((n * 0.6180339887498949 % 1.0).astype(np.float32)).to(like)
