"""The Slot Attention module and its position embedding (Locatello et al., 2020, Algorithm 1)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_genesis.precision import full_precision

ATTENTION_FLOOR = 1e-8
"""Added to the attention of every pixel, so that a slot that no pixel attends to has a mean to take."""


class AttendedSlots(NamedTuple):
    """What Slot Attention says about a batch."""

    slots: Tensor
    """`[B, K, D]`."""
    log_attention: Tensor
    """Attention of the last iteration, normalised over slots, log, `[B, K, N]`."""


class SlotAttentionModule(nn.Module):
    """Slots compete for inputs, and each is updated by the mean of what it won (Algorithm 1).

    Nothing tells one slot from another but where it starts, so the result is equivariant to their order, and
    their number and the number of iterations may differ from those trained with. The iterations run in
    float32 whatever the autocast: a softmax over slots and a mean over thousands of pixels.

    Args:
        input_dim: size of an input F.
        slot_dim: size of a slot D, also of keys, queries and values.
        hidden_dim: width of the residual MLP.
        norm_inputs: normalise the inputs first, as in the paper.
        epsilon: of the layer normalisations; the published numbers were made with Keras's 1e-3.
    """

    def __init__(
        self,
        input_dim: int,
        slot_dim: int,
        hidden_dim: int = 128,
        norm_inputs: bool = True,
        epsilon: float = 1e-3,
    ) -> None:
        super().__init__()
        self.norm_inputs = nn.LayerNorm(input_dim, epsilon) if norm_inputs else nn.Identity()
        self.norm_slots = nn.LayerNorm(slot_dim, epsilon)
        self.norm_mlp = nn.LayerNorm(slot_dim, epsilon)
        self.query = nn.Linear(slot_dim, slot_dim, bias=False)
        self.key = nn.Linear(input_dim, slot_dim, bias=False)
        self.value = nn.Linear(input_dim, slot_dim, bias=False)
        self.gru = nn.GRUCell(slot_dim, slot_dim)
        self.mlp = nn.Sequential(
            nn.Linear(slot_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, slot_dim)
        )

    def forward(self, inputs: Tensor, slots: Tensor, num_iterations: int = 3) -> AttendedSlots:
        """Refines `slots`.

        Args:
            inputs: features of all pixels, `[B, N, F]`.
            slots: where they start, `[B, K, D]`.
            num_iterations: how often they are updated, at least once.
        """
        inputs = self.norm_inputs(inputs)
        key, value = self.key(inputs), self.value(inputs)  # the only work that grows with the pixels
        with full_precision(inputs):
            key, value, slots = key.float().transpose(1, 2), value.float(), slots.float()
            log_attention = slots.new_zeros(())
            for _ in range(num_iterations):
                query = self.query(self.norm_slots(slots)) * slots.shape[2] ** -0.5
                log_attention = (query @ key).log_softmax(dim=1)  # [B, K, N]
                attention = log_attention.exp() + ATTENTION_FLOOR
                update = (attention @ value) / attention.sum(dim=2, keepdim=True)
                slots = self.gru(update.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
                slots = slots + self.mlp(self.norm_mlp(slots))
        return AttendedSlots(slots, log_attention)


def position_features(size: int) -> Tensor:
    """Row, column, and their distances from the far side, each in [0, 1], `[size, size, 4]`."""
    axis = torch.linspace(0.0, 1.0, size)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([rows, columns, 1.0 - rows, 1.0 - columns], dim=2)


class PositionEmbedding(nn.Module):
    """Adds a learned linear function of position to maps.

    Args:
        dim: channels of the maps.
        size: their side.
        order: of the four features of `position_features`, for weights that were trained with another.
    """

    features: Tensor

    def __init__(self, dim: int, size: int, order: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.projection = nn.Linear(4, dim)
        # Not part of a checkpoint: it follows from the size.
        self.register_buffer("features", position_features(size)[..., list(order)], persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `[N, dim, size, size]`, with their position."""
        return maps + self.projection(self.features).permute(2, 0, 1)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: side `ceil(S / stride)`, odd padding goes to the end.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, odd.
        stride: of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        padding = kernel_size // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, input: Tensor) -> Tensor:
        """Maps `[B, in_channels, S, S]` to `[B, out_channels, ceil(S / stride), ceil(S / stride)]`."""
        kernel, stride, size = self.kernel_size[0], self.stride[0], input.shape[3]
        if stride > 1:
            padding = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            before = padding // 2
            input = F.pad(input, (before, padding - before) * 2)
        return super().forward(input)


class SameConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution with TensorFlow's SAME padding: side `stride * S`, more is cut at the end.

    With a kernel of 5 and stride 2 one row is cut at the start and two at the end. PyTorch's usual
    `padding=2, output_padding=1` cuts two and one: the same picture, shifted by a pixel.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, odd, at least `stride`.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, (kernel_size - stride) // 2)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Maps `[B, in_channels, S, S]` to `[B, out_channels, stride * S, stride * S]`."""
        side = self.stride[0] * input.shape[3]
        return super().forward(input, output_size)[..., :side, :side]
