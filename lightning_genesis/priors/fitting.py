"""Fits a prior to slots: closed forms at once, networks by Adam with an average of their weights."""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lightning_genesis.errors import ConfigurationError, NonFiniteError
from lightning_genesis.priors.base import SetPrior, normal

HELD_OUT = 0.1
"""Share of the sets that training does not see, by which it is watched."""
REPORTS = 20
"""Times that progress is told."""


@dataclass(frozen=True)
class FitOptions:
    """How a prior is trained.

    Args:
        steps: optimiser steps; the learning rate rises over the first 5 % and falls to 0 by a cosine.
        batch_size: sets in a step.
        learning_rate: of Adam.
        average: decay of the average of the weights, which is what is kept; smaller over the first steps, so
            that the initial values are soon forgotten.
        seed: of initial values, batches and noise.
    """

    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 1e-3
    average: float = 0.998
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "batch_size": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ConfigurationError(f"--{name} {getattr(self, name)}, expected {least} or more")
        if not 0.0 < self.learning_rate < float("inf"):
            raise ConfigurationError(f"--learning_rate {self.learning_rate}, expected more than 0")
        if not 0.0 <= self.average < 1.0:
            raise ConfigurationError(f"--average {self.average}, expected 0 or more and less than 1")

    def rate(self, step: int) -> float:
        """Factor on the learning rate at a step, from 0."""
        warm = max(1, self.steps // 20)
        return min(1.0, (step + 1) / warm) * 0.5 * (1.0 + cos(pi * step / self.steps))


Progress = Callable[[int, float, float], None]
"""Told the step, the training loss and that of the sets that are held out."""


def fit_prior(
    make: Callable[[], SetPrior],
    sets: Tensor,
    options: FitOptions | None = None,
    *,
    scales: Tensor | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[SetPrior, dict[str, float]]:
    """A prior fitted to slots.

    Args:
        make: makes the untrained prior.
        sets: posterior means `[N, K, D]` with `scales`, else the slots themselves.
        options: of the training.
        scales: standard deviations of the posterior `[N, K, D]`: a new sample is drawn whenever a set is
            seen.
        device: to train on.
        progress: is told how it goes.

    Returns:
        the prior in evaluation mode on the CPU; and its losses: `train_loss` of the last steps and
        `held_out_loss` by the averaged weights, empty for a closed form.

    Raises:
        ConfigurationError: if there are too few sets.
        NonFiniteError: if the loss is not finite.
    """
    options = options or FitOptions()
    if len(sets) < 2:
        raise ConfigurationError(f"{len(sets)} scenes to fit a prior to, expected 2 or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        prior = make().to(device)
    generator = torch.Generator().manual_seed(options.seed)
    sets = sets.to(device)
    scales = None if scales is None else scales.to(device)
    held = int(HELD_OUT * len(sets)) if prior.learned else 0
    order = torch.randperm(len(sets), generator=generator).to(device)

    def some(indices: Tensor, generator: torch.Generator) -> Tensor:
        found = sets[indices]
        return found if scales is None else found + scales[indices] * normal(found, generator)

    prior.start(some(order[held:], generator))
    if not prior.learned:
        return prior.eval().cpu(), {}
    with torch.enable_grad():
        return _train(prior, some, order[:held], order[held:], options, generator, progress)


def _train(
    prior: SetPrior,
    some: Callable[[Tensor, torch.Generator], Tensor],
    held: Tensor,
    seen: Tensor,
    options: FitOptions,
    generator: torch.Generator,
    progress: Progress | None,
) -> tuple[SetPrior, dict[str, float]]:
    averaged = AveragedModel(prior, multi_avg_fn=_averaging(options.average))
    optimizer = torch.optim.Adam(prior.parameters(), lr=options.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, options.rate)
    average = cast(SetPrior, averaged.module)
    every = max(1, options.steps // REPORTS)
    total, queue = torch.zeros((), device=seen.device), seen[:0]
    losses: dict[str, float] = {}
    for step in range(options.steps):
        while len(queue) < min(options.batch_size, len(seen)):
            queue = torch.cat([queue, seen[torch.randperm(len(seen), generator=generator).to(seen.device)]])
        batch, queue = queue[: options.batch_size], queue[options.batch_size :]
        loss = prior.loss(some(batch, generator), generator).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(prior)
        total += loss.detach()
        if (step + 1) % every == 0 or step + 1 == options.steps:
            count = (step + 1) % every or every
            losses = {"train_loss": total.item() / count, "held_out_loss": float("nan")}
            total.zero_()
            if len(held):
                losses["held_out_loss"] = _held_out_loss(average, some, held)
            if not losses["train_loss"] < float("inf"):
                raise NonFiniteError(
                    f"the prior's loss is {losses['train_loss']} at step {step + 1}: use a "
                    f"--learning_rate below {options.learning_rate:g}"
                )
            if progress is not None:
                progress(step + 1, losses["train_loss"], losses["held_out_loss"])
    return average.eval().cpu(), losses


def _averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average whose decay rises from 0.1 as `(1 + n) / (10 + n)` to `decay`."""

    @torch.no_grad()
    def move(averages: Any, values: Any, count: Any) -> None:
        now = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        torch._foreach_lerp_(averages, values, 1.0 - now)

    return move


@torch.no_grad()
def _held_out_loss(prior: SetPrior, some: Callable[[Tensor, torch.Generator], Tensor], held: Tensor) -> float:
    """With noise that is the same every time."""
    generator = torch.Generator().manual_seed(0)
    return prior.loss(some(held, generator), generator).mean().item()
