"""Learning rates that change with the step, as a factor on `learning_rate`."""

from collections.abc import Callable
from math import cos, pi
from typing import Literal, get_args

from lightning_genesis.errors import ConfigurationError

ScheduleName = Literal["exponential", "cosine", "step"]
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)


def make_schedule(
    schedule: ScheduleName = "exponential",
    warmup_steps: int = 0,
    decay_rate: float = 0.5,
    decay_steps: int = 0,
    final_factor: float = 0.0,
    decay_in_warmup: bool = False,
) -> Callable[[int], float] | None:
    """A linear rise from 0, and what follows it.

    Args:
        schedule: "exponential", `decay_rate` per `decay_steps` without stairs, as published for Slot
            Attention and EfficientMORL; "step", the same in stairs; "cosine", half a cosine over
            `decay_steps` from the full learning rate to `final_factor` of it.
        warmup_steps: optimiser steps until the full learning rate; 0 starts with it.
        decay_rate: factor per `decay_steps`; not used by "cosine".
        decay_steps: steps that the factor, or the half cosine, takes; 0 for a constant learning rate.
        final_factor: where "cosine" ends and stays.
        decay_in_warmup: let the decay run from step 0 (Slot Attention), not from `warmup_steps` (EMORL).

    Returns:
        function from the step (0 for the first one) to the factor; None if it is 1 throughout.

    Raises:
        ConfigurationError: if the name is unknown or a number out of its range.
    """
    if schedule not in SCHEDULES:
        raise ConfigurationError(f"schedule={schedule!r} is unknown: use one of {', '.join(SCHEDULES)}")
    for name, steps in (("warmup_steps", warmup_steps), ("decay_steps", decay_steps)):
        if not isinstance(steps, int) or steps < 0:
            raise ConfigurationError(f"{name}={steps!r} is too small: use a whole number >= 0")
    if not isinstance(decay_rate, float | int) or not 0.0 < decay_rate <= 1.0:
        raise ConfigurationError(f"decay_rate={decay_rate!r} is no decay: use a number above 0 and up to 1")
    if not isinstance(final_factor, float | int) or not 0.0 <= final_factor <= 1.0:
        raise ConfigurationError(f"final_factor={final_factor!r}: use a number from 0 to 1")
    if schedule != "exponential" and not decay_steps:
        raise ConfigurationError(
            f"schedule={schedule!r} needs decay_steps, the optimiser steps that it takes"
        )
    if not warmup_steps and not decay_steps:
        return None

    def decay(elapsed: int) -> float:
        if not decay_steps:
            return 1.0
        if schedule == "cosine":
            share = min(1.0, elapsed / decay_steps)
            return final_factor + (1.0 - final_factor) * 0.5 * (1.0 + cos(pi * share))
        return decay_rate ** (elapsed // decay_steps if schedule == "step" else elapsed / decay_steps)

    def factor(step: int) -> float:
        rise = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        return rise * decay(step if decay_in_warmup else max(step - warmup_steps, 0))

    return factor
