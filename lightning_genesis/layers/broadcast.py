"""Spatial broadcast decoding (Watters et al., 2019): a latent repeated over a grid, with coordinates."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_genesis.layers.weights import LowPrecision

Activation = type[nn.ELU] | type[nn.ReLU]


def coordinate_grid(size: int) -> Tensor:
    """Row and column coordinates of a square map, from -1 to 1 with both ends, `[2, size, size]`."""
    axis = torch.linspace(-1.0, 1.0, size)
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"))


def spatial_broadcast(latents: Tensor, grid: Tensor) -> Tensor:
    """Repeats `latents` `[N, D]` over the map of `grid` `[2, S, S]` and appends it, `[N, D + 2, S, S]`."""
    maps = latents[:, :, None, None].expand(-1, -1, *grid.shape[1:])
    return torch.cat([maps, grid.to(latents.dtype).expand(len(latents), -1, -1, -1)], dim=1)


class TransposedConvDecoder(LowPrecision):
    """Broadcasts a latent over a small grid and doubles its side `num_stages` times (GENESIS-V2, Appendix B).

    The published decoder has four stages, so the grid is 4x4 for images of 64x64.

    Args:
        latent_dim: size of a latent.
        out_channels: channels of the output.
        image_size: side of the output; a multiple of `2 ** num_stages`.
        hidden_dim: channels of every stage, or of each; multiples of the 8 groups of the normalisation.
        num_stages: how often the side doubles.
        norm: normalise every stage, in 8 groups; this takes away what all channels of a group have in common.
    """

    grid: Tensor

    def __init__(
        self,
        latent_dim: int,
        out_channels: int,
        image_size: int,
        hidden_dim: int | Sequence[int] = 64,
        num_stages: int = 4,
        norm: bool = True,
    ) -> None:
        super().__init__()
        widths = [hidden_dim] * num_stages if isinstance(hidden_dim, int) else hidden_dim
        stages: list[nn.Module] = []
        for channels_in, channels_out in pairwise([latent_dim + 2, *widths]):
            stages += [
                nn.ConvTranspose2d(channels_in, channels_out, 5, stride=2, padding=2, output_padding=1),
                nn.GroupNorm(8, channels_out) if norm else nn.Identity(),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*stages, nn.Conv2d(widths[-1], out_channels, 1))
        # Not part of a checkpoint: it follows from the size.
        self.register_buffer("grid", coordinate_grid(image_size // 2**num_stages), persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Maps latents `[N, D]` to images `[N, out_channels, S, S]`, raw."""
        return self.layers(spatial_broadcast(latents, self.grid))


class BroadcastDecoder(LowPrecision):
    """Broadcasts a latent over a grid larger than the image and shrinks it with convolutions without padding.

    MONet (Burgess et al., 2019, Appendix B.1); GENESIS and the BD-VAE have the same. What the first
    convolution sees differs between pixels in its two coordinates alone. So the latent goes through the sum
    of its weights, and the coordinates go through it once for all latents: the same numbers without the
    broadcast map.

    Args:
        latent_dim: size of a latent D.
        out_channels: channels O of the output.
        image_size: side S of the output.
        hidden_dim: channels of every layer.
        num_layers: number L of 3x3 convolutions, each of which takes two pixels off the side.
        activation: class of the activation after each of them.
    """

    grid: Tensor

    def __init__(
        self,
        latent_dim: int,
        out_channels: int,
        image_size: int,
        hidden_dim: int = 32,
        num_layers: int = 4,
        activation: Activation = nn.ELU,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for layer in range(num_layers):
            layers += [
                nn.Conv2d(hidden_dim if layer else latent_dim + 2, hidden_dim, 3),
                activation(inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden_dim, out_channels, 1))
        # Not part of a checkpoint: it follows from the size.
        self.register_buffer("grid", coordinate_grid(image_size + 2 * num_layers), persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Maps latents `[N, D]` to images `[N, O, S, S]`, raw."""
        first, *rest = self.layers
        assert isinstance(first, nn.Conv2d)
        of_latent, of_grid = first.weight.split((latents.shape[1], 2), dim=1)
        constant = F.linear(latents, of_latent.sum(dim=(2, 3)), first.bias)
        x = constant[:, :, None, None] + F.conv2d(self.grid.unsqueeze(0).to(of_grid.dtype), of_grid)
        for layer in rest:
            x = layer(x)
        return x
