"""GECO that sets its own goal: SRI's rule of thumb, automated."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.objectives.geco import GECO

UNSET = -1e30
"""A goal that no error meets. Finite: the gate stops a run whose state is not."""


class SelfSettingGECO(GECO):
    """GECO whose goal is what the model reaches by itself under a small, fixed β, and a little more.

    For `warmup_steps` steps β is `warmup_beta`. Then every branch gets the goal

        goal = a + tolerance · abs(a),

    where a is its moving average of the error, and from there on it is `GECO`, which starts from the same β.
    Set by hand, a goal that cannot be reached drives β to zero for ever, and one that is too easy lets the KL
    win at once; SRI (Appendix A.4.2) tunes it until it is "reached after about 20% of the training steps",
    which is where `warmup_steps` belongs. In a short training the error still falls then, and a goal that is
    set by it is too easy: `flat_window` waits until it is flat. A plateau before the model has learned
    anything is flat too, and then the run fails (docs/findings.md); a late `warmup_steps` is safer. Not in
    any of the papers.

    The goals are part of the state, so that a resumed run keeps them. As in `GECO` the error is averaged over
    micro-batches and ranks, so that all ranks set the same goal.

    Args:
        warmup_steps: optimiser steps at a fixed β, about a fifth of the training.
        warmup_beta: that β.
        flat_window: after the warm-up, wait until the average falls by less than `tolerance · abs(a)` within
            so many steps, each branch for itself; None sets the goal at once.
        tolerance: share of the error's size by which the goal lies above it. Where the likelihood's constant
            makes errors pass through zero, give a `goal` to `GECO` instead.
        step_size: see `GECO`.
        smoothing: see `GECO`; also of the average that the goal is set by.
        speedup: see `GECO`.
        beta_min: see `GECO`.
        beta_max: see `GECO`.
    """

    goal_set: Tensor
    window_start: Tensor

    def __init__(
        self,
        warmup_steps: int = 100_000,
        warmup_beta: float = 0.01,
        tolerance: float = 0.02,
        step_size: float = 1e-5,
        smoothing: float = 0.99,
        speedup: float = 10.0,
        beta_min: float = 1e-10,
        beta_max: float = 1e10,
        flat_window: int | None = None,
    ) -> None:
        if flat_window is not None and flat_window < 1:
            raise ConfigurationError(f"flat_window={flat_window}: expected 1 or more steps, or null")
        if warmup_steps < 1:
            raise ConfigurationError(
                f"warmup_steps={warmup_steps}: expected 1 or more; the goal is set after them"
            )
        if not tolerance >= 0.0:
            raise ConfigurationError(f"tolerance={tolerance}: expected 0 or more")
        super().__init__(0.0, step_size, smoothing, speedup, warmup_beta, beta_min, beta_max)
        self.arguments = {
            "warmup_steps": warmup_steps,
            "warmup_beta": warmup_beta,
            "tolerance": tolerance,
            "step_size": step_size,
            "smoothing": smoothing,
            "speedup": speedup,
            "beta_min": beta_min,
            "beta_max": beta_max,
            "flat_window": flat_window,
        }
        self.warmup_steps, self.tolerance, self.flat_window = warmup_steps, tolerance, flat_window

    def bind(self, branches: Sequence[str]) -> None:
        """See `Objective.bind`."""
        super().bind(branches)
        self.register_buffer("goal_set", torch.full((len(self.branches),), UNSET))
        """Goal of every branch, nats per dimension; `UNSET`, which nothing meets, until it is set."""
        self.register_buffer("window_start", torch.zeros(len(self.branches)))
        """Average of every branch where the window began, nats per image."""

    def goals(self) -> Tensor:
        """See `GECO.goals`."""
        return self.goal_set

    def log_values(self) -> dict[str, Tensor]:
        """See `Objective.log_values`; until it is set, the goal is the one that would be set now."""
        values = super().log_values()
        for branch, goal in zip(self.branches, self._goal_now(), strict=True):
            key = f"geco/{branch}/goal"
            values[key] = torch.where(values[key] == UNSET, goal, values[key])
        return values

    def _goal_now(self) -> Tensor:
        return (self.average + self.tolerance * self.average.abs()) / self._num_dimensions

    @torch.no_grad()
    def update(self, finite: Tensor | None = None) -> None:
        """See `Objective.update`; goals are set at the end of the warm-up, or of a window that was flat."""
        before = self.step.clone()
        super().update(finite)
        since = self.step - self.warmup_steps
        due = (self.step > before) & (since == 0)
        if self.flat_window is not None:
            ends = (self.step > before) & (since >= 0) & (since % self.flat_window == 0)
            fallen = self.window_start - self.average
            due = ends & ~due & (fallen < self.tolerance * self.average.abs())
            self.window_start.copy_(torch.where(ends, self.average, self.window_start))
        due = due & (self.goal_set == UNSET)
        self.goal_set.copy_(torch.where(due, self._goal_now(), self.goal_set))

    def _moved(self, error: Tensor) -> tuple[Tensor, Tensor]:
        moved = self.smoothing * self.average + (1.0 - self.smoothing) * error
        average = torch.where(self.step == 0, error, moved)
        beta = self.next_beta(self.beta, average, self._num_dimensions)
        return average, torch.where(self.goal_set == UNSET, self.beta, beta)
