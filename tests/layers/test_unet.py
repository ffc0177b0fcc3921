"""The UNet: its widths, sizes and the way through it."""

import pytest
import torch
from torch import nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers import UNet
from lightning_genesis.layers.unet import num_unet_blocks


def widths(blocks: nn.ModuleList) -> list[tuple[int, int]]:
    convolutions = [block[0] for block in blocks if isinstance(block, nn.Sequential)]
    return [(c.in_channels, c.out_channels) for c in convolutions if isinstance(c, nn.Conv2d)]


@pytest.mark.parametrize(
    ("image_size", "down", "up"),
    [
        (
            32,
            [(3, 64), (64, 128), (128, 128), (128, 128)],
            [(256, 128), (256, 128), (256, 64), (128, 64)],
        ),
        (
            64,
            [(3, 64), (64, 64), (64, 128), (128, 128), (128, 128)],
            [(256, 128), (256, 128), (256, 64), (128, 64), (128, 64)],
        ),
        (
            128,
            [(3, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 128)],
            [(256, 128), (256, 128), (256, 64), (128, 64), (128, 64), (128, 64)],
        ),
    ],
)
def test_widths(image_size: int, down: list[tuple[int, int]], up: list[tuple[int, int]]) -> None:
    unet = UNet(3, 64, image_size, lambda channels: nn.GroupNorm(8, channels))
    assert widths(unet.down) == down
    assert widths(unet.up) == up
    assert unet.side == 4
    linear = [(layer.in_features, layer.out_features) for layer in unet.mlp if isinstance(layer, nn.Linear)]
    assert linear == [(2048, 128), (128, 128), (128, 2048)]


@pytest.mark.parametrize("image_size", [32, 48, 64, 80, 96, 112, 128, 256])
def test_output(image_size: int) -> None:
    unet = UNet(2, 8, image_size, lambda channels: nn.GroupNorm(8, channels))
    x = torch.rand(2, 2, image_size, image_size)
    output = unet(x)
    assert output.shape == (2, 8, image_size, image_size)
    assert output.min() >= 0.0
    torch.testing.assert_close(unet(x[1:]), output[1:], rtol=1e-4, atol=1e-5)
    output.sum().backward()
    assert all(p.grad is not None for p in unet.parameters())


@pytest.mark.parametrize("image_size", [-4, 0, 1, 16, 31, 33, 36, 72, 100, 130])
def test_sizes_that_do_not_fit(image_size: int) -> None:
    with pytest.raises(ConfigurationError, match=f"image_size={image_size} does not fit.*use 32, 48, 64"):
        num_unet_blocks(image_size)
