"""Whether the state of a run is finite: what must be seen before it is called good."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SUMMED_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_SMALL = 4096
"""Numbers in a tensor below which it is faster to copy it together with others than to sum it by itself."""
SHOWN = 3
"""Names in a message."""


def not_finite(
    checkpoint: Mapping[str, Any], may_be_infinite: Collection[str] | None = None, names: Sequence[str] = ()
) -> str:
    """Names what is not finite in the weights, the objective's state and the optimiser's moments.

    The host waits for the device, once for the strict ones and once for the others.

    Args:
        checkpoint: what is to be saved, or was.
        may_be_infinite: entries of `state_dict` in which only NaN is wrong, such as buffers that hold masks;
            if None, all but the objective's, where it is not known which are buffers.
        names: of the parameters, in the optimiser's order; their numbers are shown where not given.

    Returns:
        a text for a message; empty if everything is finite.
    """
    strict: dict[str, Any] = dict(_moments(checkpoint.get("optimizer_states", ()), names))
    loose: dict[str, Any] = {}
    # with averaged weights in `state_dict`, those in training are beside it
    for where, owner in (("state_dict", ""), ("current_model_state", "the trained ")):
        for key, value in _items(checkpoint.get(where)):
            ours = str(key).startswith("objective.")
            infinite = not ours if may_be_infinite is None else key in may_be_infinite
            (loose if infinite else strict)[f"{owner}{key}"] = value
    found: list[str] = []
    for tensors, is_right in ((strict, _is_finite), (loose, _has_no_nan)):
        numbers = {name: value for name, value in tensors.items() if _has_numbers(value)}
        # one by one only where something may be wrong: a sum may also have overflown
        if not is_right(_sums([*numbers.values()])):
            found += [name for name, value in numbers.items() if not is_right(value)]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def _moments(states: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for state in states:
        for number, entry in _items(dict(_items(state)).get("state")):
            is_known = type(number) is int and 0 <= number < len(names)
            owner = names[number] if is_known else f"parameter {number}"
            for key, value in _items(entry):
                yield f"the optimiser's {key} of {owner}", value


def _items(tree: Any) -> Iterable[tuple[Any, Any]]:
    """Of a mapping: what a file holds in its place may be anything."""
    return tree.items() if isinstance(tree, Mapping) else ()


def _has_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in FLOATS and value.numel() > 0


def _is_finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())


def _has_no_nan(value: Tensor) -> bool:
    return not bool(value.isnan().any())


@torch.no_grad()
def _sums(tensors: list[Tensor]) -> Tensor:
    """Sums over all of them: not finite where one of the numbers is not. No look at them is faster."""
    sums: dict[torch.device, list[Tensor]] = {}
    small: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for value in tensors:
        if value.numel() < _SMALL:
            small.setdefault((value.device, value.dtype), []).append(value.reshape(-1))
        else:
            sums.setdefault(value.device, []).append(value.sum(dtype=_SUMMED_IN.get(value.dtype)))
    for (device, kind), parts in small.items():
        sums.setdefault(device, []).append(torch.cat(parts).sum(dtype=_SUMMED_IN.get(kind)))
    return torch.cat([torch.zeros(0), *(torch.stack(found).cpu() for found in sums.values())])
