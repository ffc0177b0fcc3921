"""A flow over sets: a set transformer that is trained by flow matching and says the density of a set.

Lipman, Chen, Ben-Hamu, Nickel, Le: "Flow Matching for Generative Modeling", ICLR 2023. Lee, Lee, Kim,
Kosiorek, Choi, Teh: "Set Transformer", ICML 2019. Peebles, Xie: "Scalable Diffusion Models with
Transformers", ICCV 2023, for the way that time modulates a block.
"""

from collections.abc import Callable
from math import log, pi

import torch
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.precision import full_precision

NUM_STEPS = 16
"""Runge-Kutta steps from noise to a sample, four evaluations of the network each."""
TIME_FREQUENCIES = 8
LAST_NOISE = 0.01
"""Noise that is left where the bound of `cross_entropy` ends; scales of slots should be larger."""

Velocity = Callable[[Tensor, Tensor], Tensor]


def integrate(velocity: Velocity, state: Tensor, start: float, end: float, num_steps: int) -> Tensor:
    """`state` at time `end`, by the classical Runge-Kutta method of fourth order with steps of one size.

    Args:
        velocity: of a state at a time `[]`.
        state: at time `start`, of any shape.
        start: first time.
        end: last time; may be the smaller one.
        num_steps: number of steps; the error falls with its fourth power.
    """
    step = (end - start) / num_steps
    for number in range(num_steps):
        time = state.new_tensor(start + number * step)
        first = velocity(state, time)
        second = velocity(state + 0.5 * step * first, time + 0.5 * step)
        third = velocity(state + 0.5 * step * second, time + 0.5 * step)
        fourth = velocity(state + step * third, time + step)
        state = state + step / 6.0 * (first + 2.0 * second + 2.0 * third + fourth)
    return state


