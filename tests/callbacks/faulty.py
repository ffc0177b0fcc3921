"""A model that breaks where and when a test says, and pictures to train it on."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_genesis.models import GenesisV2
from lightning_genesis.scene import Scene, Terms

Fault = tuple[str, float]
"""Place ("nll", "kl", "gradient", or a buffer of the objective), and the value that it gets there."""


class Images(Dataset[dict[str, Tensor]]):
    """Random pictures; the one at `bad_index` has a NaN."""

    def __init__(self, bad_index: int | None = None, size: int = 20) -> None:
        self.bad_index, self.size = bad_index, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        if index == self.bad_index:
            image[1, 2, 3] = float("nan")
        return {"image": image, "index": torch.tensor(index)}


class Faulty(GenesisV2):
    """A narrow GENESIS-V2 whose `faults`, by optimiser step, appear on one rank or on all."""

    def __init__(self, faults: Mapping[int, Fault] | None = None, rank: int | None = None, **options: Any):
        torch.manual_seed(0)
        super().__init__(2, 32, latent_dim=8, feature_dim=8, **options)
        self.faults, self.rank = dict(faults or {}), rank

    def _value(self, *places: str) -> float | None:
        place, value = self.faults.get(self.global_step, ("none", 0.0))
        return value if place in places and self.rank in (None, self.global_rank) else None

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        terms = super().loss_terms(scene, images)["genesis_v2"]
        if (value := self._value("nll")) is not None:
            terms = Terms(terms.nll * value, terms.kl)
        if (value := self._value("kl")) is not None:
            terms = Terms(terms.nll, {"latent": terms.kl["latent"] + value})
        for name, buffer in self.objective.named_buffers():
            if (value := self._value(name)) is not None:
                buffer.fill_(value)
        return {"genesis_v2": terms}

    def on_after_backward(self) -> None:
        if (value := self._value("gradient")) is not None:
            gradient = self.network.posterior_head[1].weight.grad
            assert isinstance(gradient, Tensor)
            gradient[0, 0] = value
