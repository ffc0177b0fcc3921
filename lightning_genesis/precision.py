"""Where mixed precision ends: masks, likelihoods and divergences stay in float32."""

import torch
from torch import Tensor


def full_precision(like: Tensor) -> torch.autocast:
    """Context in which autocast is off on the device of `like`.

    Log-masks and log-likelihoods sum over thousands of pixels and take differences of large numbers;
    in bfloat16 they would be right to two digits.
    """
    return torch.autocast(device_type=like.device.type, enabled=False)
