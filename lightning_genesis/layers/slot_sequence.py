"""LSTMs over slots in order, given the scene: the slot prior and the slot posterior of SRI."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_genesis.layers.gaussian import softplus_scale
from lightning_genesis.layers.initial_values import small_xavier
from lightning_genesis.layers.weights import repeated

Head = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps hidden states to mean and scale."""


class Rollout(NamedTuple):
    """Slots that a prior generated one after the other, each `[B, K, D]`."""

    mean: Tensor
    scale: Tensor
    sample: Tensor


class SlotSequence(nn.Module):
    """An LSTM over slots whose first input is the scene, projected to the size of a slot.

    Args:
        latent_dim: size of a slot D.
        hidden_dim: units of the LSTM.
        scene_dim: size of the scene's latent S; None if there is none.
    """

    def __init__(self, latent_dim: int, hidden_dim: int, scene_dim: int | None) -> None:
        super().__init__()
        self.scene_projection: nn.Module | None = None
        if scene_dim is not None:
            self.scene_projection = small_xavier(nn.Sequential(nn.Linear(scene_dim, latent_dim), nn.GELU()))
        self.lstm = nn.LSTM(latent_dim, hidden_dim, batch_first=True)

    def _states(self, inputs: Tensor) -> Tensor:
        """Hidden states of inputs that are all known, `[B, K, H]`."""
        return self.lstm(inputs)[0].contiguous()  # or a linear layer would add its bias by itself

    def project(self, scene: Tensor | None) -> Tensor | None:
        """The first input, `[B, 1, D]`, of a scene `[B, S]`; None without a scene."""
        return None if self.scene_projection is None else self.scene_projection(scene).unsqueeze(1)


class SlotPrior(SlotSequence, ABC):
    """`p(z_k | z_1 ... z_{k-1}, s)` for every slot; without a scene the first slot's is standard normal."""

    @abstractmethod
    def head(self) -> Head:
        """The map from hidden states `[..., H]` to mean and scale, each `[..., D]`, to be used repeatedly."""

    def parameters_of(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale, each `[..., D]`, of hidden states `[..., H]`."""
        return self.head()(hidden)

    def forward(self, latents: Tensor, scene: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and scale of every slot given the slots before it, each `[B, K, D]` like `latents`."""
        first, before = self.project(scene), latents[:, :-1]
        if first is not None:
            return self.parameters_of(self._states(torch.cat([first, before], dim=1)))
        zero = torch.zeros_like(latents[:, :1])
        if latents.shape[1] == 1:
            return zero, torch.ones_like(zero)
        mean, scale = self.parameters_of(self._states(before))
        return torch.cat([zero, mean], dim=1), torch.cat([torch.ones_like(zero), scale], dim=1)

    def imagine(
        self,
        noise: Tensor,
        scene: Tensor | None = None,
        temperature: float = 1.0,
        head: Head | None = None,
    ) -> Rollout:
        """Ancestral samples, slot after slot, from standard normal `noise` `[B, K, D]`.

        Args:
            noise: standard normal numbers.
            scene: `[B, S]`.
            temperature: factor on every scale; 0 gives the means.
            head: another map from hidden states than the model's own.
        """
        head = head or self.head()
        slots: list[Rollout] = []
        lstm, weights = self.lstm, repeated(self.lstm)
        zero = noise.new_zeros((len(noise), lstm.hidden_size))
        state = (zero, zero)
        first = self.project(scene)
        previous = None if first is None else first.squeeze(1)
        for draw in noise.unbind(dim=1):
            if previous is None:
                mean, scale = torch.zeros_like(draw), torch.ones_like(draw)
            else:
                with weights():
                    cell: Any = (lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0)
                    state = torch.lstm_cell(previous, state, *cell)
                mean, scale = head(state[0])
            previous = torch.addcmul(mean, scale, draw, value=temperature)
            slots.append(Rollout(mean, scale, previous))
        return Rollout(*(torch.stack(values, dim=1) for values in zip(*slots, strict=True)))


class ScenePrior(SlotPrior):
    """The slot prior of SRI (Section 3); its heads are two linear layers, neither of them bounded.

    Args: see `SlotSequence`.
    """

    def __init__(self, latent_dim: int, hidden_dim: int = 256, scene_dim: int | None = 128) -> None:
        super().__init__(latent_dim, hidden_dim, scene_dim)
        self.mean = small_xavier(nn.Linear(hidden_dim, latent_dim))
        self.raw_scale = small_xavier(nn.Linear(hidden_dim, latent_dim))

    def head(self) -> Head:
        """See `SlotPrior.head`."""
        weight = torch.cat([self.mean.weight, self.raw_scale.weight])
        bias = torch.cat([self.mean.bias, self.raw_scale.bias])

        def of(hidden: Tensor) -> tuple[Tensor, Tensor]:
            mean, raw = F.linear(hidden, weight, bias).chunk(2, dim=-1)
            return mean, softplus_scale(raw)

        return of


class CorrelatedScale(SlotSequence):
    """Scales of the autoregressive slot posterior of SRI, by the scene and the means of the slots before.

    Without a scene the first input is zero, so that the first slot's scale is a constant.

    Args: see `SlotSequence`.
    """

    def __init__(self, latent_dim: int, hidden_dim: int = 256, scene_dim: int | None = 128) -> None:
        super().__init__(latent_dim, hidden_dim, scene_dim)
        self.raw_scale = small_xavier(nn.Linear(hidden_dim, latent_dim))

    def forward(self, means: Tensor, scene: Tensor | None = None) -> Tensor:
        """Scale of every slot, `[B, K, D]` like `means`."""
        first = self.project(scene)
        first = torch.zeros_like(means[:, :1]) if first is None else first
        return softplus_scale(self.raw_scale(self._states(torch.cat([first, means[:, :-1]], dim=1))))
