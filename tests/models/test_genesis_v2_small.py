"""Options of ours that let a small GENESIS-V2 learn on a CPU; none of them is on by default."""

from typing import Any

import pytest
import torch

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import GenesisV2
from tests.models.test_genesis_v2 import batch_of, small_model

OURS: dict[str, Any] = {
    "coordinate_scale": 2.0,
    "posterior_bias": -3.0,
    "decoder_norm": False,
    "component_activation": "linear",
    "decoder_stages": 3,
}


def test_all_options_together_train() -> None:
    model, images = small_model(**OURS).train(), batch_of(2)
    terms = model.loss_terms(model(images), images)["genesis_v2"]
    (terms.nll + terms.total_kl).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    again = GenesisV2(**model.hparams)
    again.load_state_dict(model.state_dict())


def test_pooled_coordinates_are_the_centre_of_a_mask() -> None:
    model = small_model(coordinate_scale=3.0)
    network = model.network
    with torch.no_grad():  # the projection lets the coordinates through, and nothing else
        network.feature_projection.weight.zero_()
        network.feature_projection.weight[0, -2] = 1.0
        network.feature_projection.weight[1, -1] = 1.0
        assert network.feature_projection.bias is not None
        network.feature_projection.bias.zero_()
    masks = torch.zeros(1, 2, 1, 32, 32)
    masks[0, 0, 0, 4:8, 20:30], masks[0, 1] = 1.0, 0.5
    pooled = network.pool(torch.rand(1, 8, 32, 32), masks.log())
    expected = 3.0 * torch.tensor([2 * 5.5 / 31 - 1, 2 * 24.5 / 31 - 1])  # row, column
    torch.testing.assert_close(pooled[0, 0, :2], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled[0, 1, :2], torch.zeros(2), rtol=0, atol=1e-5)


def test_posterior_starts_narrow() -> None:
    narrow = small_model(posterior_bias=-3.0)(batch_of(4)).latents["scale"]
    assert narrow.mean() < 0.15 < small_model()(batch_of(4)).latents["scale"].mean()
    head = GenesisV2(3, 32, latent_dim=8, feature_dim=8, posterior_bias=-3.0).network.posterior_head[3]
    assert torch.equal(head.bias[8:], torch.full((8,), -3.0))
    assert head.bias[:8].abs().max() < 1.0


def test_linear_components_are_not_squashed() -> None:
    linear, sigmoid = small_model(component_activation="linear"), small_model()
    latents = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)) * 5
    raw = linear.decode(latents).components
    assert raw.min() < 0.0
    torch.testing.assert_close(sigmoid.decode(latents).components, raw.sigmoid())
    with pytest.raises(ConfigurationError, match="'tanh' is unknown: use 'sigmoid' or 'linear'"):
        small_model(component_activation="tanh")


def test_decoder_without_normalisation_keeps_a_flat_colour() -> None:
    """With one channel per group, normalisation takes every constant away."""
    maps = torch.rand(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    with_norm = small_model().network.decoder.layers[1]
    torch.testing.assert_close(with_norm(maps + 3.0), with_norm(maps), rtol=0, atol=1e-4)
    without = small_model(decoder_norm=False).network.decoder.layers[1]
    assert torch.equal(without(maps + 3.0), maps + 3.0)
