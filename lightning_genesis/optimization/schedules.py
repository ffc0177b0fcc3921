"""Learning rates that change with the step, as a factor on `learning_rate`."""

from collections.abc import Callable

from lightning_genesis.errors import ConfigurationError


def warmup_and_decay(
    warmup_steps: int, decay_rate: float, decay_steps: int, decay_in_warmup: bool
) -> Callable[[int], float]:
    """A linear rise from 0, and exponential decay without stairs.

    Args:
        warmup_steps: optimiser steps until the full learning rate; 0 starts with it.
        decay_rate: factor per `decay_steps`.
        decay_steps: steps that the factor takes; 0 for no decay.
        decay_in_warmup: let the decay run from step 0 (Slot Attention), not from `warmup_steps` (EMORL).

    Returns:
        function from the step (0 for the first one) to the factor.
    """

    def factor(step: int) -> float:
        rise = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        if not decay_steps:
            return rise
        elapsed = step if decay_in_warmup else max(step - warmup_steps, 0)
        return rise * decay_rate ** (elapsed / decay_steps)

    return factor


def check_decay(decay_rate: object) -> None:
    """Refuses a factor that lets the learning rate rise or vanish.

    Raises:
        ConfigurationError: if it is not in (0, 1].
    """
    if not isinstance(decay_rate, float | int) or not 0.0 < decay_rate <= 1.0:
        raise ConfigurationError(f"decay_rate={decay_rate!r} is no decay: use a number above 0 and up to 1")
