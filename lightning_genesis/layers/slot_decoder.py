"""Decoders that draw one slot at a time: Slot Attention's, and those of EfficientMORL's repository."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.slot_attention import (
    POSITION_ORDER,
    Implementation,
    PositionEmbedding,
    SameConvTranspose2d,
)
from lightning_genesis.layers.weights import LowPrecision
from lightning_genesis.precision import full_precision

DecoderName = Literal["big", "small", "iodine"]


class SlotDecoder(LowPrecision):
    """Decodes a slot into RGB and a mask logit by spatial broadcasting (Locatello et al., Section 3.1).

    Args:
        slot_dim: size of a slot D.
        image_size: side S of the output.
        hidden_dim: width of every layer.
        kind: "big" doubles a small grid by transposed convolutions; "small" is three 5x5 convolutions from
            `S + 6`; "iodine" four 3x3 convolutions from `S + 10` (Greff et al., 2019).
        num_stages: times the big decoder doubles its grid of side `S / 2 ** num_stages`.
        implementation: "official" or "emorl": the order of the position features, the alignment of the
            transposed convolutions, and components that are linear in [-1, 1] or a sigmoid.

    Raises:
        ConfigurationError: if the stages do not fit the size.
    """

    def __init__(
        self,
        slot_dim: int,
        image_size: int,
        hidden_dim: int,
        kind: DecoderName,
        num_stages: int,
        implementation: Implementation,
    ) -> None:
        super().__init__()
        _check_grid(image_size, kind, num_stages)
        self.implementation, self.broadcasts_late = implementation, kind == "iodine"

        def double(channels: int) -> nn.Module:
            if implementation == "official":
                return SameConvTranspose2d(channels, hidden_dim, 5, stride=2)
            return nn.ConvTranspose2d(channels, hidden_dim, 5, stride=2, padding=2, output_padding=1)

        layers: list[nn.Module] = []
        if kind == "big":
            self.side = image_size // 2**num_stages
            for stage in range(num_stages):
                layers += [double(hidden_dim if stage else slot_dim), nn.ReLU(inplace=True)]
            channels = hidden_dim if num_stages else slot_dim
            layers += [SameConvTranspose2d(channels, hidden_dim, 5), nn.ReLU(inplace=True)]
            layers += [SameConvTranspose2d(hidden_dim, 4, 3)]
        elif kind == "small":
            self.side = image_size + 6  # every convolution takes a border of one pixel away
            for stage in range(3):
                conv = nn.Conv2d(hidden_dim if stage else slot_dim, hidden_dim, 5, padding=1)
                layers += [conv, nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(hidden_dim, 4, 3, padding=1)]
        else:
            self.side = image_size + 10
            for stage in range(4):
                layers += [nn.Conv2d(hidden_dim if stage else slot_dim, hidden_dim, 3), nn.ELU(inplace=True)]
            layers += [nn.Conv2d(hidden_dim, 4, 3)]
        self.position = PositionEmbedding(slot_dim, self.side, POSITION_ORDER[implementation])
        self.layers = nn.Sequential(*layers)

    def forward(self, slots: Tensor) -> Tensor:
        """Maps slots `[N, D]` to `[N, 4, S, S]`, raw."""
        if not self.broadcasts_late:
            maps = slots[:, :, None, None].expand(-1, -1, self.side, self.side)
            return self.layers(self.position(maps))
        # Without padding a slot reaches every pixel of the first convolution alike, and positions do not
        # depend on it: the same numbers as above, but the map is convolved once for all slots.
        first, *rest = self.layers
        assert isinstance(first, nn.Conv2d)
        of_slot = F.linear(slots, first.weight.sum(dim=(2, 3)), first.bias)
        of_position = F.conv2d(self.position.map().unsqueeze(0), first.weight)
        x = of_slot[:, :, None, None] + of_position
        for layer in rest:
            x = layer(x)
        return x

    def decode(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Components in the range of the images `[B, K, 3, S, S]` and log-masks `[B, K, 1, S, S]`."""
        decoded = self(slots.flatten(0, 1)).float().unflatten(0, slots.shape[:2])
        with full_precision(decoded):
            raw, logits = decoded.split((3, 1), dim=2)
            components = 0.5 * (raw + 1.0) if self.implementation == "official" else raw.sigmoid()
            return components, logits.log_softmax(dim=1)


def _check_grid(image_size: int, kind: DecoderName, stages: int) -> None:
    if kind == "big" and (image_size % 2**stages or image_size < 2 ** (stages + 1)):
        raise ConfigurationError(
            f"decoder_stages={stages} does not fit image_size={image_size}: the decoder starts from a grid "
            f"of side image_size / 2^decoder_stages, which must be a whole number of at least 2; use an "
            f"image_size that is a multiple of {2**stages}, fewer stages, or decoder=small"
        )
