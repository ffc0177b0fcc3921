"""A GPU that is not there: tensors with a device and a shape but without data, and what is asked of it.

Every operation on them checks devices, and a read of a value raises. Backward needs more than Python can
give; `benchmarks/fake_cuda` has it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.cuda.amp.common
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torchmetrics import Metric

NO_KERNEL = frozenset(
    (
        *("_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty"),
        *("alias", "device", "new_empty_strided", "prim_device", "record_stream", "resize_", "set_"),
    )
)
"""Operations that are no views by their schema and still compute nothing."""
CUDNN_LSTM = ("cudnn_lstm", "cudnn_lstm_backward")


class Asked(TorchDispatchMode):
    """Counts kernels, bytes and copies between host and device of everything that is dispatched in it.

    An LSTM over inputs that are all known is cuDNN's on a card: an operation forward and one backward,
    whatever cuDNN launches in them. It is unrolled here, since cuDNN needs a driver; its bytes and FLOPs are
    those of that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        """On the device, by name of the operation; cuDNN's LSTM as `cudnn_lstm` and `cudnn_lstm_backward`."""
        self.unrolled: Counter[str] = Counter()
        """Those that stand for them: with these instead `kernels` would be an upper bound."""
        self._inside = False
        self.bytes = 0
        """Read and written by them, without fusion and without a cache."""
        self.flops: Counter[torch.dtype] = Counter()
        """Of convolutions and matrix products, by the type they are computed in."""
        self.to_device: Counter[str] = Counter()
        self.to_host: Counter[str] = Counter()
        self.on_host: Counter[str] = Counter()
        """Operations between tensors of the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        result = func(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        aliases = [x.alias_info for x in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and name not in NO_KERNEL and (given or made):
            self._note(name, given, made)
        if func.overloadpacket in flop_registry:
            flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
            self.flops[next(x.dtype for x in given if x.is_floating_point())] += flops
        return result

    def _note(self, name: str, given: list[Tensor], made: list[Tensor]) -> None:
        source, target = ({x.device.type for x in tensors if x.dim()} for tensors in (given, made))
        if not any(x.device.type == "cuda" for x in (*given, *made)):
            self.on_host[name] += 1
            return
        if name in ("_to_copy", "copy_", "_pin_memory") or name.startswith("index"):
            if "cpu" in source and "cuda" in target:
                self.to_device[name] += 1
            if "cuda" in source and "cpu" in target:
                self.to_host[name] += 1
        # cuDNN's takes what autocast has cast
        (self.unrolled if self._inside and name != "_to_copy" else self.kernels)[name] += 1
        seen = {id(x): x for x in (*given, *made)}
        self.bytes += sum(x.numel() * x.element_size() for x in seen.values())

    @property
    def most_kernels(self) -> int:
        """Kernels with every LSTM unrolled."""
        lstms = sum(self.kernels[name] for name in CUDNN_LSTM)
        return sum(self.kernels.values()) - lstms + sum(self.unrolled.values())

    @contextmanager
    def _as_one(self, name: str) -> Iterator[None]:
        self.kernels[name] += 1
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def __enter__(self) -> Self:
        self._lstm, asked = torch._VF.lstm, self

        def lstm(inputs: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor], *how: Any) -> Any:
            return _Lstm.apply(asked, how, inputs, *state, *weights)

        torch._VF.lstm = lstm
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._VF.lstm = self._lstm
        super().__exit__(*error)


class _Lstm(torch.autograd.Function):
    """An unrolled LSTM whose backward can be told from the rest of the backward."""

    @staticmethod
    def forward(ctx: Any, asked: Asked, how: tuple[Any, ...], *given: Tensor) -> Any:
        given = tuple(x.detach().requires_grad_(x.requires_grad) for x in given)
        with asked._as_one(CUDNN_LSTM[0]), torch.set_grad_enabled(any(x.requires_grad for x in given)):
            made = torch.lstm(given[0], given[1:3], given[3:], *how)
        ctx.asked, ctx.given, ctx.made = asked, given, made
        ctx.set_materialize_grads(False)
        return tuple(x.detach() for x in made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        wanted = [x for x in ctx.given if x.requires_grad]
        used = [i for i, gradient in enumerate(gradients) if gradient is not None]
        made, given = [ctx.made[i] for i in used], [gradients[i] for i in used]
        with ctx.asked._as_one(CUDNN_LSTM[1]):
            found = iter(torch.autograd.grad(made, wanted, given))
        return None, None, *(next(found) if x.requires_grad else None for x in ctx.given)


def put_on(model: nn.Module, device: str) -> nn.Module:
    """The model with parameters, buffers and metrics on a fake device; call it in `FakeTensorMode`."""
    made: dict[int, Tensor] = {}

    def fake(x: Tensor) -> Tensor:
        if id(x) not in made:
            made[id(x)] = torch.empty(x.shape, dtype=x.dtype, device=device)
        return made[id(x)]

    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake(parameter), parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = fake(buffer)
        if isinstance(module, Metric):
            for name in module._defaults:
                value = getattr(module, name)
                if isinstance(value, Tensor):
                    setattr(module, name, fake(value))
        if hasattr(module, "_device"):
            module._device = torch.device(device, 0)
    return model


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """The mode, with what asks the driver whether there is a GPU answered."""
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(torch.backends.cudnn, "enabled", False)
        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                yield mode
        except RuntimeError as error:  # an older torch runs what it has no fake kernel of, on a real device
            if "Found no NVIDIA driver" not in str(error):
                raise
            pytest.skip("this torch has no fake kernel of one of the operators")
