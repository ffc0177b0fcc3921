"""Coordinates, broadcasting and the transposed-convolution decoder."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_genesis.layers import TransposedConvDecoder, coordinate_grid, spatial_broadcast


@pytest.mark.parametrize("size", [2, 5, 64])
def test_coordinates(size: int) -> None:
    """Row, then column, both ends included."""
    grid = coordinate_grid(size).numpy()
    for row, column in ((0, 0), (size - 1, 0), (1, size - 1), (size // 2, 1)):
        expected = [-1.0 + 2.0 * row / (size - 1), -1.0 + 2.0 * column / (size - 1)]
        np.testing.assert_allclose(grid[:, row, column], expected, atol=1e-6)


def test_broadcast_puts_coordinates_last() -> None:
    latents = torch.randn(3, 5)
    maps = spatial_broadcast(latents, coordinate_grid(4))
    assert maps.shape == (3, 7, 4, 4)
    assert torch.equal(maps[:, :5, 1, 2], latents)
    assert torch.equal(maps[2, 5:], coordinate_grid(4))


@pytest.mark.parametrize(
    ("image_size", "num_stages", "side"), [(32, 4, 2), (64, 4, 4), (128, 4, 8), (32, 3, 4), (48, 4, 3)]
)
def test_decoder(image_size: int, num_stages: int, side: int) -> None:
    decoder = TransposedConvDecoder(6, 4, image_size, hidden_dim=16, num_stages=num_stages)
    latents = torch.randn(3, 6)
    output = decoder(latents)
    assert decoder.grid.shape == (2, side, side)
    assert output.shape == (3, 4, image_size, image_size)
    torch.testing.assert_close(decoder(latents[1:2]), output[1:2], rtol=1e-4, atol=1e-5)
    assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in decoder.layers) == num_stages
    assert not any("grid" in key for key in decoder.state_dict())
    output.sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())
