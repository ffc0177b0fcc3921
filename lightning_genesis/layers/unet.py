"""The UNet of MONet (Burgess et al., 2019, Appendix B.2), which GENESIS-V2 takes as its backbone."""

from collections.abc import Callable
from math import log2

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.weights import LowPrecision


def num_unet_blocks(image_size: int) -> int:
    """Number of blocks on each side of the UNet, `int(log2(image_size) - 1)`: 4, 5, 6 for 32, 64, 128.

    Raises:
        ConfigurationError: if a side of `image_size` cannot be halved that often.
    """
    num_blocks = int(log2(image_size) - 1) if image_size >= 2 else 0
    if num_blocks < 4 or image_size % 2 ** (num_blocks - 1):
        raise ConfigurationError(
            f"image_size={image_size} does not fit the UNet, which halves the side until it is 4 to 7: "
            f"use 32, 48, 64, 80, 96, 112, 128, or a larger such size"
        )
    return num_blocks


class UNet(LowPrecision):
    """Blocks of convolution, normalisation and ReLU down to a small map, an MLP there, and blocks up.

    Code and paper differ: every block but the last of each side changes the resolution by 2, so `n` blocks
    halve the side `n - 1` times, and the MLP has a third layer back to the map.

    Args:
        in_channels: channels of the input.
        width: channels `c` of the outer blocks; the three lowest blocks have `2 c`.
        image_size: side of the input.
        norm: makes the normalisation of a block from its number of channels.
    """

    def __init__(
        self, in_channels: int, width: int, image_size: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        num_blocks = num_unet_blocks(image_size)
        down = [width] * (num_blocks - 3) + [2 * width] * 3
        up = [2 * width] * 2 + [width] * (num_blocks - 2)

        def block(channels_in: int, channels_out: int) -> nn.Sequential:
            conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
            return nn.Sequential(conv, norm(channels_out), nn.ReLU(inplace=True))

        self.down = nn.ModuleList(block(i, o) for i, o in zip([in_channels, *down], down, strict=False))
        self.up = nn.ModuleList(
            block(below + skip, o)
            for below, skip, o in zip([down[-1], *up], reversed(down), up, strict=False)
        )
        self.side = image_size // 2 ** (num_blocks - 1)
        features = 2 * width * self.side**2
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(features, 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, features),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Maps `[B, in_channels, S, S]` to features `[B, width, S, S]`."""
        x = images
        skips: list[Tensor] = []  # an annotation: Dynamo cannot trace a call of `list[Tensor]`
        for block in self.down:
            x = block(F.interpolate(x, scale_factor=0.5) if skips else x)
            skips.append(x)
        x = self.mlp(x).unflatten(1, (-1, self.side, self.side))
        for block in self.up:
            skip = skips.pop()
            if x.shape[-1] != skip.shape[-1]:
                x = F.interpolate(x, scale_factor=2.0)
            x = block(torch.cat([x, skip], dim=1))
        return x
