"""GENESIS and GENESIS-V2 with a scene variable."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import Genesis, GenesisV2, SceneGenesis, SceneGenesisV2, SceneModel
from lightning_genesis.objectives import gaussian_kl
from lightning_genesis.scene import IndexedNoise
from tests.reference.sri import FixtureNoise

V2: dict[str, Any] = {"latent_dim": 8, "feature_dim": 8}
GENESIS: dict[str, Any] = {"mask_dim": 8, "component_dim": 4, "norm": "instance", "feature_dim": 8}
CASES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "GENESIS-V2": (SceneGenesisV2, GenesisV2, V2),
    "GENESIS": (SceneGenesis, Genesis, GENESIS),
    "GENESIS, sequence": (SceneGenesis, Genesis, {**GENESIS, "scene_encoder": "sequence"}),
    "GENESIS-S": (SceneGenesis, Genesis, {**GENESIS, "two_stage": False}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Any, SceneModel]:
    """A model with a scene variable, and one without that has its other weights."""
    kind, base, options = CASES[request.param]
    torch.manual_seed(0)
    model = kind(3, 32, scene_dim=6, **options).eval()
    without = base(3, 32, **{name: value for name, value in options.items() if name != "scene_encoder"})
    state = {name: value for name, value in model.state_dict().items() if name in without.state_dict()}
    without.load_state_dict(state, strict=False)
    return model, without.eval()


def batch_of(size: int) -> Tensor:
    return torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_all_parameters_train_and_come_back(case: tuple[Any, SceneModel]) -> None:
    model, images = case[0].train(), batch_of(2)
    terms = model.loss_terms(model(images), images)
    model.objective(terms, num_dimensions=images[0].numel()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    again = type(model)(**model.hparams)
    again.load_state_dict(model.state_dict())
    assert again.scene_dim == 6


@torch.no_grad()
def test_everything_but_the_prior_is_as_without(case: tuple[Any, SceneModel]) -> None:
    model, images = case[0], batch_of(2)
    scene, plain = (m(images, FixtureNoise()) for m in case)
    assert torch.equal(scene.components, plain.components)
    assert torch.equal(scene.log_masks, plain.log_masks)
    for name in ("mean", "scale", "sample"):
        assert torch.equal(scene.latents[name], plain.latents[name])
    (terms,), (before,) = (
        m.loss_terms(s, images).values() for m, s in zip(case, (scene, plain), strict=True)
    )
    assert torch.equal(terms.nll, before.nll)
    assert set(terms.kl) == {*before.kl, "scene"}
    mean, scale = scene.latents["scene_mean"], scene.latents["scene_scale"]
    expected = gaussian_kl(mean, scale, torch.zeros_like(mean), torch.ones_like(scale))
    torch.testing.assert_close(terms.kl["scene"], expected)
    torch.testing.assert_close(model.elbo(scene, images), -(terms.nll + terms.total_kl))
    assert model.encode(images, FixtureNoise()).keys() == scene.latents.keys()


@torch.no_grad()
def test_prior_is_given_the_scene(case: tuple[Any, SceneModel]) -> None:
    model = case[0]
    model.slot_prior.scene_projection[0].weight.normal_(generator=torch.Generator().manual_seed(0))
    latents = model.encode(batch_of(2), FixtureNoise())["sample"]
    first, second = (model.prior(latents, torch.full((2, 6), value)) for value in (0.0, 1.0))
    assert not torch.allclose(first[0][:, 0], second[0][:, 0])


@torch.no_grad()
def test_sample_is_the_prior_slot_by_slot(case: tuple[Any, SceneModel]) -> None:
    model = case[0]
    for num_slots, temperature in ((3, 1.0), (5, 0.5)):
        noise = FixtureNoise()
        sample = model.sample(2, num_slots, temperature, noise)
        scene_latent = temperature * noise.normal((2, 6), sample.components)
        given = model.sample(2, num_slots, temperature, noise, scene_latent)
        assert torch.equal(given.components, sample.components)
        latents = sample.latents["sample"]
        mean, scale = model.prior(latents, scene_latent)
        masks = model._slots(latents).shape[2]
        draws = noise.normal((2, num_slots, masks), mean)
        expected = mean + temperature * scale * torch.nn.functional.pad(draws, (0, mean.shape[2] - masks))
        torch.testing.assert_close(latents[..., :masks], expected[..., :masks])
    with pytest.raises(ConfigurationError, match=r"has shape \[2, 6\], expected \[3, 6\]"):
        model.sample(3, scene_latent=torch.zeros(2, 6))


def test_slots_are_detached_unless_asked(case: tuple[Any, SceneModel]) -> None:
    images = batch_of(2)
    for detach in (True, False):
        model = type(case[0])(**{**case[0].hparams, "detach_slots": detach}).train()
        terms = model.loss_terms(model(images), images)
        terms[model.branches[0]].kl["scene"].sum().backward()
        assert all(p.grad is None for p in model.network.parameters()) == detach


@torch.no_grad()
def test_log_weight_is_the_bound_with_sampled_divergences(case: tuple[Any, SceneModel]) -> None:
    """Against torch.distributions, in float64; what the model has without the scene is tested with it."""
    model, images, noise = case[0], batch_of(2), [IndexedNoise(0, [0, 1]) for _ in range(2)]
    found, scene = model.log_weight(images, noise[0]), model(images, noise[1])
    latents = {name: value.double() for name, value in scene.latents.items()}
    normal = torch.distributions.Normal
    s = latents["scene_sample"]
    parameters = model.prior(scene.latents["sample"], scene.latents["scene_sample"])
    prior, posterior = normal(*(x.double() for x in parameters)), normal(latents["mean"], latents["scale"])
    of_scene = normal(latents["scene_mean"], latents["scene_scale"])
    expected = (normal(0.0, 1.0).log_prob(s) - of_scene.log_prob(s)).sum(dim=1)
    slots = latents["sample"]
    expected += (prior.log_prob(slots) - posterior.log_prob(slots)).sum(dim=(1, 2))
    (terms,) = model.loss_terms(scene, images).values()
    torch.testing.assert_close(found.double(), expected - terms.nll.double(), rtol=1e-5, atol=1e-3)


def test_one_slot() -> None:
    model, images = SceneGenesisV2(1, 32, scene_dim=6, **V2), batch_of(2)
    terms = model.loss_terms(model(images), images)
    model.objective(terms, num_dimensions=images[0].numel()).backward()
    assert model.sample(2).components.shape == (2, 1, 3, 32, 32)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SceneGenesisV2, {**V2, "autoregressive_prior": False}, "no autoregressive prior"),
        (SceneGenesisV2, {**V2, "flexible_slots": True}, "inferred from all slots"),
        (SceneGenesisV2, {**V2, "scene_dim": 0}, "scene_dim=0 is too small"),
        (SceneGenesisV2, {**V2, "num_set_layers": 0}, "num_set_layers=0 is too small"),
        (SceneGenesis, {**GENESIS, "scene_encoder": "sum"}, "scene_encoder='sum' is unknown"),
        (SceneGenesis, {**GENESIS, "num_slots": 1}, "no autoregressive prior"),
    ],
)
def test_options_that_do_not_fit(kind: type[SceneModel], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        kind(**{"num_slots": 3, "image_size": 32, **options})  # type: ignore[arg-type]
