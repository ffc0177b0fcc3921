"""A fixed weight of the divergences, the β-VAE objective."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_genesis.bounds import check_number
from lightning_genesis.objectives.base import Objective
from lightning_genesis.scene import Terms


class FixedBeta(Objective):
    """`nll + β KL`, where β may rise linearly from 0 at the start.

    Args:
        beta: weight of the divergences.
        warmup_steps: optimiser steps over which it rises.

    Raises:
        ConfigurationError: if one of them is negative or not finite.
    """

    step: Tensor

    def __init__(self, beta: float = 1.0, warmup_steps: int = 0) -> None:
        super().__init__()
        check_number("FixedBeta: beta", beta, 0.0)
        check_number("FixedBeta: warmup_steps", warmup_steps, 0, whole=True)
        self.arguments = {"beta": beta, "warmup_steps": warmup_steps}
        self.final_beta, self.warmup_steps = beta, warmup_steps
        self.register_buffer("step", torch.zeros(()))

    def bind(self, branches: Sequence[str]) -> None:
        """See `Objective.bind`."""
        super().bind(branches)

    @property
    def beta(self) -> Tensor:
        """The weight at this step, a scalar."""
        if self.warmup_steps == 0:
            return torch.full_like(self.step, self.final_beta)
        return self.final_beta * (self.step / self.warmup_steps).clamp(max=1.0)

    def forward(self, terms: dict[str, Terms], num_dimensions: int) -> Tensor:
        """See `Objective.forward`."""
        del num_dimensions
        beta = self.beta.expand(len(terms)) if self.warmup_steps else self.final_beta
        return self.weighted_sum(terms, 1.0, beta)

    def weights(self) -> Tensor:
        """See `Objective.weights`."""
        beta = self.beta.expand(len(self.branches))
        return torch.stack([torch.ones_like(beta), beta])

    @torch.no_grad()
    def update(self, finite: Tensor | None = None) -> None:
        """Counts the step."""
        self.step.add_(1.0 if finite is None else finite.to(self.step))

    def log_values(self) -> dict[str, Tensor]:
        """The weight, under the name of GECO's."""
        return {f"geco/{branch}/beta": self.beta for branch in self.branches}
