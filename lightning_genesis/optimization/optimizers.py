"""The optimisers that training knows, with every option of theirs in sight."""

import inspect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from lightning_genesis.bounds import check_number
from lightning_genesis.errors import ConfigurationError

FUSED = ("Adam", "AdamW", "SGD")
"""Optimisers whose fused form skips a step on a flag that stays on the device."""
OPTIONS: dict[str, tuple[str, ...]] = {
    "Adam": ("betas", "eps", "weight_decay", "amsgrad"),
    "AdamW": ("betas", "eps", "weight_decay", "amsgrad"),
    "SGD": ("momentum", "dampening", "weight_decay", "nesterov"),
    "RMSprop": ("alpha", "eps", "centered"),
}
"""What can be set of each, besides the learning rate. RMSprop has no fused form: `FiniteGate` holds back its
step by taking the gradient away, which neither a momentum nor a weight decay would heed."""


def effective_options(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """All options of an optimiser, those that are not given as torch has them.

    Args:
        name: a key of `OPTIONS`.
        given: options by name.

    Raises:
        ConfigurationError: if there is no such optimiser or option, or a value that it does not take.
    """
    if not isinstance(name, str) or name not in OPTIONS:
        raise ConfigurationError(
            f"optimizer={name!r} is unknown{_closest(str(name), OPTIONS)}: use one of {', '.join(OPTIONS)}"
        )
    known, given = OPTIONS[name], dict(given or {})
    for option in given:
        if option not in known:
            raise ConfigurationError(
                f"optimizer_options.{option}: {name} has no such option{_closest(option, known)}; it has "
                f"{', '.join(known)}"
            )
    defaults = inspect.signature(getattr(torch.optim, name)).parameters
    options = {option: given.get(option, defaults[option].default) for option in known}
    if isinstance(options.get("betas"), list | tuple):
        options["betas"] = tuple(options["betas"])
    try:
        make_optimizer(name, [nn.Parameter(torch.zeros(1))], 1e-4, options)
    except (TypeError, ValueError, RuntimeError) as error:
        values = ", ".join(f"{option}={value!r}" for option, value in given.items())
        raise ConfigurationError(f"optimizer_options: {name} does not take {values}: {error}") from error
    return {option: list(value) if isinstance(value, tuple) else value for option, value in options.items()}


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """The optimiser, fused where it can skip a step on the device.

    Args:
        name: a key of `OPTIONS`.
        parameters: what it moves.
        learning_rate: of all of them.
        options: by name, from `effective_options`.
    """
    kind: Any = getattr(torch.optim, name)
    values = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    return kind(parameters, lr=learning_rate, **values, **({"fused": True} if name in FUSED else {}))


def set_options(
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    options: Mapping[str, Any],
    scheduler: torch.optim.lr_scheduler.LambdaLR | None = None,
) -> None:
    """Changes the options of an optimiser that has its moments already.

    Args:
        optimizer: of the kind that the options are of.
        learning_rate: the full one.
        options: by name, from `effective_options`.
        scheduler: its schedule, at the step that it has come to.
    """
    values = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    factor = 1.0 if scheduler is None else scheduler.lr_lambdas[0](scheduler.last_epoch)
    for group in optimizer.param_groups:
        group.update(values, lr=learning_rate * factor)
        if scheduler is not None:
            group["initial_lr"] = learning_rate
    if scheduler is not None:
        scheduler.base_lrs = [learning_rate for _ in optimizer.param_groups]
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def check_learning_rate(value: float) -> None:
    """Refuses a learning rate that trains nothing.

    Raises:
        ConfigurationError: if it is not a positive, finite number.
    """
    check_number("learning_rate", value, 0.0, open_ends=True)


def _closest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
