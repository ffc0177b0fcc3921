"""Weights that are cast, or used several times, all at once instead of one by one.

An eager step would spend a kernel per weight on either: autocast casts every weight forward and every
gradient backward, and autograd adds up the gradients of every use. Here all weights are laid out in one
vector first. What is used are slices of it, so one kernel does for all of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_genesis.precision import full_precision

Places = list[tuple[nn.Module, str]]
"""Modules and the names of their parameters."""
KEPT = (nn.modules.batchnorm._NormBase, nn.RNNBase)
"""Keep their own float32 weights: statistics over the batch, and recurrences."""


class LowPrecision(nn.Module):
    """Base of blocks that may be computed in the type of autocast as a whole, their normalisations too.

    While `cast_weights` is active its weights and its inputs are of that type; the sums of normalisations are
    still float32, inside their kernels. Otherwise it is an ordinary module.
    """

    cast_to: torch.dtype | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        """As of any module."""
        if self.cast_to is None:
            return super().__call__(*inputs)
        with full_precision(inputs[0]):  # everything has its type already, and autocast undoes some of it
            return super().__call__(*(x.to(self.cast_to) for x in inputs))


class LowPrecisionSequential(LowPrecision, nn.Sequential):
    """Layers that are such a block together."""


class LowPrecisionConv2d(LowPrecision, nn.Conv2d):
    """A convolution that is such a block."""


class LowPrecisionLinear(LowPrecision, nn.Linear):
    """A linear layer that is such a block."""


class LowPrecisionLayerNorm(LowPrecision, nn.LayerNorm):
    """A layer normalisation that is such a block."""


class FlatWeights:
    """Parameters laid out in one vector, of which slices can take their places.

    Args:
        places: where the parameters are.
        dtype: that the slices have; that of the parameters if None.
    """

    def __init__(self, places: Places, dtype: torch.dtype | None = None) -> None:
        # Slices of an odd size last, so that the others start where fast kernels want them.
        weights = [(place, place[0]._parameters[place[1]]) for place in places]
        given = [(place, weight) for place, weight in weights if weight is not None]
        given.sort(key=lambda item: item[1].numel() % 8 != 0)
        self._places = [place for place, _ in given]
        tensors = [weight for _, weight in given]
        self._shapes = [weight.shape for weight in tensors]
        self._sizes = [weight.numel() for weight in tensors]
        self._cast: Any = None if dtype is None else _Cast.apply(dtype, *tensors)  # type: ignore[no-untyped-call]
        self._flat = torch.cat([weight.reshape(-1) for weight in tensors]) if dtype is None else None

    def _slices(self) -> Iterable[Tensor]:
        if self._flat is None:
            return cast("Iterable[Tensor]", self._cast)
        parts: Any = self._flat.split(self._sizes)
        return (part.view(shape) for part, shape in zip(parts, self._shapes, strict=True))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts slices into the places of the parameters."""
        kept: list[Any] = []
        for (module, name), part in zip(self._places, self._slices(), strict=True):
            kept.append(module._parameters[name])
            module._parameters[name] = cast(Any, part)
        try:
            yield
        finally:
            for (module, name), parameter in zip(self._places, kept, strict=True):
                module._parameters[name] = parameter


class _Cast(torch.autograd.Function):
    """Tensors in another type, side by side; a kernel there and one back, without laying them out first."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.kind = tensors[0].dtype
        return _copies(tensors, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        found = iter(_copies([x for x in gradients if x is not None], ctx.kind))
        return None, *(None if x is None else next(found) for x in gradients)


def _copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Copies of another type, slices of one vector."""
    if not tensors:
        return ()
    parts: Any = tensors[0].new_empty(sum(x.numel() for x in tensors), dtype=dtype)
    parts = parts.split([x.numel() for x in tensors])
    copies = tuple(part.view(x.shape) for part, x in zip(parts, tensors, strict=True))
    torch._foreach_copy_(copies, tuple(tensors))
    return copies


def _places(modules: Iterable[nn.Module], without: tuple[type, ...] = ()) -> Places:
    """Every parameter in `modules` once, but for those of some kinds of modules."""
    parts = {part: None for module in modules for part in module.modules() if not isinstance(part, without)}
    return [(part, name) for part in parts for name, weight in part._parameters.items() if weight is not None]


def repeated(*modules: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """For weights that a loop uses again and again: a context for each of its passes.

    A pass then leaves one gradient, of the vector, to be added to those of the others.

    Args:
        modules: what the loop uses; all weights of one type.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return nullcontext
    return FlatWeights(_of(modules[0], "_repeated", lambda: _places(modules))).applied


@contextmanager
def cast_weights(model: nn.Module, like: Tensor) -> Iterator[None]:
    """Casts the weights of all `LowPrecision` blocks in `model` at once, if autocast is on for `like`."""
    kind = like.device.type
    if not torch.is_autocast_enabled(kind):
        yield
        return
    blocks = _of(model, "_blocks", lambda: [x for x in model.modules() if isinstance(x, LowPrecision)])
    if not blocks or blocks[0].cast_to is not None:  # there are none, or a model around this one has done it
        yield
        return
    dtype = torch.get_autocast_dtype(kind)
    weights = FlatWeights(_of(model, "_cast", lambda: _places(blocks, KEPT)), dtype)
    try:
        for block in blocks:
            block.cast_to = dtype
        with weights.applied():
            yield
    finally:
        for block in blocks:
            block.cast_to = None


def _of(owner: nn.Module, name: str, find: Callable[[], Any]) -> Any:
    """What `find` finds, kept with `owner`: walking over modules takes longer than all the rest."""
    if name not in owner.__dict__:
        owner.__dict__[name] = find()
    return owner.__dict__[name]
