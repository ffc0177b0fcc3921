"""GECO as EfficientMORL uses it: a multiplier on the reconstruction, not on the KL."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_genesis.bounds import check_number
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

    Raises:
        ConfigurationError: as of `GECO`.
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
        check_number("SoftplusGECO: warmup_steps", warmup_steps, 0, whole=True)
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
        error_weight = self._error_weight()
        loss = self.weighted_sum(terms, error_weight, 1.0)
        with torch.no_grad():
            counts = self._constant(self.means(terms), False).sum(dim=0)  # a step counts with its weight
            constraint = (self.goal * num_dimensions - self.average) * (self.step > self.warmup_steps)
            value = self.weighted_sum(terms, 0.0, 1.0) - torch.dot(error_weight, counts * constraint)
            value = torch.where(self.step >= self.warmup_steps, value, loss)
        return value + (loss - loss.detach())  # the value of one, the gradient of the other

    def _error_weight(self) -> Tensor:
        return torch.where(self.step >= self.warmup_steps, F.softplus(self.beta), torch.ones_like(self.beta))

    def weights(self) -> Tensor:
        """See `Objective.weights`."""
        return torch.stack([self._error_weight(), torch.ones_like(self.beta)])

    def _moved(self, error: Tensor) -> tuple[Tensor, Tensor]:
        started = self.step > self.warmup_steps
        average = torch.where(started, torch.lerp(error, self.average, self.smoothing), error)
        beta = self.next_beta(self.beta, average, self._num_dimensions)
        return average, torch.where(started, beta, self.beta)

    def next_beta(self, beta: Tensor, average: Tensor, num_dimensions: int) -> Tensor:
        """See `GECO.next_beta`."""
        change = self._speeded(self.step_size, average, num_dimensions)
        return (beta - change).clamp_min(self.beta_min)
