"""Whether the state of a run is finite: what must be seen before it is called good."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SHOWN = 3
"""Names in a message."""


def not_finite(
    checkpoint: Mapping[str, Any], may_be_infinite: Collection[str] | None = None, names: Sequence[str] = ()
) -> str:
    """Names what is not finite in the weights, the objective's state and the optimiser's moments.

    The host waits for the device, once.

    Args:
        checkpoint: what is to be saved, or was.
        may_be_infinite: entries of `state_dict` in which only NaN is wrong, such as buffers that hold masks;
            if None, all but the objective's, where it is not known which are buffers.
        names: of the parameters, in the optimiser's order; their numbers are shown where not given.

    Returns:
        a text for a message; empty if everything is finite.
    """
    state = checkpoint.get("state_dict", {})
    if may_be_infinite is None:
        may_be_infinite = [key for key in state if not key.startswith("objective.")]
    loose = {key: state[key] for key in may_be_infinite if key in state}
    strict = {key: value for key, value in state.items() if key not in loose}
    strict |= dict(_moments(checkpoint.get("optimizer_states", ()), names))
    found: list[str] = []
    for tensors, is_right in ((strict, math.isfinite), (loose, lambda value: not math.isnan(value))):
        numbers = {name: value for name, value in tensors.items() if _has_numbers(value)}
        if not is_right(_largest([*numbers.values()])):  # one by one only where something is wrong
            found += [name for name, value in numbers.items() if not is_right(_largest([value]))]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def _moments(states: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for state in states:
        entries = state.get("state", {})
        for number, entry in entries.items() if isinstance(entries, Mapping) else ():
            owner = names[number] if type(number) is int and number < len(names) else f"parameter {number}"
            for key, value in entry.items() if isinstance(entry, Mapping) else ():
                yield f"the optimiser's {key} of {owner}", value


def _has_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


@torch.no_grad()
def _largest(tensors: list[Tensor]) -> float:
    """The largest magnitude, in one fused kernel for each type; NaN if there is one."""
    return float(torch.nn.utils.get_total_norm(tensors, math.inf)) if tensors else 0.0
