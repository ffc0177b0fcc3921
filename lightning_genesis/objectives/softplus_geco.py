"""GECO as EfficientMORL uses it: a multiplier on the reconstruction, not on the KL."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_genesis.objectives.base import weighted_means
from lightning_genesis.objectives.geco import GECO
from lightning_genesis.scene import Terms


class SoftplusGECO(GECO):
    """Minimises the KL under the constraint that the reconstruction error reaches a goal (EfficientMORL).

    The loss is `nll + KL` for `warmup_steps` steps. From then on its value is `KL - softplus(β) c` and its
    gradient that of `softplus(β) nll + KL`, where c is the moving average of `goal - nll`. After each step

        c ← goal - nll at the first step, else smoothing · c + (1 - smoothing) · (goal - nll)
        β ← max(initial β, β - step_size · c · (speedup if c > 0 else 1)),

    so the weight of the error rises while it is above the goal and falls, faster, below it. In the first of
    these steps c is 0, and β stays. A refinement that counts as an earlier step adds to the loss with its own
    weight and the same β and c; the constraint is that of the last one.

    The step size is not scaled with the resolution. As in `GECO`, the error is averaged over micro-batches
    and ranks. What is kept is the average of the error, from which c follows.

    Args:
        goal: error to reach, in nats per dimension (pixel and channel).
        step_size: step of β per nat.
        smoothing: of the moving average.
        speedup: factor on the step while the constraint is met.
        beta: initial β and its lower bound; the published 0.55 gives a weight of 1.0055.
        warmup_steps: optimiser steps with the plain loss.
    """

    def __init__(
        self,
        goal: float = -2.206,
        step_size: float = 1e-6,
        smoothing: float = 0.99,
        speedup: float = 1.0,
        beta: float = 0.55,
        warmup_steps: int = 1000,
    ) -> None:
        super().__init__(goal, step_size, smoothing, speedup, beta, beta_min=beta)
        self.arguments = {
            "goal": goal,
            "step_size": step_size,
            "smoothing": smoothing,
            "speedup": speedup,
            "beta": beta,
            "warmup_steps": warmup_steps,
        }
        self.warmup_steps = warmup_steps

    def forward(self, terms: dict[str, Terms], num_dimensions: int) -> Tensor:
        """See `Objective.forward`."""
        self._remember(terms, num_dimensions)
        nll, kl = weighted_means(terms)
        error_weight = self.weights()[0]
        loss = error_weight * nll + kl
        with torch.no_grad():
            constraint = self.goal * num_dimensions - self.average
            constraint = torch.where(self.step > self.warmup_steps, constraint, torch.zeros_like(constraint))
            count = [sum(step.weight for step in (*term.steps, term)) for term in terms.values()]
            constraint = torch.stack([w * c for w, c in zip(count, constraint, strict=True)])
            value = torch.where(self.step >= self.warmup_steps, kl - error_weight * constraint, loss)
        return (value + (loss - loss.detach())).sum()  # the value of one, the gradient of the other

    def weights(self) -> Tensor:
        """See `Objective.weights`."""
        one = torch.ones_like(self.beta)
        return torch.stack([torch.where(self.step >= self.warmup_steps, F.softplus(self.beta), one), one])

    def _moved(self, error: Tensor) -> tuple[Tensor, Tensor]:
        started = self.step > self.warmup_steps
        moved = self.smoothing * self.average + (1.0 - self.smoothing) * error
        average = torch.where(started, moved, error)
        beta = self.next_beta(self.beta, average, self._num_dimensions)
        return average, torch.where(started, beta, self.beta)

    def next_beta(self, beta: Tensor, average: Tensor, num_dimensions: int) -> Tensor:
        """See `GECO.next_beta`."""
        constraint = self.goal * num_dimensions - average
        change = self.step_size * torch.where(constraint > 0, self.speedup * constraint, constraint)
        return (beta - change).clamp_min(self.beta_min)
