"""What priors that are fitted to a trained model's slots have in common."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.scene import Noise

LARGEST = 4096
"""Of every size in a prior's settings; a file may claim any."""


class SetPrior(nn.Module, ABC):
    """A distribution over the slots of a scene, fitted after the model was trained.

    Source (ex-post density estimation): Ghosh, Sajjadi, Vergari, Black, Schölkopf: "From variational to
    deterministic autoencoders", ICLR 2020, Section 4.

    Args:
        dim: size of a slot D.
        num_slots: slots K of the scenes that it is fitted to; other numbers may be drawn.
        ordered: the slots are no set but a sequence, as in GENESIS.
        sizes: of the network, by name.

    Raises:
        ConfigurationError: if a size is not a whole number from 1 to `LARGEST`.
    """

    kind: ClassVar[str]
    """Name by which the command and files know it."""
    learned: ClassVar[bool] = True
    """Trained by gradients of `loss`; otherwise `start` does all."""
    scene_dim: int | None = None
    """Size S of the scene variable; None without one."""
    shift: Tensor
    scale: Tensor

    def __init__(self, dim: int, num_slots: int, ordered: bool = False, **sizes: int) -> None:
        super().__init__()
        for name, value in {"dim": dim, "num_slots": num_slots, **sizes}.items():
            if type(value) is not int or not 1 <= value <= LARGEST:
                raise ConfigurationError(f"{name}={value!r}: expected a whole number from 1 to {LARGEST}")
        self.dim, self.num_slots, self.ordered = dim, num_slots, ordered
        self.sizes = sizes
        # Slots are brought to mean 0 and variance 1, each of the D numbers on its own.
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    @property
    def settings(self) -> dict[str, Any]:
        """What the constructor was called with, as plain data."""
        return {"dim": self.dim, "num_slots": self.num_slots, "ordered": self.ordered, **self.sizes}

    @torch.no_grad()
    def start(self, sets: Tensor) -> None:
        """Sees the slots `[N, K, D]` that it is to be fitted to, once, before the first `loss`."""
        flat = sets.flatten(0, 1)
        self.shift.copy_(flat.mean(dim=0))
        self.scale.copy_(flat.std(dim=0).clamp_min(1e-6))

    def loss(self, sets: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What training lowers, of slots `[B, K, D]`, per image `[B]`."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to train")

    @abstractmethod
    def draw(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
        scene_latent: Tensor | None = None,
    ) -> Tensor:
        """Slots `[num_images, K, D]`.

        Args:
            num_images: how many sets.
            num_slots: K of each; that of the fit if None.
            temperature: factor on the scale of what is drawn.
            noise: its source, a stream for each image.
            scene_latent: scene variables `[num_images, S]`, where the prior has one; drawn if None.
        """

    @abstractmethod
    def log_density(self, sets: Tensor, noise: Noise | None = None) -> Tensor:
        """Log density of slots `[B, K, D]` as a tuple, or an unbiased estimate or bound of it, nats `[B]`."""

    def _standard(self, sets: Tensor) -> Tensor:
        return (sets - self.shift) / self.scale

    def _volume(self, num_slots: int) -> Tensor:
        """Log of the volume by which `_standard` shrinks a set, a scalar."""
        return num_slots * self.scale.log().sum()


def normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers like `like`; drawn on the CPU, so that a seed means the same anywhere."""
    return torch.randn(like.shape, generator=generator).to(like)
