"""What is compiled: training. Evaluation and sampling stay eager, as their batches come in several sizes."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from lightning_genesis.errors import ConfigurationError


def compile_network(model: Any) -> None:
    """Compiles a model's `network` as its `compile_mode` says.

    Raises:
        ConfigurationError: if it has none.
    """
    if model.compile_mode is None:
        return
    if not hasattr(model, "network"):
        raise ConfigurationError(f"compile: a {type(model).__name__} has no `network` to be compiled")
    compile_for_training(model.network, model.compile_mode)


def compile_for_training(part: nn.Module, mode: str) -> None:
    """Compiles the calls of a module that have a gradient, in training mode; may be called twice.

    Args:
        part: of a model; copies of it are not compiled.
        mode: of `torch.compile`.
    """
    if part._compiled_call_impl is not None:
        return
    part.compile(mode=mode)
    in_training: Any = part._compiled_call_impl

    def call(*arguments: Any, **named: Any) -> Any:
        training = part.training and torch.is_grad_enabled()
        return (in_training if training else part._call_impl)(*arguments, **named)

    part._compiled_call_impl = call


@cache
def compiled(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """A function, compiled once, LSTMs in it too; not bound to a model, so that copies use their own weights.

    Args:
        function: of models and tensors.
        mode: of `torch.compile`.
    """
    piece = torch.compile(function, mode=mode)

    def run(*arguments: Any) -> Any:
        with torch._dynamo.config.patch(allow_rnn=True):
            return piece(*arguments)

    return run
