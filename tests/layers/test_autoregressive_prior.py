"""The prior over slots against a plain LSTM written out, gate by gate."""

import pytest
import torch
from torch import Tensor

from lightning_genesis.layers import AutoregressivePrior
from lightning_genesis.layers.autoregressive_prior import prior_parameters


def plain_lstm_prior(prior: AutoregressivePrior, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of every slot, in float64, from the equations of an LSTM (gates i, f, g, o)."""
    w_ih, w_hh, b_ih, b_hh = (
        getattr(prior.lstm, name).double()
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    )
    batch, num_slots, dim = latents.shape
    hidden = cell = torch.zeros(batch, prior.lstm.hidden_size, dtype=torch.float64)
    means, scales = [torch.zeros(batch, dim).double()], [torch.ones(batch, dim).double()]
    for slot in range(num_slots - 1):
        i, f, g, o = (latents[:, slot].double() @ w_ih.T + b_ih + hidden @ w_hh.T + b_hh).chunk(4, dim=1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        raw = hidden @ prior.linear.weight.double().T + prior.linear.bias.double()
        means.append(torch.tanh(raw[:, :dim]))
        scales.append(torch.sigmoid(raw[:, dim:] + 4.0) + 1e-4)
    return torch.stack(means, dim=1), torch.stack(scales, dim=1)


@pytest.mark.parametrize("num_slots", [1, 2, 5])
@torch.no_grad()
def test_prior(num_slots: int) -> None:
    torch.manual_seed(0)
    prior, latents = AutoregressivePrior(6, 10), torch.randn(3, num_slots, 6)
    for found, expected in zip(prior(latents), plain_lstm_prior(prior, latents), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@torch.no_grad()
def test_rollout(temperature: float) -> None:
    torch.manual_seed(0)
    prior, noise = AutoregressivePrior(6, 10), torch.randn(3, 5, 6)
    sample = prior.rollout(noise, temperature)
    mean, scale = plain_lstm_prior(prior, sample)
    torch.testing.assert_close(sample.double(), mean + temperature * scale * noise, rtol=1e-5, atol=1e-6)


def test_ranges() -> None:
    mean, scale = prior_parameters(torch.tensor([-100.0, 0.0, 100.0, -100.0, 0.0, 100.0]))
    assert mean.tolist() == [-1.0, 0.0, 1.0]
    assert scale.tolist() == pytest.approx([1e-4, 0.98211, 1.0001], abs=1e-5)
