"""Coordinates, broadcasting and the transposed-convolution decoder."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.counting import count_operations
from lightning_genesis.layers import (
    BroadcastDecoder,
    TransposedConvDecoder,
    coordinate_grid,
    spatial_broadcast,
)


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


@pytest.mark.parametrize("activation", [nn.ELU, nn.ReLU])
@pytest.mark.parametrize(("latent_dim", "hidden_dim", "num_layers"), [(6, 8, 4), (1, 5, 2), (40, 8, 4)])
def test_broadcast_decoder_is_its_layers_on_the_broadcast_map(
    activation: Any, latent_dim: int, hidden_dim: int, num_layers: int
) -> None:
    torch.manual_seed(0)
    decoder = BroadcastDecoder(latent_dim, 3, 16, hidden_dim, num_layers, activation)
    latents = torch.randn(4, latent_dim, requires_grad=True)
    leaves = [latents, *decoder.parameters()]
    found, expected = decoder(latents), decoder.layers(spatial_broadcast(latents, decoder.grid))
    assert found.shape == (4, 3, 16, 16)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(output.square().sum(), leaves) for output in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [32, 64])
def test_broadcast_decoder_widths(size: int) -> None:
    """Four valid convolutions: 72 -> 70 -> 68 -> 66 -> 64 for images of 64."""
    decoder = BroadcastDecoder(16, 4, size)
    assert decoder.grid.shape == (2, size + 8, size + 8)
    assert not any("grid" in key for key in decoder.state_dict())
    convolutions = [layer for layer in decoder.layers if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convolutions] == [
        (18, 32, 3),
        (32, 32, 3),
        (32, 32, 3),
        (32, 32, 3),
        (32, 4, 1),
    ]
    assert sum(p.numel() for p in decoder.parameters()) == 33_092  # specification §9.6


@torch.no_grad()
def test_broadcast_decoder_convolves_coordinates_once() -> None:
    """A further latent costs three 3x3 convolutions, a 1x1 and a matrix product, no fourth convolution."""
    decoder, flops = BroadcastDecoder(16, 4, 16), []
    for number in (1, 2):
        with count_operations() as counts:
            decoder(torch.randn(number, 16))
        flops.append(counts.flops)
    convolutions = 32 * 32 * 9 * (20**2 + 18**2 + 16**2) + 32 * 4 * 16**2
    assert flops[1] - flops[0] == 2 * (convolutions + 16 * 32)
    assert flops[0] == 2 * (convolutions + 16 * 32 + 2 * 32 * 9 * 22**2)
