"""The autoregressive prior over slots of GENESIS (Section 3.2) and GENESIS-V2: an LSTM over latents."""

import torch
from torch import Tensor, nn


def prior_parameters(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `tanh` and scale `sigmoid(x + 4) + 1e-4` from the halves of the last axis.

    Neither function is in the papers; the published numbers were made with them. They keep the mean in
    (-1, 1) and the scale in (1e-4, 1.0001).
    """
    mean, scale = raw.chunk(2, dim=-1)
    return mean.tanh(), (scale + 4.0).sigmoid() + 1e-4


class AutoregressivePrior(nn.Module):
    """`p(z_k | z_1 ... z_{k-1})` for every slot; the first slot's is standard normal.

    Args:
        latent_dim: size of a slot's latent.
        hidden_dim: units of the LSTM.
    """

    def __init__(self, latent_dim: int, hidden_dim: int = 256) -> None:
        super().__init__()
        self.lstm = nn.LSTM(latent_dim, hidden_dim, batch_first=True)
        self.linear = nn.Linear(hidden_dim, 2 * latent_dim)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of every slot's prior given the slots before it, each `[B, K, D]`."""
        first = torch.zeros_like(latents[:, :1])
        if latents.shape[1] == 1:
            return first, torch.ones_like(first)
        hidden, _ = self.lstm(latents[:, :-1])
        mean, scale = prior_parameters(self.linear(hidden).float())
        return torch.cat([first, mean], dim=1), torch.cat([torch.ones_like(first), scale], dim=1)

    def rollout(self, noise: Tensor, temperature: float = 1.0, bounded: bool = True) -> Tensor:
        """Ancestral samples `[B, K, D]`, slot after slot, from standard normal `noise` `[B, K, D]`.

        Args:
            noise: standard normal numbers.
            temperature: factor on every scale; 0 gives the means.
            bounded: put the means through `tanh` as in training; the released sampler of GENESIS does not.
        """
        samples = [temperature * noise[:, 0]]
        state: tuple[Tensor, Tensor] | None = None
        for slot in range(1, noise.shape[1]):
            hidden, state = self.lstm(samples[-1].unsqueeze(1), state)
            raw = self.linear(hidden.squeeze(1)).float()
            mean, scale = prior_parameters(raw)
            if not bounded:
                mean = raw.chunk(2, dim=-1)[0]
            samples.append(mean + temperature * scale * noise[:, slot])
        return torch.stack(samples, dim=1)
