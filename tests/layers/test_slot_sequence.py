"""SRI's slot prior and slot posterior against an LSTM written out, gate by gate."""

import pytest
import torch
from torch import Tensor

from lightning_genesis.layers import AutoregressivePrior
from lightning_genesis.layers.gaussian import softplus_scale
from lightning_genesis.layers.slot_sequence import CorrelatedScale, ScenePrior, SlotSequence


def plain_lstm(module: SlotSequence, inputs: Tensor) -> Tensor:
    """Hidden states of inputs `[B, K, D]` (gates i, f, g, o)."""
    lstm = module.lstm
    hidden = cell = inputs.new_zeros(len(inputs), lstm.hidden_size)
    states = []
    for x in inputs.unbind(dim=1):
        gates = x @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + hidden @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        i, f, g, o = gates.chunk(4, dim=1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        states.append(hidden)
    return torch.stack(states, dim=1)


def randomised(module: SlotSequence) -> SlotSequence:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return module.double()


def draws(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("num_slots", [1, 2, 5])
@torch.no_grad()
def test_prior_given_the_scene(num_slots: int) -> None:
    prior = randomised(ScenePrior(6, 10, 4))
    slots, scene = draws(3, num_slots, 6), draws(3, 4)
    assert prior.scene_projection is not None
    inputs = torch.cat([prior.scene_projection(scene).unsqueeze(1), slots[:, :-1]], dim=1)
    hidden = plain_lstm(prior, inputs)
    mean, scale = prior(slots, scene)
    torch.testing.assert_close(mean, prior.mean(hidden))
    torch.testing.assert_close(scale, softplus_scale(prior.raw_scale(hidden)))


@pytest.mark.parametrize("num_slots", [1, 2, 5])
@pytest.mark.parametrize("kind", [ScenePrior, AutoregressivePrior])
@torch.no_grad()
def test_first_slot_without_a_scene_is_standard_normal(kind: type, num_slots: int) -> None:
    prior, slots = randomised(kind(6, 10, None)), draws(3, num_slots, 6)
    mean, scale = prior(slots)
    assert torch.equal(mean[:, 0], torch.zeros(3, 6).double())
    assert torch.equal(scale[:, 0], torch.ones(3, 6).double())
    if num_slots > 1:
        expected = prior.parameters_of(plain_lstm(prior, slots[:, :-1]))
        found = (mean[:, 1:], scale[:, 1:])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("scene_dim", [None, 4])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", [ScenePrior, AutoregressivePrior])
@torch.no_grad()
def test_imagination_is_the_prior_slot_by_slot(kind: type, temperature: float, scene_dim: int | None) -> None:
    prior, noise = randomised(kind(6, 10, scene_dim)), draws(3, 5, 6)
    scene = None if scene_dim is None else draws(3, scene_dim)
    rollout = prior.imagine(noise, scene, temperature)
    mean, scale = prior(rollout.sample, scene)
    torch.testing.assert_close((rollout.mean, rollout.scale), (mean, scale))
    torch.testing.assert_close(rollout.sample, mean + temperature * scale * noise)


@pytest.mark.parametrize("scene_dim", [None, 4])
@torch.no_grad()
def test_scales_of_the_posterior(scene_dim: int | None) -> None:
    posterior, means = randomised(CorrelatedScale(6, 10, scene_dim)), draws(3, 5, 6)
    scene = None if scene_dim is None else draws(3, scene_dim)
    first = torch.zeros(3, 1, 6).double()
    if scene is not None:
        assert posterior.scene_projection is not None
        first = posterior.scene_projection(scene).unsqueeze(1)
    hidden = plain_lstm(posterior, torch.cat([first, means[:, :-1]], dim=1))
    scale = posterior(means, scene)
    torch.testing.assert_close(scale, softplus_scale(posterior.raw_scale(hidden)))
    changed = means.clone()
    changed[:, 3] += 1.0
    torch.testing.assert_close(posterior(changed, scene)[:, :4], scale[:, :4])  # no slot sees later ones
    assert not torch.allclose(posterior(changed, scene)[:, 4], scale[:, 4])


def test_gradients_go_through_imagined_samples() -> None:
    prior, scene = randomised(ScenePrior(6, 10, 4)), draws(3, 4).requires_grad_()
    prior.imagine(draws(3, 5, 6), scene).mean[:, 4].sum().backward()
    assert scene.grad is not None
    assert scene.grad.any()
