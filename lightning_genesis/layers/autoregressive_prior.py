"""The prior over slots: an LSTM over latents (GENESIS, Equations 1 and 6; GENESIS-V2, Equation 2)."""

from torch import Tensor, nn

from lightning_genesis.layers.slot_sequence import Head, SlotPrior


def prior_parameters(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `tanh` and scale `sigmoid(x + 4) + 1e-4` from the halves of the last axis.

    Neither function is in the papers; the published numbers were made with them. They keep the mean in
    (-1, 1) and the scale in (1e-4, 1.0001).
    """
    mean, scale = raw.chunk(2, dim=-1)
    return mean.tanh(), (scale + 4.0).sigmoid() + 1e-4


class AutoregressivePrior(SlotPrior):
    """`p(z_k | z_1 ... z_{k-1})` for every slot; the first slot's is standard normal, or given the scene.

    Args:
        latent_dim: size of a slot's latent.
        hidden_dim: units of the LSTM.
        scene_dim: size of a latent of the whole scene (SRI, Section 5.4); none in GENESIS and GENESIS-V2.
    """

    def __init__(self, latent_dim: int, hidden_dim: int = 256, scene_dim: int | None = None) -> None:
        super().__init__(latent_dim, hidden_dim, scene_dim)
        self.linear = nn.Linear(hidden_dim, 2 * latent_dim)

    def head(self) -> Head:
        """See `SlotPrior.head`."""
        return lambda hidden: prior_parameters(self.linear(hidden).float())

    def rollout(
        self, noise: Tensor, temperature: float = 1.0, bounded: bool = True, scene: Tensor | None = None
    ) -> Tensor:
        """Ancestral samples `[B, K, D]`, slot after slot, from standard normal `noise` `[B, K, D]`.

        Args:
            noise: standard normal numbers.
            temperature: factor on every scale; 0 gives the means.
            bounded: put the means through `tanh` as in training; the released sampler of GENESIS does not.
            scene: `[B, S]`, where the prior has one.
        """

        def unbounded(hidden: Tensor) -> tuple[Tensor, Tensor]:
            raw = self.linear(hidden).float()
            return raw.chunk(2, dim=-1)[0], prior_parameters(raw)[1]

        return self.imagine(noise, scene, temperature, None if bounded else unbounded).sample