class ModulatedBlock(nn.Module):
    """Self-attention over a set and an MLP, both shifted, scaled and gated by a condition (adaLN-Zero).

    The gates start at zero, so that the block starts as the identity.

    Args:
        width: size of an element W.
        num_heads: of the attention.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Maps sets `[B, K, W]` to `[B, K, W]`, given conditions `[B, W]`."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)[:, None].chunk(
            6, dim=2
        )
        normed = self.attention_norm(x) * (1.0 + scale) + shift
        x = x + gate * self.attention(normed, normed, normed, need_weights=False)[0]
        return x + mlp_gate * self.mlp(self.mlp_norm(x) * (1.0 + mlp_scale) + mlp_shift)


class SetFlow(nn.Module):
    """A velocity field that carries a set of standard normal elements to a set of slots, from time 0 to 1.

    Nothing in it depends on the order of the elements, so the field is equivariant to permutations and the
    density that it defines is invariant to them; the number of elements is free. It is trained by flow
    matching along straight lines `(1 - t) noise + t slots`, whose velocity is `slots - noise`.

    Args:
        dim: size of an element D.
        width: of the transformer W.
        num_layers: blocks of the transformer.
        num_heads: of their attention; divides the width.
        condition_dim: size S of a vector that conditions the whole set; none if None.
        num_positions: elements that have a place of their own, the first ones, for slots that are no set:
            their order is then learned. An element beyond them has the last one's place.

    Raises:
        ConfigurationError: if a size does not fit.
    """

    def __init__(
        self,
        dim: int,
        width: int = 64,
        num_layers: int = 3,
        num_heads: int = 4,
        condition_dim: int | None = None,
        num_positions: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {
            "dim": dim,
            "width": width,
            "num_layers": num_layers,
            "num_heads": num_heads,
        }.items():
            if value < 1:
                raise ConfigurationError(f"{name}={value} is too small: use at least 1")
        if width % num_heads:
            raise ConfigurationError(
                f"width={width} does not divide into {num_heads} heads: use a multiple of it"
            )
        self.dim = dim
        self.embedding = nn.Linear(dim, width)
        self.places = nn.Embedding(num_positions, width) if num_positions else None
        self.time = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, width)
        self.blocks = nn.ModuleList(ModulatedBlock(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, sets: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        """Velocity `[B, K, D]` of sets `[B, K, D]` at times `[B]`, given conditions `[B, S]` if need be."""
        exponents = torch.arange(TIME_FREQUENCIES, device=sets.device, dtype=sets.dtype)
        angles = time[:, None] * (pi * 1.5**exponents)
        context = self.time(torch.cat([angles.cos(), angles.sin()], dim=1))
        if self.condition is not None:
            if condition is None:
                raise ConfigurationError("the flow is conditioned: give a condition")
            context = context + self.condition(condition)
        x = self.embedding(sets)
        if self.places is not None:
            places = torch.arange(sets.shape[1], device=sets.device).clamp(max=self.places.num_embeddings - 1)
            x = x + self.places(places)
        context = nn.functional.silu(context)
        for block in self.blocks:
            x = block(x, context)
        return self.output(self.norm(x))

    def loss(self, sets: Tensor, noise: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        """Squared error of the velocity on the line from noise to slots, mean over slots and sizes, `[B]`.

        Its minimum is not 0 but the variance of the velocity given the point on the line (Lipman et al.,
        Theorem 2).

        Args:
            sets: slots, `[B, K, D]`.
            noise: standard normal numbers, `[B, K, D]`.
            time: in [0, 1], `[B]`.
            condition: `[B, S]`, where the flow has one.
        """
        share = time[:, None, None]
        velocity = self((1.0 - share) * noise + share * sets, time, condition)
        return (velocity - (sets - noise)).square().mean(dim=(1, 2))

    def cross_entropy(
        self, sets: Tensor, noise: Tensor, place: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """An unbiased estimate of an upper bound of `-log p(sets)`, in nats, `[B]`, with gradient to `sets`.

        The variational bound of diffusion models (Kingma et al., "Variational diffusion models", 2021,
        Equation 15) on the line `z_t = (1 - t) noise + t z`, for which it weighs the velocity's squared error
        by `t / (1 - t)`. Times are drawn so that `log(1 - t)` is uniform down to `log LAST_NOISE`, where a
        Gaussian around `z_t / t` ends it. It is tight where the velocity is the best there is; p is then what
        `push` draws from.

        Args:
            sets: slots, `[B, K, D]`.
            noise: standard normal numbers, `[B, K, D]`.
            place: uniform numbers in [0, 1), `[B]`, which give the times.
            condition: `[B, S]`, where the flow has one.
        """
        left = (place * log(LAST_NOISE)).exp()[:, None, None]  # 1 - t
        time = 1.0 - left
        velocity = self(left * noise + time * sets, time.flatten(), condition)
        error = time * (velocity - (sets - noise)).square()
        size = sets[0].numel()
        end = 0.5 * size * (log(2.0 * pi) + 1.0) + size * log(LAST_NOISE / (1.0 - LAST_NOISE))
        return end - log(LAST_NOISE) * error.sum(dim=(1, 2))

    def _field(self, condition: Tensor | None) -> Velocity:
        return lambda sets, time: self(sets, time.expand(len(sets)), condition)

    def push(self, noise: Tensor, condition: Tensor | None = None, num_steps: int = NUM_STEPS) -> Tensor:
        """The slots `[B, K, D]` that noise `[B, K, D]` is carried to."""
        with full_precision(noise):
            return integrate(self._field(condition), noise, 0.0, 1.0, num_steps)

    @torch.enable_grad()
    def log_density(
        self,
        sets: Tensor,
        condition: Tensor | None = None,
        num_steps: int = NUM_STEPS,
        probes: Tensor | None = None,
    ) -> Tensor:
        """Log density of slots, in nats, by the instantaneous change of variables, `[B]`; no gradient.

        `log p(z) = log N(z at time 0) - the integral of the velocity's divergence` (Chen et al., "Neural
        ordinary differential equations", 2018, Theorem 1), along the flow backwards.

        Args:
            sets: slots as a tuple, `[B, K, D]`; every order of them has the same density.
            condition: `[B, S]`, where the flow has one.
            num_steps: of the solver.
            probes: random signs or standard normal numbers, `[P, B, K, D]`: the divergence is estimated from
                P products with them, without bias (Hutchinson). All K D derivatives are taken if None.
        """
        size = sets[0].numel()

        def velocity(state: Tensor, time: Tensor) -> Tensor:
            place = state[:, :size].detach().unflatten(1, sets.shape[1:]).requires_grad_()
            value = self(place, time.expand(len(place)), condition)
            return torch.cat([value.detach().flatten(1), _divergence(value, place, probes)[:, None]], dim=1)

        with full_precision(sets):
            state = torch.cat([sets.flatten(1), sets.new_zeros(len(sets), 1)], dim=1)
            state = integrate(velocity, state, 1.0, 0.0, num_steps)
            start, change = state[:, :size], state[:, size]
            return -0.5 * start.square().sum(dim=1) - 0.5 * size * log(2.0 * pi) + change


def _divergence(value: Tensor, place: Tensor, probes: Tensor | None) -> Tensor:
    """Trace of the derivative of `value` by `place`, both `[B, K, D]`, per image `[B]`."""
    total = place.new_zeros(len(place))
    if probes is not None:
        for probe in probes:
            (product,) = torch.autograd.grad(value, place, probe, retain_graph=True)
            total = total + (product * probe).sum(dim=(1, 2))
        return total / len(probes)
    for number, component in enumerate(value.flatten(1).sum(dim=0)):
        (row,) = torch.autograd.grad(component, place, retain_graph=True)
        total = total + row.flatten(1)[:, number]
    return total.detach()
