"""The instance colouring stick-breaking process, IC-SBP (GENESIS-V2, Section 3.1 and Algorithm 1)."""

from math import log, sqrt
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.broadcast import coordinate_grid
from lightning_genesis.layers.weights import LowPrecisionConv2d
from lightning_genesis.precision import full_precision

KernelName = Literal["gaussian", "laplacian", "epanechnikov"]
KERNELS: tuple[KernelName, ...] = ("gaussian", "laplacian", "epanechnikov")


def clamp_straight_through(x: Tensor, low: float, high: float) -> Tensor:
    """`clamp(x, low, high)` with gradient 1 everywhere."""
    return _ClampStraightThrough.apply(x, low, high)  # type: ignore[no-untyped-call]


class _ClampStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class _SquaredDistance(torch.autograd.Function):
    """Of pixels `[B, E, 1, N]` and points `[B, E, K, 1]`, or both without K; the sum over axis 1."""

    @staticmethod
    def forward(pixels: Tensor, points: Tensor) -> Tensor:
        return (pixels - points).square_().sum(dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        pixels, points = ctx.saved_tensors
        # the differences once more take less than to keep them: they are the largest tensor of the IC-SBP
        gradient = (pixels - points).mul_(2.0 * gradients[0].unsqueeze(1))
        return gradient.sum_to_size(pixels.shape), -gradient.sum_to_size(points.shape)


def initial_kernel_width(kernel: KernelName, num_slots: int) -> float:
    """Kernel width σ at which `num_slots` initial masks have similar sizes (GENESIS-V2, Equation 8)."""
    widths = {
        "gaussian": 1.0 / (num_slots * log(2.0)),
        "laplacian": 1.0 / (sqrt(num_slots) * log(2.0)),
        "epanechnikov": 2.0 / num_slots,
    }
    if kernel not in widths:
        raise ConfigurationError(f"kernel={kernel!r} is unknown: use one of {', '.join(KERNELS)}")
    return widths[kernel]


class Colouring(NamedTuple):
    """What the IC-SBP says about a batch."""

    log_masks: Tensor
    """Attention masks, normalised over slots; -inf for slots not in use, `[B, K, 1, S, S]`."""
    num_active: Tensor | None
    """Slots in use per image, `[B]`; None where all are."""


class InstanceColouringSBP(nn.Module):
    """Turns features into instance embeddings and these into masks, one random seed pixel after the other.

    Code and paper differ: a mask's kernel value is clamped to [0.01, 0.99] with a straight-through
    gradient, the kernel width is learned as its logarithm, and the embeddings start as the pixel
    coordinates because of a learned gate that starts at 0.

    Args:
        in_channels: channels of the features.
        num_slots: number of masks the kernel width starts from.
        image_size: side of the features.
        kernel: "gaussian", "laplacian" or "epanechnikov".
        embedding_dim: size of a pixel's embedding, at least 2.
        semi_convolutional: add pixel coordinates to the last two channels (Novotny et al., 2018).
    """

    coordinates: Tensor

    def __init__(
        self,
        in_channels: int,
        num_slots: int,
        image_size: int,
        kernel: KernelName = "gaussian",
        embedding_dim: int = 8,
        semi_convolutional: bool = True,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.log_sigma = nn.Parameter(torch.tensor(log(initial_kernel_width(kernel, num_slots))))
        self.embedding = LowPrecisionConv2d(in_channels, embedding_dim, 1)
        self.gate = nn.Parameter(torch.tensor(0.0)) if semi_convolutional else None
        position = torch.zeros(embedding_dim, image_size, image_size)
        position[-2:] = coordinate_grid(image_size)
        self.register_buffer("coordinates", position, persistent=False)

    def embed(self, features: Tensor) -> Tensor:
        """Embeddings of all pixels, float32 `[B, E, S, S]`."""
        embeddings = self.embedding(features).float()
        return embeddings if self.gate is None else self.gate * embeddings + self.coordinates

    def forward(
        self, features: Tensor, scores: Tensor, num_slots: int, min_pixels: float | None = None
    ) -> Colouring:
        """Breaks each image into `num_slots` masks.

        Args:
            features: `[B, in_channels, S, S]`.
            scores: random score of every pixel in [0, 1); the next seed is the pixel with the largest
                product of score and remaining scope, `[B, 1, S, S]`.
            num_slots: number of masks K; the last one is what K - 1 seeds leave over.
            min_pixels: stop before the first mask with fewer pixels than this; the scope left there
                becomes the last mask, per image. None uses all slots.
        """
        embeddings = self.embed(features)
        with full_precision(embeddings):
            flat = embeddings.flatten(2)  # [B, E, N]
            rate = self._rate()
            seeds = self._select_seeds(flat.detach(), scores.flatten(1), num_slots - 1, rate)
            points = flat.gather(2, seeds.unsqueeze(1).expand(-1, flat.shape[1], -1))  # [B, E, K-1]
            alpha = self._alpha(flat.unsqueeze(2), points.unsqueeze(3), rate)  # [B, K-1, N]
            # Scope before every step, then the mask each step takes out of it.
            log_scope = F.pad((1.0 - alpha).log().cumsum(dim=1), (0, 0, 1, 0))  # [B, K, N]
            log_masks = log_scope + F.pad(alpha.log(), (0, 0, 0, 1))
            num_active = None
            if min_pixels is not None:
                log_masks, num_active = _stop_early(log_masks, log_scope, min_pixels)
        return Colouring(log_masks.unflatten(2, features.shape[2:]).unsqueeze(2), num_active)

    def _rate(self) -> Tensor:
        """-1 / σ, which squared distances are multiplied by."""
        return -(-self.log_sigma).exp()

    def _alpha(self, embeddings: Tensor, points: Tensor, rate: Tensor) -> Tensor:
        """Kernel value of distances along axis 1, clamped to [0.01, 0.99]; `rate` is -1 / σ."""
        squared = _SquaredDistance.apply(embeddings, points)  # type: ignore[no-untyped-call]
        if self.kernel == "gaussian":
            value = (squared * rate).exp()
        elif self.kernel == "laplacian":
            value = (clamp_straight_through(squared, 1e-10, 1e10).sqrt() * rate).exp()
        else:
            value = (1.0 + squared * rate).relu()
        return clamp_straight_through(value, 0.01, 0.99)

    @torch.no_grad()
    def _select_seeds(
        self, flat: Tensor, scores: Tensor, num_steps: int, rate: Tensor | None = None
    ) -> Tensor:
        """Seed pixel of every step, int64 `[B, num_steps]`.

        No gradient flows through the choice, so the loop that it needs is kept apart from the masks, which
        are then computed for all steps at once.
        """
        seeds: list[Tensor] = []
        rate = self._rate() if rate is None else rate
        left = scores  # times the scope
        for step in range(num_steps):
            if step:
                point = flat.gather(2, seeds[-1].unsqueeze(1).expand(-1, flat.shape[1], -1))
                left = torch.addcmul(left, left, self._alpha(flat, point, rate), value=-1.0)
            seeds.append(left.argmax(dim=1, keepdim=True))
        return torch.cat(seeds, dim=1) if seeds else scores.new_zeros((len(scores), 0), dtype=torch.int64)


def _stop_early(log_masks: Tensor, log_scope: Tensor, min_pixels: float) -> tuple[Tensor, Tensor]:
    """Ends every image's process at its own first mask below `min_pixels`; inputs `[B, K, N]`."""
    large = log_masks[:, :-1].exp().sum(dim=2) >= min_pixels
    accepted = large.cumprod(dim=1).sum(dim=1, keepdim=True)  # [B, 1]
    slot = torch.arange(log_masks.shape[1], device=log_masks.device)
    log_masks = torch.where((slot == accepted).unsqueeze(2), log_scope, log_masks)
    log_masks = log_masks.masked_fill((slot > accepted).unsqueeze(2), float("-inf"))
    return log_masks, accepted.squeeze(1) + 1
