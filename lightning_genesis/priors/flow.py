"""The set flow as a prior over slots, without a scene variable and with one."""

import torch
from torch import Tensor

from lightning_genesis.layers.scene_encoder import SetEncoder, scene_to_sample
from lightning_genesis.layers.set_flow import SetFlow
from lightning_genesis.objectives.divergence import gaussian_kl
from lightning_genesis.priors.base import SetPrior, normal
from lightning_genesis.scene import Noise, draw_normal

EXACT_UP_TO = 32
"""Numbers in a set up to which the density takes every derivative; it is estimated above."""
NUM_PROBES = 4
KL_WEIGHT = 0.1
"""Of the scene variable's KL. At 1 the flow learned to do without the scene."""


class SetFlowPrior(SetPrior):
    """A permutation-equivariant flow from noise to the set of slots.

    Args:
        dim: see `SetPrior`.
        num_slots: see `SetPrior`.
        ordered: see `SetPrior`; the flow then knows every slot's place.
        width: of the transformer.
        num_layers: of the transformer.
        num_heads: of its attention.
    """

    kind = "set_flow"

    def __init__(
        self,
        dim: int,
        num_slots: int,
        ordered: bool = False,
        width: int = 64,
        num_layers: int = 3,
        num_heads: int = 4,
    ) -> None:
        super().__init__(dim, num_slots, ordered, width=width, num_layers=num_layers, num_heads=num_heads)
        self.flow = SetFlow(dim, width, num_layers, num_heads, num_positions=num_slots if ordered else 0)

    def loss(self, sets: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The flow-matching error at a random time, `[B]`; see `SetFlow.loss`."""
        slots = self._standard(sets)
        return self.flow.loss(slots, normal(slots, generator), even_times(slots, generator))

    def draw(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
        scene_latent: Tensor | None = None,
    ) -> Tensor:
        """See `SetPrior.draw`; the temperature is that of the noise that is carried to the slots."""
        shape = (num_images, num_slots or self.num_slots, self.dim)
        slots = self.flow.push(temperature * draw_normal(noise, shape, self.shift))
        return self.shift + self.scale * slots

    def log_density(self, sets: Tensor, noise: Noise | None = None) -> Tensor:
        """See `SetPrior.log_density`; without bias, exact for small sets but for the solver's error."""
        slots = self._standard(sets)
        return self.flow.log_density(slots, probes=_probes(slots, noise)) - self._volume(sets.shape[1])


class SceneSetFlowPrior(SetPrior):
    """A set flow given a standard normal scene variable, which an encoder infers from the set in training.

    The objective is the flow's mean squared error plus the KL of `q(s | slots)` from the standard normal,
    `KL_WEIGHT` times its share for each of the K D numbers of a set. So a model that has no scene
    variable gets one: s stays, the slots' noise is drawn anew, and the scene is "the same again".

    Args:
        dim: see `SetPrior`.
        num_slots: see `SetPrior`.
        ordered: see `SetPrior`.
        width: of the transformer.
        num_layers: of the transformer.
        num_heads: of its attention.
        scene_size: size S of the scene variable.
    """

    kind = "scene_set_flow"

    def __init__(
        self,
        dim: int,
        num_slots: int,
        ordered: bool = False,
        width: int = 64,
        num_layers: int = 3,
        num_heads: int = 4,
        scene_size: int = 8,
    ) -> None:
        sizes = {"width": width, "num_layers": num_layers, "num_heads": num_heads, "scene_size": scene_size}
        super().__init__(dim, num_slots, ordered, **sizes)
        self.scene_dim = scene_size
        places = num_slots if ordered else 0
        self.flow = SetFlow(dim, width, num_layers, num_heads, scene_size, places)
        self.lift = torch.nn.Linear(dim, width)
        self.encoder = SetEncoder(width, scene_size, num_layers)

    def infer(self, sets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of the scene variable, each `[B, S]`, of scenes with slots `[B, K, D]`."""
        return self.encoder(self.lift(self._standard(sets)))

    def loss(self, sets: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Error of the flow and weighted KL of the scene variable, `[B]`."""
        mean, scale = self.infer(sets)
        scene = mean + scale * normal(mean, generator)
        slots = self._standard(sets)
        error = self.flow.loss(slots, normal(slots, generator), even_times(slots, generator), scene)
        kl = gaussian_kl(mean, scale, torch.zeros_like(mean), torch.ones_like(scale))
        return error + KL_WEIGHT * kl / sets[0].numel()

    def draw(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
        scene_latent: Tensor | None = None,
    ) -> Tensor:
        """See `SetPrior.draw`; draws the scene first, where it is not given."""
        scene = scene_to_sample(scene_latent, num_images, self.scene_dim, temperature, noise, self.shift)
        shape = (num_images, num_slots or self.num_slots, self.dim)
        slots = self.flow.push(temperature * draw_normal(noise, shape, self.shift), scene)
        return self.shift + self.scale * slots

    def log_density(self, sets: Tensor, noise: Noise | None = None) -> Tensor:
        """A lower bound, `log p(z | s) - log q(s | z) + log p(s)` at one s from the encoder, nats `[B]`."""
        slots = self._standard(sets)
        mean, scale = self.infer(sets)
        draws = draw_normal(noise, mean.shape, mean)
        scene = mean + scale * draws
        ratio = (0.5 * draws.square() + scale.log() - 0.5 * scene.square()).sum(dim=1)
        given_scene = self.flow.log_density(slots, scene, probes=_probes(slots, noise))
        return given_scene + ratio - self._volume(sets.shape[1])


def even_times(slots: Tensor, generator: torch.Generator | None) -> Tensor:
    """Times in [0, 1) of a batch, one in each of B equal parts of it, in random order `[B]`."""
    count = len(slots)
    parts = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return (parts / count).to(slots)


def _probes(slots: Tensor, noise: Noise | None) -> Tensor | None:
    if slots[0].numel() <= EXACT_UP_TO:
        return None
    numbers = draw_normal(noise, (len(slots), NUM_PROBES, *slots.shape[1:]), slots)
    return torch.where(numbers < 0.0, -1.0, 1.0).to(slots).transpose(0, 1)
