"""The importance-weighted bound, against its formula and where the likelihood is known."""

from math import log, pi

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import VAE, GenesisV2, SceneModel, SlotAttention
from lightning_genesis.models.base import EVALUATION_SEED
from lightning_genesis.scene import IndexedNoise, Noise


class Known(VAE):
    """`z ~ N(0, 1)`, `x | z ~ N(z, 1)` for the first pixel; the posterior `N(x / 2, 1)` is too wide."""

    def log_weight(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        assert noise is not None
        x = images[:, 0, 0, 0]
        epsilon = noise.normal((len(x), 1), images)[:, 0]
        z = x / 2 + epsilon
        return -0.5 * ((x - z) ** 2 + z**2 + log(2 * pi) - epsilon**2)


def normal_density(x: Tensor) -> Tensor:
    return -0.25 * x**2 - 0.5 * log(4 * pi)


@pytest.mark.parametrize("num_samples", [1, 2, 7])
def test_equals_the_formula(num_samples: int) -> None:
    torch.manual_seed(0)
    model = GenesisV2(num_slots=3, image_size=32, feature_dim=8, latent_dim=4).eval()
    images, index = torch.rand(3, 3, 32, 32), torch.tensor([5, 0, 9])
    weights = [
        model.log_weight(images, IndexedNoise(EVALUATION_SEED + s, index)).detach().double().numpy()
        for s in range(num_samples)
    ]
    found = model.importance_bound(images, index, num_samples)
    assert found.dtype == torch.float64
    expected = logsumexp(np.array(weights), axis=0) - log(num_samples)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_one_sample_is_the_elbo() -> None:
    torch.manual_seed(0)
    model = VAE(num_slots=1, image_size=32, latent_dim=4).eval()
    images, index = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    with torch.no_grad():
        elbo = model.elbo(model(images, IndexedNoise(EVALUATION_SEED, index)), images)
    torch.testing.assert_close(model.importance_bound(images, index, 1).float(), elbo)


def test_tightens_to_the_likelihood() -> None:
    model = Known(num_slots=1, image_size=32, latent_dim=4)
    images, index = torch.rand(100, 3, 32, 32) * 4, torch.arange(100)
    likelihood = normal_density(images[:, 0, 0, 0].double()).mean()
    gaps = [float(likelihood - model.importance_bound(images, index, s).mean()) for s in (1, 10, 150)]
    assert gaps[0] > 3 * gaps[1] > 0
    assert abs(gaps[2]) < 0.02


def test_images_are_on_their_own() -> None:
    model = Known(num_slots=1, image_size=32, latent_dim=4)
    images, index = torch.rand(6, 3, 32, 32), torch.tensor([3, 1, 4, 10, 5, 9])
    parts = [model.importance_bound(images[i : i + 1], index[i : i + 1], 5) for i in range(6)]
    torch.testing.assert_close(model.importance_bound(images, index, 5), torch.cat(parts))


def test_no_likelihood() -> None:
    small = {"slot_dim": 8, "feature_dim": 8, "mlp_dim": 16, "decoder_dim": 8, "decoder_stages": 2}
    model: SceneModel = SlotAttention(num_slots=3, image_size=32, **small)
    with pytest.raises(ConfigurationError, match="SlotAttention has no likelihood"):
        model.importance_bound(torch.rand(1, 3, 32, 32), torch.tensor([0]), 2)
