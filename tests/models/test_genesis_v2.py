"""How GENESIS-V2 behaves: what it accepts, what depends on what, and what its numbers mean."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import GenesisV2
from lightning_genesis.scene import IndexedNoise, Scene
from tests.quick import few

SMALL: dict[str, Any] = {"latent_dim": 8, "feature_dim": 8}


def small_model(num_slots: int = 3, image_size: int = 32, **options: Any) -> GenesisV2:
    """A narrow model with its gate open, so that embeddings depend on the image."""
    torch.manual_seed(0)
    model = GenesisV2(num_slots, image_size, **{**SMALL, **options})
    if model.network.colouring.gate is not None:
        torch.nn.init.constant_(model.network.colouring.gate, 0.5)
    return model.eval()


def batch_of(size: int, image_size: int = 32) -> Tensor:
    return torch.rand(size, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))


def noise_for(index: list[int]) -> IndexedNoise:
    return IndexedNoise(7, index)


# ---------------------------------------------------------------- output


@pytest.mark.parametrize("image_size", [32, 48, 64, 96, 128])
def test_image_sizes(image_size: int) -> None:
    model = small_model(image_size=image_size).train()
    images = batch_of(2, image_size)
    scene = model(images)
    assert scene.components.shape == (2, 3, 3, image_size, image_size)
    assert scene.log_masks.shape == (2, 3, 1, image_size, image_size)
    assert scene.reconstruction.shape == images.shape
    terms = model.loss_terms(scene, images)["genesis_v2"]
    (terms.nll + terms.total_kl).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("image_size", [40, 72, 30, 16, 1, 0])
def test_image_sizes_that_do_not_fit(image_size: int) -> None:
    with pytest.raises(ConfigurationError, match=f"image_size={image_size}.*: .*use ") as raised:
        GenesisV2(3, image_size, **SMALL)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"num_slots": 0},
        {"feature_dim": 12},
        {"feature_dim": 0},
        {"latent_dim": 0},
        {"decoder_stages": 5},
        {"decoder_stages": 0},
        {"std": 0.0},
        {"std": float("nan")},
        {"likelihood": "laplace"},
        {"kernel": "cauchy"},
        {"optimizer": "Adamm"},
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigurationError, match=f"{name}={value!r}") as raised:
        GenesisV2(**{"num_slots": 3, "image_size": 32, **SMALL, **options})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "epanechnikov"])
def test_masks_sum_to_one(size: int, kernel: str) -> None:
    scene = small_model(num_slots=5, kernel=kernel)(batch_of(size))
    for log_masks in (scene.log_masks, scene.attention_log_masks):
        assert log_masks.shape[:2] == (size, 5)
        torch.testing.assert_close(log_masks.exp().sum(dim=1), torch.ones(size, 1, 32, 32))


def test_one_slot() -> None:
    model = small_model(num_slots=1).train()
    images = batch_of(2)
    scene = model(images)
    assert torch.equal(scene.log_masks, torch.zeros(2, 1, 1, 32, 32))
    assert torch.equal(scene.reconstruction, scene.components[:, 0])
    terms = model.loss_terms(scene, images)["genesis_v2"]
    (terms.nll + terms.total_kl).mean().backward()
    assert model.sample(2).components.shape == (2, 1, 3, 32, 32)


# ---------------------------------------------------------------- noise


def test_same_noise_same_result() -> None:
    model, images = small_model(), batch_of(3)
    first, again = (model(images, noise_for([4, 5, 6])) for _ in range(2))
    other = model(images, noise_for([4, 5, 7]))
    assert torch.equal(first.reconstruction, again.reconstruction)
    assert torch.equal(first.reconstruction[:2], other.reconstruction[:2])
    assert not torch.equal(first.reconstruction[2], other.reconstruction[2])


def test_global_generator_is_used_without_noise_and_left_alone_with_it() -> None:
    model, images = small_model(), batch_of(2)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model(images, noise_for([0, 1]))
    model.sample(2, noise=noise_for([0, 1]))
    assert torch.equal(torch.get_rng_state(), state)
    first = model(images).reconstruction
    assert not torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    assert torch.equal(model(images).reconstruction, first)


def assert_same_scene(found: Scene, expected: Scene) -> None:
    __tracebackhide__ = True
    for name in ("components", "log_masks", "attention_log_masks", "num_active"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flexible", [False, True])
def test_result_depends_on_neither_batch_nor_order(flexible: bool) -> None:
    model, images = small_model(num_slots=6, flexible_slots=flexible, min_pixels=25.0), batch_of(5)
    with torch.no_grad():
        whole = model(images, noise_for([10, 11, 12, 13, 14]))
        assert_same_scene(model(images[1:3], noise_for([11, 12])), whole[1:3])
        reverse = model(images.flip(0), noise_for([14, 13, 12, 11, 10]))
        assert_same_scene(reverse.map(lambda tensor: tensor.flip(0)), whole)


# ---------------------------------------------------------------- prior and samples


@pytest.mark.parametrize("autoregressive", [False, True])
def test_sample_any_number_of_slots(autoregressive: bool) -> None:
    model = small_model(autoregressive_prior=autoregressive)
    for num_slots in (1, 2, 6):
        assert model.sample(2, num_slots).components.shape == (2, num_slots, 3, 32, 32)
    assert model.sample(2).num_slots == 3


@pytest.mark.parametrize("autoregressive", [False, True])
def test_sample_at_temperature_zero_is_the_mode(autoregressive: bool) -> None:
    model = small_model(autoregressive_prior=autoregressive)
    first, second = model.sample(2, temperature=0.0), model.sample(2, temperature=0.0)
    assert torch.equal(first.reconstruction, second.reconstruction)
    latents = first.latents["sample"]
    torch.testing.assert_close(latents, model.prior(latents)[0])
    assert not torch.equal(model.sample(2).reconstruction, first.reconstruction)


@torch.no_grad()
def test_rollout_is_the_prior_slot_by_slot() -> None:
    model = small_model(num_slots=4)
    assert model.slot_prior is not None
    noise = torch.randn(2, 4, 8)
    for temperature in (1.0, 0.5):
        sample = model.slot_prior.rollout(noise, temperature)
        mean, scale = model.prior(sample)
        torch.testing.assert_close(sample, mean + temperature * scale * noise)
    assert torch.equal(mean[:, 0], torch.zeros(2, 8))
    assert torch.equal(scale[:, 0], torch.ones(2, 8))
    changed = sample.clone()
    changed[:, 2] += 1.0
    torch.testing.assert_close(model.prior(changed)[0][:, :3], mean[:, :3])  # no slot sees later ones
    assert not torch.allclose(model.prior(changed)[0][:, 3], mean[:, 3])


# ---------------------------------------------------------------- terms and bounds


@pytest.mark.parametrize("likelihood", ["mixture", "gaussian"])
def test_elbo_is_the_objective_of_the_published_model(likelihood: str) -> None:
    model, images = small_model(likelihood=likelihood, mask_consistency=True), batch_of(2)
    scene = model(images)
    terms = model.loss_terms(scene, images)["genesis_v2"]
    elbo = model.elbo(scene, images)
    torch.testing.assert_close(elbo, -(terms.nll + terms.kl["latent"]))  # without the masks' KL
    assert (terms.kl["mask"] > 0).all()
    other = small_model(likelihood=likelihood, normalized_likelihood=False)
    unnormalised = other.loss_terms(scene, images)["genesis_v2"]
    constant = images[0].numel() * 0.5 * math.log(2.0 * math.pi)
    torch.testing.assert_close(unnormalised.nll + constant, terms.nll)
    torch.testing.assert_close(other.elbo(scene, images), elbo)


@torch.no_grad()
def test_log_weight_is_joint_minus_posterior() -> None:
    """Against torch.distributions, in float64."""
    model, images = small_model(num_slots=4, analytic_kl=True), batch_of(2)
    found = model.log_weight(images, noise_for([0, 1]))
    scene = model(images, noise_for([0, 1]))
    mean, scale, sample = (scene.latents[name] for name in ("mean", "scale", "sample"))
    prior = torch.distributions.Normal(*(value.double() for value in model.prior(sample)))
    posterior = torch.distributions.Normal(mean.double(), scale.double())
    pixels = torch.distributions.Normal(scene.components.double(), 0.7)
    log_joint = scene.log_masks.double() + pixels.log_prob(images.double().unsqueeze(1))
    log_weight = log_joint.logsumexp(dim=1).sum(dim=(1, 2, 3))
    log_weight += (prior.log_prob(sample.double()) - posterior.log_prob(sample.double())).sum(dim=(1, 2))
    torch.testing.assert_close(found.double(), log_weight, rtol=1e-5, atol=0.0)
    assert not torch.allclose(model.elbo(scene, images).double(), log_weight, rtol=1e-5, atol=0.0)


@torch.no_grad()
def test_analytic_kl_is_the_mean_of_the_sampled_one() -> None:
    model, images = small_model(autoregressive_prior=False), batch_of(1).expand(256, -1, -1, -1)
    scores = torch.rand(1, 1, 32, 32).expand(256, -1, -1, -1)
    colouring, features = model.network.colour(images, scores, 3)
    mean, scale = model.network.posterior_head(model.network.pool(features, colouring.log_masks)).chunk(2, 2)
    scale = torch.nn.functional.softplus(scale + 0.5)
    latents = {"mean": mean, "scale": scale, "sample": mean + scale * torch.randn_like(mean)}
    scene = Scene(*model.network.decode(latents["sample"]), latents=latents)
    sampled, analytic = model._latent_kl(scene, False), model._latent_kl(scene, True)
    error = sampled.std() / 16.0
    assert error > 0.0
    assert abs(sampled.mean() - analytic.mean()) < 4.0 * error


# ---------------------------------------------------------------- flexible number of slots


@torch.no_grad()
def test_threshold_is_honoured_per_image() -> None:
    images = batch_of(6)
    full = small_model(num_slots=6)(images, noise_for(list(range(6))))
    areas = full.attention_log_masks.exp().sum(dim=(2, 3, 4))[:, :-1]  # the last mask is never tested
    for threshold in (0.0, areas.median().item(), 1e9):
        model = small_model(num_slots=6, flexible_slots=True, min_pixels=threshold)
        scene = model(images, noise_for(list(range(6))))
        expected = [next((k for k, area in enumerate(row) if area < threshold), 5) + 1 for row in areas]
        assert scene.num_active.tolist() == expected
    assert {1} == set(expected)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "epanechnikov"])
def test_slots_not_in_use_have_no_mask_and_no_kl(kernel: str) -> None:
    model = small_model(num_slots=6, flexible_slots=True, kernel=kernel)
    images, noise = batch_of(4), list(range(4))
    with torch.no_grad():
        full = small_model(num_slots=6, kernel=kernel)(images, noise_for(noise))
        model.min_pixels = full.attention_log_masks.exp().sum(dim=(2, 3, 4))[:, 2].median().item()
    scene = model(images, noise_for(noise))
    active = torch.arange(6) < scene.num_active.unsqueeze(1)
    assert 0 < (~active).sum() < active.numel()
    for log_masks in (scene.log_masks, scene.attention_log_masks):
        masks = log_masks.exp()
        assert (masks[~active] == 0.0).all()
        torch.testing.assert_close(masks.sum(dim=1), torch.ones(4, 1, 32, 32))
    terms = model.loss_terms(scene, images)["genesis_v2"]
    one = scene.num_active.argmin()
    kept = int(scene.num_active[one])
    alone = scene[one : one + 1].map(lambda tensor: tensor[:, :kept] if tensor.ndim > 1 else tensor)
    own = model.loss_terms(alone, images[one : one + 1])["genesis_v2"]
    torch.testing.assert_close(terms.nll[one], own.nll[0])
    torch.testing.assert_close(terms.kl["latent"][one], own.kl["latent"][0])
    (terms.nll + terms.total_kl).mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert scene.segmentation().max() < scene.num_active.max()


# ---------------------------------------------------------------- pieces, precision, compilation


@torch.no_grad()
def test_pieces_make_the_whole() -> None:
    model, images = small_model(), batch_of(2)
    scene = model(images, noise_for([0, 1]))
    latents = model.encode(images, noise_for([0, 1]))
    for name in ("mean", "scale", "sample"):
        assert torch.equal(latents[name], scene.latents[name])
    torch.testing.assert_close(model.decode(latents["sample"]).reconstruction, scene.reconstruction)


@pytest.mark.parametrize("likelihood", ["mixture", "gaussian"])
def test_bfloat16_leaves_the_terms_in_float32(likelihood: str) -> None:
    model = small_model(num_slots=4, likelihood=likelihood, mask_consistency=True).train()
    images = batch_of(2)
    expected = model.loss_terms(model(images, noise_for([0, 1])), images)["genesis_v2"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scene = model(images, noise_for([0, 1]))
        found = model.loss_terms(scene, images)["genesis_v2"]
        loss = model.objective({"genesis_v2": found}, num_dimensions=images[0].numel())
    for value in (scene.log_masks, scene.attention_log_masks, found.nll, *found.kl.values(), loss):
        assert value.dtype == torch.float32
    torch.testing.assert_close(found.nll, expected.nll, rtol=2e-3, atol=0.0)
    torch.testing.assert_close(found.kl["latent"], expected.kl["latent"], rtol=0.1, atol=1.0)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("backend", few(["eager", "aot_eager"], "eager"))  # VAE has the backward meanwhile
def test_encoder_to_decoder_is_one_graph(backend: str) -> None:
    torch._dynamo.reset()
    model, images = small_model().train(), batch_of(2)
    compiled = torch.compile(model.network.forward, backend=backend, fullgraph=True)
    results = []
    for run in (model.network.forward, compiled):
        model.zero_grad()
        torch.manual_seed(5)
        components, log_masks, _, posterior = run(images, None, 3, None)
        (components.sum() + log_masks[:, 0].sum() + posterior.sample.square().sum()).backward()
        gradient = model.network.backbone.down[0][0].weight.grad
        results.append((components, log_masks, gradient))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mode", "marks"), [("reduce-overhead", 1), ("default", 0), (None, 0)])
def test_graphs_are_told_where_a_step_begins(
    mode: str | None, marks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[None] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: found.append(None))
    small_model(compile=mode)(batch_of(2))
    assert len(found) == marks


@pytest.mark.slow
def test_compiled_model_has_the_same_loss() -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    images, losses, gradients = batch_of(2), [], []
    with inductor.patch(fallback_random=True):  # its own generator draws other numbers
        for mode in (None, "default"):
            model = small_model(compile=mode).train()
            model.configure_model()
            model.configure_model()  # may be called twice
            assert (model.network._compiled_call_impl is not None) == (mode is not None)
            torch.manual_seed(5)
            terms = model.loss_terms(model(images), images)["genesis_v2"]
            loss = terms.nll.mean() + terms.total_kl.mean()
            loss.backward()
            losses.append(loss.detach())
            gradients.append([p.grad for p in model.parameters()])
            assert "_orig_mod" not in "".join(model.state_dict())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_model_trains_on_a_gpu(mode: str) -> None:
    torch._dynamo.reset()
    model = small_model(compile=mode).train().to("cuda")
    model.configure_model()
    optimizer = model.configure_optimizers()
    images = batch_of(4).to("cuda")
    kept = []
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        scene = model(images)
        kept.append(scene.clone())
        terms = model.loss_terms(scene, images)
        loss = model.objective(terms, num_dimensions=images[0].numel())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.objective.update()
    assert loss.isfinite()
    assert not torch.equal(kept[0].components, kept[1].components)


# ---------------------------------------------------------------- mask consistency from the goal on


def test_mask_consistency_waits_for_the_goal_and_then_stays() -> None:
    images = batch_of(2)
    goals = {
        "class_path": "lightning_genesis.objectives.geco.GECO",
        "init_args": {"goal": 0.6, "smoothing": 0.0},
    }
    model = small_model(mask_consistency=True, mask_consistency_start="goal", objective=goals).train()
    always = small_model(mask_consistency=True).train()
    scene = model(images, noise_for([0, 1]))
    full = always.loss_terms(scene, images)["genesis_v2"].kl["mask"]
    assert (full > 0).all()

    def mask_term(average: float) -> Tensor:
        """At an error of so many nats per dimension."""
        model.objective.average.fill_(average * images[0].numel())
        model.objective.step.fill_(10.0)
        return model.loss_terms(scene, images)["genesis_v2"].kl["mask"]

    assert (model.loss_terms(scene, images)["genesis_v2"].kl["mask"] == 0).all()  # no step yet, no average
    assert (mask_term(0.61) == 0).all()
    model.eval()
    assert (mask_term(0.59) == 0).all()  # an evaluation starts nothing
    model.train()
    torch.testing.assert_close(mask_term(0.59), full)
    torch.testing.assert_close(mask_term(0.9), full)  # lost again: it stays
    resumed = small_model(mask_consistency=True, mask_consistency_start="goal", objective=goals).train()
    resumed.load_state_dict(model.state_dict())
    torch.testing.assert_close(resumed.loss_terms(scene, images)["genesis_v2"].kl["mask"], full)


@pytest.mark.parametrize(
    "options",
    [
        {"mask_consistency_start": "late"},
        {"mask_consistency_start": "goal"},
        {
            "mask_consistency": True,
            "mask_consistency_start": "goal",
            "objective": {"class_path": "lightning_genesis.objectives.fixed_beta.FixedBeta"},
        },
    ],
)
def test_a_start_that_never_comes_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="mask_consistency_start="):
        small_model(**options)
    assert "mask_consistency_on" not in small_model(mask_consistency=True).state_dict()
