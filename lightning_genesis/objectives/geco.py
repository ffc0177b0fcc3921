"""GECO, the constrained objective of Rezende and Viola (2018), as GENESIS and its successors use it."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lightning_genesis.bounds import check_number
from lightning_genesis.objectives.base import Objective
from lightning_genesis.scene import Terms

REFERENCE_DIMENSIONS = 3 * 64 * 64
"""Image size for which `step_size` is stated."""


class GECO(Objective):
    """Minimises the KL under the constraint that the reconstruction error reaches a goal.

    The loss is `nll + β KL`. After each optimiser step, with the moving average `a` of the error,

        a ← error at the first step, else smoothing · a + (1 - smoothing) · error
        c = goal - a
        β ← clamp(β · exp(step_size · c · (speedup if c > 0 else 1)), beta_min, beta_max),

    so β falls while the error is above the goal and rises, faster, below it (GENESIS, Appendix B.4).
    Every branch of a model has a β and an average of its own.

    Where code and paper differ: the step size is scaled with the resolution by `64² / S²`, β has an upper
    bound, and the first term of the loss is the error of the batch, not its average. Where we differ from
    the published code: the error is averaged over micro-batches and ranks before the update, and a
    checkpoint holds β after its update.

    Args:
        goal: error to reach, in nats per dimension (pixel and channel).
        step_size: step of log β per nat, for images of 64x64.
        smoothing: of the moving average.
        speedup: factor on the step while the constraint is met.
        beta: initial β.
        beta_min: lower bound of β.
        beta_max: upper bound of β.

    Raises:
        ConfigurationError: if one of them is not finite, negative (`goal` may be), or β is out of its bounds.
    """

    beta: Tensor
    average: Tensor
    step: Tensor

    def __init__(
        self,
        goal: float = 0.5655,
        step_size: float = 1e-5,
        smoothing: float = 0.99,
        speedup: float = 10.0,
        beta: float = 1.0,
        beta_min: float = 1e-10,
        beta_max: float = 1e10,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_number(f"{name}: goal", goal)
        check_number(f"{name}: step_size", step_size, 0.0)
        check_number(f"{name}: smoothing", smoothing, 0.0, 1.0)
        check_number(f"{name}: speedup", speedup, 0.0)
        check_number(f"{name}: beta_min", beta_min, 0.0)
        check_number(f"{name}: beta_max", beta_max, beta_min)
        check_number(f"{name}: beta", beta, beta_min, beta_max)
        self.arguments = {
            "goal": goal,
            "step_size": step_size,
            "smoothing": smoothing,
            "speedup": speedup,
            "beta": beta,
            "beta_min": beta_min,
            "beta_max": beta_max,
        }
        self.goal, self.step_size, self.smoothing, self.speedup = goal, step_size, smoothing, speedup
        self.initial_beta, self.beta_min, self.beta_max = beta, beta_min, beta_max
        self._num_dimensions = REFERENCE_DIMENSIONS
        self._error: Tensor | None = None  # sum over the micro-batches since the last update
        self._micro_batches = 0
        self._is_shared = False  # the sum is a mean over ranks already

    def bind(self, branches: Sequence[str]) -> None:
        """See `Objective.bind`."""
        super().bind(branches)
        self.register_buffer("beta", torch.full((len(self.branches),), float(self.initial_beta)))
        self.register_buffer("average", torch.zeros(len(self.branches)))
        self.register_buffer("step", torch.zeros(()))

    def forward(self, terms: dict[str, Terms], num_dimensions: int) -> Tensor:
        """See `Objective.forward`. In training the error is kept for `update`."""
        self._remember(terms, num_dimensions)
        return self.weighted_sum(terms, 1.0, self.beta)

    def _remember(self, terms: dict[str, Terms], num_dimensions: int) -> None:
        if self.training:
            self._num_dimensions = num_dimensions
            error = self.means(terms).values[: len(terms)].detach()
            self._error = error if self._error is None else self._error + error
            self._micro_batches += 1

    def share(self, errors: Tensor) -> None:
        """See `Objective.share`."""
        self._error, self._is_shared = errors, True

    def weights(self) -> Tensor:
        """See `Objective.weights`."""
        return torch.stack([torch.ones_like(self.beta), self.beta])

    def restart(self) -> None:
        """See `Objective.restart`."""
        self._error, self._micro_batches, self._is_shared = None, 0, False

    @torch.no_grad()
    def update(self, finite: Tensor | None = None) -> None:
        """See `Objective.update`. Nothing here waits for the device."""
        if self._error is None:
            return
        error = self._error
        if not self._is_shared and dist.is_available() and dist.is_initialized():
            error = error.clone()
            dist.all_reduce(error)
            error = error / dist.get_world_size()
        if self._micro_batches > 1:
            error = error / self._micro_batches
        self.restart()
        average, beta = self._moved(error)
        if finite is None:  # a checkpoint never holds a state that is not finite
            finite = torch.isfinite(average + beta).all()
        torch.where(finite, beta, self.beta, out=self.beta)
        torch.where(finite, average, self.average, out=self.average)
        self.step.add_(finite)

    def _moved(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """Average and β after a step with this error, one entry per branch."""
        # 0 in the first step, so that the average starts as the error
        average = torch.lerp(error, self.average, self.step.clamp(max=self.smoothing))
        return average, self.next_beta(self.beta, average, self._num_dimensions)

    def next_beta(self, beta: Tensor, average: Tensor, num_dimensions: int) -> Tensor:
        """β after its update, by an average of the error that has moved already; one entry per branch."""
        rate = self.step_size * REFERENCE_DIMENSIONS / num_dimensions
        exponent = self._speeded(rate, average, num_dimensions)
        return (beta * exponent.exp()).clamp(self.beta_min, self.beta_max)

    def _speeded(self, rate: float, average: Tensor, num_dimensions: int) -> Tensor:
        """`rate` times the constraint, and times the speedup where it is met."""
        if not self.speedup:
            return rate * (self.goals() * num_dimensions - average).clamp(max=0.0)
        rate *= self.speedup
        constraint = torch.rsub(average, rate * self.goals() * num_dimensions, alpha=rate)
        # the same as a choice between the two, in one kernel
        return F.leaky_relu(constraint, 1.0 / self.speedup)

    def goals(self) -> Tensor | float:
        """Goal of every branch, nats per dimension, `[branches]` or one for all."""
        return self.goal

    def goal_met(self, num_dimensions: int) -> Tensor:
        """See `Objective.goal_met`; by the moving average, so never before the first step."""
        return (self.step > 0) & (self.average <= self.goals() * num_dimensions)

    def log_values(self) -> dict[str, Tensor]:
        """β, the error average and the goal of every branch, the latter two per dimension."""
        values: dict[str, Tensor] = {}
        goals = torch.zeros_like(self.average) + self.goals()
        states = zip(self.branches, self.beta, self.average, goals, strict=True)
        for branch, beta, average, goal in states:
            values[f"geco/{branch}/beta"] = beta
            values[f"geco/{branch}/nll_average"] = average / self._num_dimensions
            values[f"geco/{branch}/goal"] = goal
        return values
