"""Counts what a piece of code asks of the machine: kernels, host synchronisations, floating-point operations.

The counts do not depend on how fast the machine is, so tests may assert them; benchmarks print them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

NO_KERNEL = frozenset(
    ("_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty")
)
"""Operations that are no views by their schema and still compute nothing."""
SYNCHRONISING = frozenset(
    (
        "_local_scalar_dense",  # item, bool(), float(), int(), if tensor
        "_unique",
        "_unique2",
        "bincount",
        "equal",
        "masked_select",
        "nonzero",
        "unique_consecutive",
        "unique_dim",
        "unique_dim_consecutive",
    )
)
"""Operations whose result, or its shape, the host must wait for."""
HOST_READS = ("cpu", "numpy", "tolist")
"""Methods that read a tensor without an operation if it lies on the host already."""


@dataclass
class Counts:
    """What was counted."""

    kernels: Counter[str] = field(default_factory=Counter)
    """Dispatched operations by name, without those that only make a view or allocate."""
    syncs: Counter[str] = field(default_factory=Counter)
    """Operations that wait for the device, by name."""
    host_reads: Counter[str] = field(default_factory=Counter)
    """Calls of `Tensor.cpu`, `numpy` and `tolist`. On a CUDA tensor they synchronise too and are among
    `syncs`; on a CPU tensor they cost nothing, but the same code would synchronise on a GPU."""
    flops: int = 0
    """Floating-point operations of convolutions and matrix products, two per multiply-add."""


@contextmanager
def count_operations() -> Iterator[Counts]:
    """Counts everything that is dispatched in the block, by forward and backward alike; eager code only."""
    counts = Counts()
    with _Dispatched(counts), _Called(counts):
        yield counts


class _Dispatched(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if not _is_view(func) and name not in NO_KERNEL:
            self.counts.kernels[name] += 1
        if _synchronises(name, args, kwargs):
            self.counts.syncs[name] += 1
        result = func(*args, **kwargs)
        # torch's own formulas; its FlopCounterMode hooks modules too, which fails under no_grad in a step
        if func.overloadpacket in flop_registry:
            self.counts.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        return result


class _Called(TorchFunctionMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in HOST_READS and getattr(Tensor, name) is func:
            self.counts.host_reads[name] += 1
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    """Whether an operation's result shares memory with an argument that it does not write to."""
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _synchronises(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if name in SYNCHRONISING:
        return True
    if name in ("index", "index_put", "index_put_"):  # a mask as index is a nonzero
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if name == "_to_copy":
        target = kwargs.get("device")
        to_host = target is not None and torch.device(target).type == "cpu"
        return to_host and args[0].device.type != "cpu" and not kwargs.get("non_blocking", False)
    if name == "copy_":
        to_host = args[0].device.type == "cpu" and args[1].device.type != "cpu"
        return to_host and not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    return False
