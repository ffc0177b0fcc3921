"""GENESIS-V2 with a set flow as its prior: its KL, its noise, its samples."""

import pytest
import torch

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import FlowGenesisV2, GenesisV2
from lightning_genesis.scene import IndexedNoise, draw_normal, draw_uniform

SMALL = {"latent_dim": 3, "feature_dim": 8, "decoder_stages": 2, "flow_width": 8, "flow_heads": 2}


@pytest.fixture
def model() -> FlowGenesisV2:
    torch.manual_seed(0)
    return FlowGenesisV2(3, 32, **SMALL).eval()


def test_kl_is_cross_entropy_minus_entropy(model: FlowGenesisV2) -> None:
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        scene = model(images, IndexedNoise(0, [5, 6]))
    again = IndexedNoise(0, [5, 6])
    draw_uniform(again, (2, 1, 32, 32), images), draw_normal(again, (2, 3, 3), images)
    place, noise = draw_uniform(again, (2, 1), images).flatten(), draw_normal(again, (2, 3, 3), images)
    latents = scene.latents
    with torch.no_grad():
        bound = model.flow.cross_entropy(latents["sample"], noise, place)
    posterior = torch.distributions.Normal(latents["mean"], latents["scale"])
    expected = bound - posterior.entropy().sum(dim=(1, 2))
    torch.testing.assert_close(model._latent_kl(scene, analytic=True), expected)
    expected = bound + posterior.log_prob(latents["sample"]).sum(dim=(1, 2))
    torch.testing.assert_close(model._latent_kl(scene, analytic=False), expected)
    plain = GenesisV2(3, 32, autoregressive_prior=False, latent_dim=3, feature_dim=8, decoder_stages=2)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("flow.")})
    with torch.no_grad():
        same = plain.eval()(images, IndexedNoise(0, [5, 6]))
    assert torch.equal(same.reconstruction, scene.reconstruction)


def test_encoder_and_flow_learn_from_the_kl(model: FlowGenesisV2) -> None:
    images = torch.rand(2, 3, 32, 32)
    (terms,) = model.train().loss_terms(model(images), images).values()
    terms.kl["latent"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.flow.parameters())
    bias = model.network.posterior_head[-1].bias.grad
    assert bias is not None
    assert (bias != 0).all()


def test_samples(model: FlowGenesisV2) -> None:
    scene = model.sample(4, num_slots=5, noise=IndexedNoise(0, range(4)))
    assert scene.components.shape == (4, 5, 3, 32, 32)
    alone = model.sample(1, num_slots=5, noise=IndexedNoise(0, [2]))
    torch.testing.assert_close(alone.reconstruction[0], scene.reconstruction[2])


@pytest.mark.parametrize("option", ["autoregressive_prior", "flexible_slots"])
def test_what_does_not_go_together(option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}=True: the prior is a flow"):
        FlowGenesisV2(3, 32, **{option: True})


def test_it_is_made_again_from_its_hyperparameters(model: FlowGenesisV2) -> None:
    again = FlowGenesisV2(
        **{k: v for k, v in model.hparams.items() if k in ("num_slots", "image_size", *SMALL)}
    )
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
