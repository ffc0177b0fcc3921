"""Initial values that several models share."""

from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def small_xavier(module: Module) -> Module:
    """Gives every linear layer and convolution in `module` Glorot normal weights of gain 0.02, and no bias.

    That of SRI and EfficientMORL's code; the papers say "Xavier" alone. Returns `module`.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_normal_(part.weight, gain=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module
