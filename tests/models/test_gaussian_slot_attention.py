"""The encoder of SRI-SA*, on its own."""

from typing import Any

import torch
from torch import Tensor

from lightning_genesis.models.gaussian_slot_attention import GaussianSlotAttention
from lightning_genesis.objectives import gaussian_kl
from lightning_genesis.scene import IndexedNoise
from tests.reference.sri import FixtureNoise


def small_model(**options: Any) -> GaussianSlotAttention:
    torch.manual_seed(0)
    return GaussianSlotAttention(
        3, 32, **{"latent_dim": 8, "feature_dim": 8, "mlp_dim": 16, **options}
    ).eval()


def batch_of(size: int) -> Tensor:
    return torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_trains() -> None:
    for stages in (0, 2):
        model, images = small_model(encoder_stages=stages).train(), batch_of(2)
        terms = model.loss_terms(model(images), images)
        model.objective(terms, num_dimensions=images[0].numel()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_slots_keep_the_order_of_their_initial_values() -> None:
    """Slot Attention is equivariant, so the learned starts alone tell the slots apart."""
    model, images, order = small_model(), batch_of(2), torch.tensor([2, 0, 1])
    before = model(images, FixtureNoise())
    model.network.initial_slots.copy_(model.network.initial_slots[:, order])
    after = model(images, FixtureNoise())  # the fixture's noise is the same for every slot
    for name in ("mean", "scale", "sample"):
        torch.testing.assert_close(after.latents[name], before.latents[name][:, order])
    torch.testing.assert_close(after.attention_log_masks, before.attention_log_masks[:, order])
    assert not torch.allclose(after.latents["mean"], before.latents["mean"])


@torch.no_grad()
def test_start_and_posterior() -> None:
    model, images = small_model(), batch_of(2)
    scene = model(images, FixtureNoise())
    latents = scene.latents
    mean, scale = latents["mean"], latents["scale"]
    torch.testing.assert_close(latents["sample"], mean + scale * FixtureNoise().normal(mean.shape, mean))
    for masks in (scene.masks, scene.attention_log_masks.exp()):
        torch.testing.assert_close(masks.sum(dim=1), torch.ones(2, 1, 32, 32))
    encoded = model.encode(images, FixtureNoise())
    assert all(torch.equal(encoded[name], latents[name]) for name in latents)
    decoded = model.decode(latents["sample"])
    torch.testing.assert_close(decoded.reconstruction, scene.reconstruction)
    start = model.network.initial_slots
    assert torch.equal(start[..., 8:], torch.ones(1, 3, 8))
    assert not torch.equal(start[:, 0], start[:, 1])


@torch.no_grad()
def test_kl_is_that_of_standard_normals_on_average() -> None:
    model, images = small_model(), batch_of(1).expand(512, -1, -1, -1)
    noise = IndexedNoise(0, range(512))
    scene = model(images, noise)
    mean, scale = scene.latents["mean"], scene.latents["scale"]
    exact = gaussian_kl(mean, scale, torch.zeros_like(mean), torch.ones_like(scale)).sum(dim=1)
    difference = model.loss_terms(scene, images)["gaussian_slot_attention"].kl["latent"] - exact
    assert abs(difference.mean()) < 4.0 * difference.std() / 512**0.5
    elbo = model.elbo(scene, images)
    terms = model.loss_terms(scene, images)["gaussian_slot_attention"]
    torch.testing.assert_close(elbo, -(terms.nll + terms.total_kl))
