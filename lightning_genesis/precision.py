"""Where mixed precision ends: masks, likelihoods and divergences stay in float32."""

from typing import Any

import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError

REFUSED = ("16-true", "bf16-true", "64-true", "64", "transformer-engine", "transformer-engine-float16")
INSTEAD = ("32-true", "16-mixed", "bf16-mixed")


def check_precision(precision: Any) -> None:
    """Refuses a precision that would reach what has to stay in float32.

    In half precision the objective's state could not move: a step of β is smaller than its last digit.

    Raises:
        ConfigurationError: naming those that work.
    """
    if str(precision) in REFUSED:
        raise ConfigurationError(
            f"trainer.precision: {precision}, expected one of {', '.join(INSTEAD)}: masks, likelihoods and "
            "the objective are computed in float32"
        )


def full_precision(like: Tensor) -> torch.autocast:
    """Context in which autocast is off on the device of `like`.

    Log-masks and log-likelihoods sum over thousands of pixels and take differences of large numbers;
    in bfloat16 they would be right to two digits.
    """
    return torch.autocast(device_type=like.device.type, enabled=False)
