"""The Slot Attention module and its position embedding (Locatello et al., 2020, Algorithm 1)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_genesis.layers.weights import (
    LowPrecision,
    LowPrecisionLayerNorm,
    LowPrecisionLinear,
    LowPrecisionSequential,
    repeated,
)
from lightning_genesis.precision import full_precision

ATTENTION_FLOOR = 1e-8
"""Added to the attention of every pixel, so that a slot that no pixel attends to has a mean to take."""
ENCODER_STRIDES = {0: (1, 1, 1, 1), 1: (1, 2, 1, 1), 2: (1, 2, 2, 1), 3: (1, 2, 2, 2)}
"""By the number of halvings; (1, 2, 2, 1) is the paper's set prediction model."""
Implementation = Literal["official", "emorl"]
POSITION_ORDER: dict[str, tuple[int, ...]] = {"official": (0, 1, 2, 3), "emorl": (2, 0, 1, 3)}
"""Of row, column, 1 - row, 1 - column; EMORL's repository has 1 - row, row, column, 1 - column."""
LAYER_NORM_EPSILON = {"official": 1e-3, "emorl": 1e-5}
"""The defaults of Keras and of PyTorch."""


class AttendedSlots(NamedTuple):
    """What Slot Attention says about a batch."""

    slots: Tensor
    """`[B, K, D]`."""
    log_attention: Tensor
    """Attention of the last iteration, normalised over slots, log, `[B, K, N]`."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Shares every input out among the slots, and gives each slot the mean of what it won.

    Args:
        query: of the slots, scaled, `[B, K, D]`.
        key: of the inputs, `[B, D, N]`.
        value: of the inputs, `[B, N, D]`.

    Returns:
        the means `[B, K, D]`, and the log of the shares, normalised over slots, `[B, K, N]`.
    """
    log_attention = (query @ key).log_softmax(dim=1)
    attention = log_attention.exp() + ATTENTION_FLOOR
    return (attention @ value) / attention.sum(dim=2, keepdim=True), log_attention


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
        self.norm_inputs = LowPrecisionLayerNorm(input_dim, epsilon) if norm_inputs else nn.Identity()
        self.norm_slots = nn.LayerNorm(slot_dim, epsilon)
        self.norm_mlp = nn.LayerNorm(slot_dim, epsilon)
        self.query = nn.Linear(slot_dim, slot_dim, bias=False)
        self.key = LowPrecisionLinear(input_dim, slot_dim, bias=False)
        self.value = LowPrecisionLinear(input_dim, slot_dim, bias=False)
        self.gru = nn.GRUCell(slot_dim, slot_dim)
        self.mlp = nn.Sequential(
            nn.Linear(slot_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, slot_dim)
        )

    def forward(
        self,
        inputs: Tensor,
        slots: Tensor,
        num_iterations: int = 3,
        gradient_iterations: int | None = None,
        straight_through: bool = False,
    ) -> AttendedSlots:
        """Refines `slots`.

        Args:
            inputs: features of all pixels, `[B, N, F]`.
            slots: where they start, `[B, K, D]`.
            num_iterations: how often they are updated, at least once.
            gradient_iterations: let no gradient through to what comes before the last ones. At a fixed point
                of the update that is the implicit function's gradient, its Neumann series cut after as many
                terms (Chang, Griffiths, Levine: "Object representations as fixed points", NeurIPS 2022, with
                one). The gradient of all iterations if None.
            straight_through: pass the gradient that is held back on to the slots that it all started from, as
                if they were those before the last iterations (Jia, Liu, Huang: "Improving object-centric
                learning with query optimization", ICLR 2023).
        """
        inputs = self.norm_inputs(inputs)
        key, value = self.key(inputs), self.value(inputs)  # the only work that grows with the pixels
        with full_precision(inputs):
            key, value, slots = key.float().transpose(1, 2), value.float(), slots.float()
            log_attention, initial = slots.new_zeros(()), slots
            weights = repeated(self.norm_slots, self.norm_mlp, self.query, self.gru, self.mlp)
            for remaining in range(num_iterations, 0, -1):
                if remaining == gradient_iterations and remaining < num_iterations:
                    slots = slots.detach() + (initial - initial.detach() if straight_through else 0.0)
                with weights():
                    query = self.query(self.norm_slots(slots)) * slots.shape[2] ** -0.5
                    update, log_attention = attend(query, key, value)
                    slots = self.gru(update.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
                    slots = slots + self.mlp(self.norm_mlp(slots))
        return AttendedSlots(slots, log_attention)


def position_features(size: int) -> Tensor:
    """Row, column, and their distances from the far side, each in [0, 1], `[size, size, 4]`."""
    axis = torch.linspace(0.0, 1.0, size)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([rows, columns, 1.0 - rows, 1.0 - columns], dim=2)


class PositionEmbedding(LowPrecision):
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
        return maps + self.map()

    def map(self) -> Tensor:
        """What is added, `[dim, size, size]`."""
        return self.projection(self.features.to(self.projection.weight.dtype)).permute(2, 0, 1)


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


class PixelEncoder(nn.Module):
    """Features of every pixel: convolutions, position, an MLP. Base of networks that attend to pixels.

    Args:
        image_size: side of the images.
        feature_dim: width F.
        stages: times the convolutions halve the image, see `ENCODER_STRIDES`.
        implementation: "official" or "emorl", for the layer normalisation and the order of the positions.
    """

    def __init__(
        self, image_size: int, feature_dim: int, stages: int, implementation: Implementation
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.feature_side = image_size
        for index, stride in enumerate(ENCODER_STRIDES[stages]):
            layers += [SameConv2d(feature_dim if index else 3, feature_dim, 5, stride), nn.ReLU(inplace=True)]
            self.feature_side = -(-self.feature_side // stride)
        self.encoder = LowPrecisionSequential(*layers)
        self.position = PositionEmbedding(feature_dim, self.feature_side, POSITION_ORDER[implementation])
        self.pixel_mlp = LowPrecisionSequential(
            nn.LayerNorm(feature_dim, LAYER_NORM_EPSILON[implementation]),
            nn.Linear(feature_dim, feature_dim),
            nn.ReLU(inplace=True),
            nn.Linear(feature_dim, feature_dim),
        )

    def masks(self, log_attention: Tensor, images: Tensor) -> Tensor:
        """Attention `[B, K, N]`, log, as log-masks of the size of the images, `[B, K, 1, H, W]`.

        Where the map is smaller than the image it is interpolated and normalised again, without a gradient.
        """
        log_masks = log_attention.unflatten(2, (self.feature_side, self.feature_side))
        if self.feature_side != images.shape[3]:
            resized = F.interpolate(log_masks.detach(), images.shape[2:], mode="bilinear")
            log_masks = resized.log_softmax(dim=1)
        return log_masks.unsqueeze(2)

    def pixels(self, images: Tensor) -> Tensor:
        """Features `[B, N, F]` of images `[B, 3, H, W]` in [0, 1]; the network sees [-1, 1]."""
        features = self.position(self.encoder(2.0 * images - 1.0))
        return self.pixel_mlp(features.flatten(2).transpose(1, 2))
