"""Runs a model in float64, which is otherwise kept in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def double_precision() -> Iterator[None]:
    """What is built here is float64, and `Tensor.float`, where mixed precision ends, leaves float64 alone."""
    single, default = Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    Tensor.float = lambda x: x if x.dtype == torch.float64 else single(x)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.float = single  # type: ignore[method-assign]
        torch.set_default_dtype(default)
