"""Bounds of options: what lies outside is refused in one line that names the option."""

import math
from typing import Any

from lightning_genesis.errors import ConfigurationError


def check_number(
    name: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    open_ends: bool = False,
    whole: bool = False,
) -> None:
    """Compares an option with its bounds.

    Args:
        name: of the option, for the message.
        value: as given.
        least: smallest that is allowed.
        most: largest that is allowed.
        open_ends: the bounds themselves are not allowed.
        whole: it has to be an int.

    Raises:
        ConfigurationError: if it is no number, not finite, or out of its bounds.
    """
    kind = int if whole else (int, float)
    is_number = isinstance(value, kind) and not isinstance(value, bool) and abs(value) < math.inf
    if is_number and (least < value < most if open_ends else least <= value <= most):
        return
    low = "" if least == -math.inf else f" {'above' if open_ends else 'from'} {least:.12g}"
    high = "" if most == math.inf else f" {'below' if open_ends else 'to'} {most:.12g}"
    what = "whole number" if whole else "number"
    raise ConfigurationError(f"{name}={value!r}: expected a finite {what}{low}{high}")
