"""An LSTM over slots in random order: the prior of GENESIS-V2, fitted after training."""

from math import log, pi

import torch
from torch import Tensor, nn

from lightning_genesis.layers.gaussian import softplus_scale
from lightning_genesis.layers.slot_sequence import Head, SlotPrior
from lightning_genesis.priors.base import SetPrior
from lightning_genesis.scene import Noise, draw_normal


class _Sequence(SlotPrior):
    """Mean and scale of every slot given those before, neither of them bounded; of the first one, constants.

    Args:
        dim: size of a slot D.
        hidden_dim: units of the LSTM.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        # a "scene" of one constant number makes the first slot's mean and scale learned ones
        super().__init__(dim, hidden_dim, scene_dim=1)
        self.mean, self.raw_scale = nn.Linear(hidden_dim, dim), nn.Linear(hidden_dim, dim)

    def head(self) -> Head:
        """See `SlotPrior.head`."""
        return lambda hidden: (self.mean(hidden), softplus_scale(self.raw_scale(hidden)))


class SequencePrior(SetPrior):
    """Gaussians whose means and scales follow from the slots before, in an order drawn anew at every step.

    The form of GENESIS-V2's prior (Section 3.3), without the bounds on means and scales that its training
    has, which slots that were fitted afterwards would not respect. Ordered slots keep their order.

    Args:
        dim: see `SetPrior`.
        num_slots: see `SetPrior`.
        ordered: see `SetPrior`.
        hidden_dim: units of the LSTM.
    """

    kind = "lstm"

    def __init__(self, dim: int, num_slots: int, ordered: bool = False, hidden_dim: int = 256) -> None:
        super().__init__(dim, num_slots, ordered, hidden_dim=hidden_dim)
        self.network = _Sequence(dim, hidden_dim)

    def _log_density(self, slots: Tensor) -> Tensor:
        """Of standardised slots in the order given."""
        mean, scale = self.network(slots, slots.new_ones(len(slots), 1))
        return -(0.5 * ((slots - mean) / scale).square() + scale.log() + 0.5 * log(2.0 * pi)).sum(dim=(1, 2))

    def loss(self, sets: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Negative log density of standardised slots in random order, nats `[B]`."""
        slots = self._standard(sets)
        if not self.ordered:
            order = torch.rand(slots.shape[:2], generator=generator).argsort(dim=1).to(slots.device)
            slots = slots.gather(1, order[..., None].expand_as(slots))
        return -self._log_density(slots)

    def draw(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
        scene_latent: Tensor | None = None,
    ) -> Tensor:
        """See `SetPrior.draw`."""
        normals = draw_normal(noise, (num_images, num_slots or self.num_slots, self.dim), self.shift)
        slots = self.network.imagine(normals, normals.new_ones(num_images, 1), temperature).sample
        return self.shift + self.scale * slots

    def log_density(self, sets: Tensor, noise: Noise | None = None) -> Tensor:
        """In the order given, for a set one of the K! that are as good: a bound on average, nats `[B]`."""
        return self._log_density(self._standard(sets)) - self._volume(sets.shape[1])
