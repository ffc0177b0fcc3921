"""Posteriors of a scene variable given the slots (SRI, Section 4.1, Equations 5, 30 and 31)."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.gaussian import softplus_scale
from lightning_genesis.layers.initial_values import small_xavier
from lightning_genesis.scene import Noise, draw_gaussian, draw_normal

SCENE_STATISTICS = ("scene_mean", "scene_scale", "scene_sample")
"""Names of what is known about the scene variable, in the latents of a Scene."""


class SetAttention(nn.Module):
    """A residual block of self-attention over a set, whose values compare an element with every other.

    One head, no positions, so the result is equivariant to the order of the set. Where code and paper differ,
    the code is followed: the value of a pair is a two-layer MLP of `[x_i, x_i - x_j]` (paper: one linear map
    of `[x_j, x_i - x_j]`).

    Args:
        dim: size of an element D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.key = small_xavier(nn.Linear(dim, dim, bias=False))
        self.query = small_xavier(nn.Linear(dim, dim, bias=False))
        self.value = small_xavier(nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, dim)))
        self.norm = nn.LayerNorm(dim)
        self.mlp = small_xavier(nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps sets `[B, K, D]` to `[B, K, D]`."""
        first, activation, second = self.value
        assert isinstance(first, nn.Linear)
        # Neither linear map sees a pair, so they cost K and not K^2: the first splits into what x_i and x_j
        # contribute, the second commutes with the mean. One product for all that x goes into.
        own, difference = first.weight.chunk(2, dim=1)
        weight = torch.cat([self.query.weight, self.key.weight, own + difference, difference])
        query, key, receiver, sender = F.linear(x, weight).chunk(4, dim=2)
        attention = (query @ key.transpose(1, 2) * x.shape[2] ** -0.5).softmax(dim=2)
        receiver = (receiver + first.bias).unsqueeze(2)
        pairs = activation(receiver - sender.unsqueeze(1))  # [B, K, K, D]
        attended = second((attention.unsqueeze(2) @ pairs).squeeze(2))
        return x + self.mlp(self.norm(x + attended))


class SceneEncoder(nn.Module, ABC):
    """`q(s | z_1 ... z_K)`: a Gaussian over the scene, out of an embedding of its slots.

    Args:
        embedding_dim: size of the embedding E.
        scene_dim: size of the scene variable S.
    """

    def __init__(self, embedding_dim: int, scene_dim: int) -> None:
        super().__init__()
        self.projection = small_xavier(nn.Sequential(nn.Linear(embedding_dim, scene_dim), nn.GELU()))
        self.mean = small_xavier(nn.Linear(scene_dim, scene_dim))
        self.raw_scale = small_xavier(nn.Linear(scene_dim, scene_dim))

    @abstractmethod
    def embed(self, slots: Tensor) -> Tensor:
        """The embedding `[B, E]` of slots `[B, K, D]`."""

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale, each `[B, S]`, of the scene with slots `[B, K, D]`."""
        hidden = self.projection(self.embed(slots))
        return self.mean(hidden), softplus_scale(self.raw_scale(hidden))

    def infer(self, slots: Tensor, noise: Noise | None) -> dict[str, Tensor]:
        """Mean, scale and sample by the names of `SCENE_STATISTICS`; draws noise `[B, S]`."""
        mean, scale = self(slots)
        sample = draw_gaussian(noise, mean, scale)
        return dict(zip(SCENE_STATISTICS, (mean, scale, sample), strict=True))


class SetEncoder(SceneEncoder):
    """Does not depend on the order of the slots: `num_layers` blocks of `SetAttention`, then the sum.

    Args:
        dim: size of a slot D.
        scene_dim: size of the scene variable S.
        num_layers: number of blocks L.
    """

    def __init__(self, dim: int, scene_dim: int, num_layers: int = 3) -> None:
        super().__init__(dim, scene_dim)
        self.blocks = nn.Sequential(*(SetAttention(dim) for _ in range(num_layers)))

    def embed(self, slots: Tensor) -> Tensor:
        """See `SceneEncoder.embed`."""
        return self.blocks(slots).sum(dim=1)


class SequenceEncoder(SceneEncoder):
    """Reads slots that have an order: an LSTM's state after the last one.

    Args:
        dim: size of a slot D.
        scene_dim: size of the scene variable S.
        hidden_dim: units of the LSTM.
    """

    def __init__(self, dim: int, scene_dim: int, hidden_dim: int = 256) -> None:
        super().__init__(hidden_dim, scene_dim)
        self.lstm = nn.LSTM(dim, hidden_dim, batch_first=True)

    def embed(self, slots: Tensor) -> Tensor:
        """See `SceneEncoder.embed`."""
        return self.lstm(slots)[1][0][-1]


def scene_to_sample(
    scene_latent: Tensor | None,
    num_images: int,
    scene_dim: int | None,
    temperature: float,
    noise: Noise | None,
    like: Tensor,
) -> Tensor | None:
    """The scene variables that samples start from, `[num_images, S]`; None for a model without any.

    Args:
        scene_latent: given ones, which are taken as they are; drawn from `N(0, temperature²)` if None.
        num_images: how many.
        scene_dim: their size S; None for a model without any.
        temperature: standard deviation of what is drawn.
        noise: draws `[num_images, S]` from here, if `scene_latent` is None.
        like: of the device and type that they get.

    Raises:
        ConfigurationError: if `scene_latent` has another shape, or if the model has no scene variable.
    """
    if scene_latent is None:
        return None if scene_dim is None else temperature * draw_normal(noise, (num_images, scene_dim), like)
    if scene_dim is None:
        raise ConfigurationError("scene_latent was given: the model has no scene variable; leave it out")
    if scene_latent.shape != (num_images, scene_dim):
        raise ConfigurationError(
            f"scene_latent has shape {list(scene_latent.shape)}, expected {[num_images, scene_dim]}"
        )
    return scene_latent.to(like)
