"""How GENESIS and GENESIS-S behave: what they accept, what depends on what, and what their numbers mean."""

import math
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.counting import Counts, count_operations
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.interop.genesis import LEGACY, genesis_key
from lightning_genesis.models import Genesis
from lightning_genesis.scene import IndexedNoise, Scene
from tests.models.test_counts import Count, Images
from tests.quick import few
from tests.reference.genesis import official_keys

SMALL: dict[str, Any] = {"mask_dim": 8, "component_dim": 4, "feature_dim": 8}
VARIANTS: dict[str, dict[str, Any]] = {
    "genesis": {},
    "genesis-s": {"two_stage": False},
    "symmetric": {"symmetric_components": True},
    "no component prior": {"component_prior": False},
    "no autoregressive prior": {"autoregressive_prior": False},
    "no prior": {"component_prior": False, "autoregressive_prior": False},
    "instance": {"norm": "instance"},
    "linear": {"component_activation": "linear"},
    "analytic": {"analytic_kl": True},
    "one slot": {"num_slots": 1},
    "narrow": {"feature_dim": 4},
    "narrow symmetric": {"feature_dim": 4, "symmetric_components": True},
    "narrow genesis-s": {"feature_dim": 4, "two_stage": False},
}
any_variant = pytest.mark.parametrize(
    "options",
    few(
        VARIANTS.values(),
        *(
            VARIANTS[name]
            for name in ("genesis", "genesis-s", "symmetric", "no prior", "instance", "analytic", "one slot")
        ),
    ),
    ids=VARIANTS.keys(),
)


def small_model(num_slots: int = 3, image_size: int = 32, **options: Any) -> Genesis:
    torch.manual_seed(0)
    return Genesis(**{"num_slots": num_slots, "image_size": image_size, **SMALL, **options}).eval()


def batch_of(size: int, image_size: int = 32) -> Tensor:
    return torch.rand(size, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))


def noise_for(index: list[int]) -> IndexedNoise:
    return IndexedNoise(7, index)


def loss_of(model: Genesis, images: Tensor) -> Tensor:
    terms = model.loss_terms(model(images), images)["genesis"]
    return (terms.nll + terms.total_kl).mean()


class Given:
    """Noise that was drawn before."""

    def __init__(self, *draws: Tensor) -> None:
        self.draws = list(draws)

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        draw = self.draws.pop(0)
        assert draw.shape == tuple(shape)
        return draw

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        raise AssertionError("no model of this family draws uniform numbers")


# ---------------------------------------------------------------- output


@pytest.mark.parametrize(
    ("image_size", "options"),
    [
        *((32, options) for options in VARIANTS.values()),
        (96, {}),
        (96, {"two_stage": False}),
        (128, {"num_slots": 2}),
        (128, {"num_slots": 2, "symmetric_components": True}),
        (48, {"num_slots": 1}),
    ],
)
def test_sizes_and_options(image_size: int, options: dict[str, Any]) -> None:
    model = small_model(image_size=image_size, **options).train()
    images, num_slots = batch_of(2, image_size), model.num_slots
    scene = model(images)
    assert scene.components.shape == (2, num_slots, 3, image_size, image_size)
    assert scene.log_masks.shape == (2, num_slots, 1, image_size, image_size)
    assert scene.attention_log_masks is None
    assert scene.reconstruction.shape == images.shape
    size = (8 if num_slots > 1 else 0) + (4 if options.get("two_stage", True) else 0)
    assert {name: value.shape for name, value in scene.latents.items()} == dict.fromkeys(
        ("mean", "scale", "sample"), (2, num_slots, size)
    )
    torch.testing.assert_close(scene.masks.sum(dim=1), torch.ones(2, 1, image_size, image_size))
    terms = model.loss_terms(scene, images)["genesis"]
    (terms.nll + terms.total_kl).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_largest_published_size() -> None:
    model = small_model(num_slots=2, image_size=256)
    with torch.no_grad():
        assert model(batch_of(1, 256)).components.shape == (1, 2, 3, 256, 256)


@pytest.mark.parametrize(
    ("num_slots", "image_size"), [(3, 48), (3, 40), (3, 512), (3, 0), (1, 40), (1, 8), (1, 0)]
)
def test_image_sizes_that_do_not_fit(num_slots: int, image_size: int) -> None:
    with pytest.raises(ConfigurationError, match=f"image_size={image_size}.*: .*use ") as raised:
        Genesis(num_slots, image_size)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"num_slots": 0},
        {"mask_dim": 0},
        {"component_dim": 0},
        {"two_stage": False, "num_slots": 1},
        {"symmetric_components": True, "two_stage": False},
        {"norm": "none"},
        {"norm": "layer"},
        {"component_activation": "tanh"},
        {"std": 0.0},
        {"std": float("nan")},
        {"feature_dim": 0},
        {"optimizer": "Adamm"},
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigurationError, match=f"{name}={value!r}.*: ") as raised:
        Genesis(**{"num_slots": 3, "image_size": 32, **options})
    assert "\n" not in str(raised.value)


def test_linear_components_are_not_squashed() -> None:
    linear, sigmoid = small_model(component_activation="linear"), small_model()
    latents = 20.0 * torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    raw = linear.decode(latents).components
    assert raw.min() < 0.0
    torch.testing.assert_close(sigmoid.decode(latents).components, raw.sigmoid())


@pytest.mark.parametrize("c", [8, 32])
def test_parameters_of_a_width(c: int) -> None:
    """Counted by hand from Appendix B.1, with channels c where it has 32 and 2 c where it has 64."""

    def gated(channels_in: int, channels_out: int, kernel: int, norm: bool = True) -> int:
        return 2 * channels_out * (channels_in * kernel**2 + (3 if norm else 1))

    def affine(channels_in: int, channels_out: int, kernel: int = 1) -> int:
        return channels_out * (channels_in * kernel**2 + 1)

    encoder = gated(3, c, 5) + gated(c, c, 5) + gated(c, 2 * c, 5) + 2 * gated(2 * c, 2 * c, 5)
    encoder += gated(2 * c, 256, 8, norm=False)
    decoder = gated(8, 2 * c, 8, norm=False) + gated(2 * c, 2 * c, 5) + gated(2 * c, c, 5)
    decoder += 3 * gated(c, c, 5) + affine(c, 1)
    components = affine(4, c, 3) + affine(c, c, 3) + affine(c, 2 * c, 3) + affine(2 * c, 2 * c, 3)
    components += affine(2 * c * 2**2, 256) + affine(256, 2 * 4)
    components += affine(4 + 2, c, 3) + 3 * affine(c, c, 3) + affine(c, 3)
    network = small_model(feature_dim=c).network
    found = [network.mask_vae.encoder, network.mask_vae.decoder, network.component_vae]  # type: ignore[union-attr]
    sizes = [sum(p.numel() for p in part.parameters()) for part in found if part is not None]
    assert sizes == [encoder, decoder, components]


def test_one_slot() -> None:
    model, images = small_model(num_slots=1), batch_of(2)
    scene = model(images)
    assert torch.equal(scene.log_masks, torch.zeros(2, 1, 1, 32, 32))
    assert torch.equal(scene.reconstruction, scene.components[:, 0])
    assert list(model.loss_terms(scene, images)["genesis"].kl) == ["component"]
    assert {name.split(".")[1] for name, _ in model.named_parameters()} == {"component_vae"}
    assert model.sample(2).components.shape == (2, 1, 3, 32, 32)
    assert model.decode(scene.latents["sample"]).log_masks.shape == (2, 1, 1, 32, 32)
    with pytest.raises(ConfigurationError, match=r"num_slots=3: .*use 1"):
        model.sample(2, num_slots=3)


# ---------------------------------------------------------------- noise and batches


@any_variant
def test_same_noise_same_result(options: dict[str, Any]) -> None:
    model, images = small_model(**options), batch_of(3)
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
    for name in ("components", "log_masks"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


@any_variant
@torch.no_grad()
def test_result_depends_on_neither_batch_nor_order(options: dict[str, Any]) -> None:
    model, images = small_model(**options), batch_of(5)
    whole = model(images, noise_for([10, 11, 12, 13, 14]))
    assert_same_scene(model(images[1:3], noise_for([11, 12])), whole[1:3])
    reverse = model(images.flip(0), noise_for([14, 13, 12, 11, 10]))
    assert_same_scene(reverse.map(lambda tensor: tensor.flip(0)), whole)


@pytest.mark.parametrize("options", [{}, {"symmetric_components": True}, {"two_stage": False}])
@torch.no_grad()
def test_in_training_only_instance_norm_keeps_images_apart(options: dict[str, Any]) -> None:
    images = batch_of(4)
    for norm, apart in (("instance", True), ("batch", False)):
        model = small_model(norm=norm, **options).train()
        whole, part = (model(images[:size], noise_for([*range(size)])) for size in (4, 2))
        same = torch.allclose(part.log_masks, whole.log_masks[:2], rtol=1e-4, atol=1e-5)
        assert same == apart


@pytest.mark.parametrize("options", [{}, {"two_stage": False}])
@torch.no_grad()
def test_evaluation_changes_no_statistics(options: dict[str, Any]) -> None:
    model, images = small_model(**options), batch_of(2)
    before = deepcopy(model.state_dict())
    model(images)
    model.sample(2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()(images)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "running" in name}  # the number of batches decides nothing


# ---------------------------------------------------------------- posterior and masks


@torch.no_grad()
def test_posterior_is_an_lstm_over_features_and_earlier_latents() -> None:
    """Against `nn.LSTM`, which is given all samples at once."""
    model, images = small_model(num_slots=5), batch_of(3)
    masks = model.network.mask_vae
    assert masks is not None
    mean, scale, sample = masks.infer(images, noise_for([0, 1, 2]), 5)
    features = masks.encoder(images)
    lstm = nn.LSTM(256 + 8, 16, batch_first=True)
    lstm.load_state_dict({f"{name}_l0": value for name, value in masks.lstm.state_dict().items()})
    inputs = torch.cat([features.unsqueeze(1).expand(-1, 4, -1), sample[:, :-1]], dim=2)
    raw_mean, raw_scale = masks.linear(lstm(inputs)[0]).chunk(2, dim=2)
    torch.testing.assert_close(mean[:, 1:], raw_mean, rtol=1e-4, atol=1e-5)
    expected = (0.5 + raw_scale).exp().log1p()
    torch.testing.assert_close(scale[:, 1:], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean[:, 0], masks.mean_head(features))
    torch.testing.assert_close(scale[:, 0], (0.5 + masks.scale_head(features)).exp().log1p())


@torch.no_grad()
def test_no_slot_sees_later_ones() -> None:
    model, images = small_model(num_slots=4), batch_of(2)
    draws = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    other = draws.clone()
    other[:, 2] += 1.0
    components = torch.zeros(2, 4, 4)
    first, second = (model(images, Given(draw, components)) for draw in (draws, other))
    difference = (first.latents["mean"] - second.latents["mean"])[:, :, :8].abs().amax(dim=(0, 2))
    assert (difference[:3] == 0.0).all()
    assert difference[3] > 0.0
    masks = (first.log_masks - second.log_masks).abs().amax(dim=(0, 2, 3, 4))
    assert (masks[:2] == 0.0).all()
    assert (masks[2:] > 0.0).all()


@torch.no_grad()
def test_last_slot_takes_what_is_left() -> None:
    """Its mask latent changes no mask, but its component's prior."""
    model = small_model(num_slots=3)
    latents = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    changed = latents.clone()
    changed[:, 2, :8] += 1.0
    scene, other = model.decode(latents), model.decode(changed)
    assert torch.equal(scene.log_masks, other.log_masks)
    torch.testing.assert_close(scene.masks[:, 2], 1.0 - scene.masks[:, :2].sum(dim=1))
    before, after = model.prior(latents)[0], model.prior(changed)[0]
    assert torch.equal(before[:, :, :8], after[:, :, :8])
    assert torch.equal(before[:, :2, 8:], after[:, :2, 8:])
    assert not torch.allclose(before[:, 2, 8:], after[:, 2, 8:])


@pytest.mark.parametrize("options", [{}, {"two_stage": False}, {"symmetric_components": True}])
@torch.no_grad()
def test_components_and_priors_treat_slots_alike(options: dict[str, Any]) -> None:
    model = small_model(num_slots=3, autoregressive_prior=False, **options)
    latents = torch.randn(2, 3, sum(model.network.dims), generator=torch.Generator().manual_seed(0))
    order = [2, 0, 1]
    torch.testing.assert_close(
        model.decode(latents[:, order]).components, model.decode(latents).components[:, order]
    )
    for found, expected in zip(model.prior(latents[:, order]), model.prior(latents), strict=True):
        torch.testing.assert_close(found, expected[:, order])


# ---------------------------------------------------------------- prior and samples


@pytest.mark.parametrize("options", [{}, {"two_stage": False}, {"autoregressive_prior": False}])
def test_sample_any_number_of_slots(options: dict[str, Any]) -> None:
    model = small_model(**options)
    for num_slots in (1, 2, 6):
        scene = model.sample(2, num_slots)
        assert scene.components.shape == (2, num_slots, 3, 32, 32)
        torch.testing.assert_close(scene.masks.sum(dim=1), torch.ones(2, 1, 32, 32))
    assert model.sample(2).num_slots == 3


@any_variant
def test_sample_at_temperature_zero_is_the_mode(options: dict[str, Any]) -> None:
    model = small_model(**options)
    first, second = model.sample(2, temperature=0.0), model.sample(2, temperature=0.0)
    assert torch.equal(first.reconstruction, second.reconstruction)
    latents = first.latents["sample"]
    torch.testing.assert_close(latents, model.prior(latents)[0])
    assert not torch.equal(model.sample(2).reconstruction, first.reconstruction)


@any_variant
@torch.no_grad()
def test_sample_is_the_prior_slot_by_slot(options: dict[str, Any]) -> None:
    model = small_model(**options)
    draws = [torch.randn(2, model.num_slots, size) for size in model.network.dims if size]
    for temperature in (1.0, 0.5):
        sample = model.sample(2, temperature=temperature, noise=Given(*draws)).latents["sample"]
        mean, scale = model.prior(sample)
        torch.testing.assert_close(sample, mean + temperature * scale * torch.cat(draws, dim=2))


@torch.no_grad()
def test_released_sampler_leaves_the_mean_unbounded() -> None:
    model = small_model(num_slots=4, released_sampler=True)
    assert model.slot_prior is not None
    model.slot_prior.linear.bias.add_(1.0)
    draws = torch.randn(2, 4, 8), torch.randn(2, 4, 4)
    masks = model.sample(2, noise=Given(*draws)).latents["sample"][:, :, :8]
    hidden = model.slot_prior.lstm(masks[:, :-1])[0]
    mean, raw = model.slot_prior.linear(hidden).chunk(2, dim=2)
    torch.testing.assert_close(masks[:, 1:], mean + ((raw + 4.0).sigmoid() + 1e-4) * draws[0][:, 1:])
    assert mean.max() > 1.0
    assert model.prior(torch.cat([masks, masks[:, :, :4]], dim=2))[0].max() < 1.0  # what it trains with


# ---------------------------------------------------------------- terms and bounds


@any_variant
def test_elbo_is_the_objective(options: dict[str, Any]) -> None:
    model, images = small_model(**options), batch_of(2)
    scene = model(images)
    terms = model.loss_terms(scene, images)["genesis"]
    expected = ["mask"] if model.num_slots > 1 else []
    assert list(terms.kl) == expected + ["component"] * options.get("two_stage", True)
    torch.testing.assert_close(
        model.elbo(scene, images), -terms.nll - torch.stack([*terms.kl.values()]).sum(dim=0)
    )


@any_variant
@torch.no_grad()
def test_log_weight_is_joint_minus_posterior(options: dict[str, Any]) -> None:
    """Against torch.distributions, in float64."""
    model, images = small_model(**options, std=0.3), batch_of(2)
    found = model.log_weight(images, noise_for([0, 1]))
    scene = model(images, noise_for([0, 1]))
    mean, scale, sample = (scene.latents[name] for name in ("mean", "scale", "sample"))
    prior_mean, prior_scale = model.prior(sample)
    prior = torch.distributions.Normal(prior_mean.double(), prior_scale.double())
    posterior = torch.distributions.Normal(mean.double(), scale.double())
    pixels = torch.distributions.Normal(scene.components.double(), 0.3)
    log_joint = scene.log_masks.double() + pixels.log_prob(images.double().unsqueeze(1))
    log_weight = log_joint.logsumexp(dim=1).sum(dim=(1, 2, 3))
    log_weight += (prior.log_prob(sample.double()) - posterior.log_prob(sample.double())).sum(dim=(1, 2))
    torch.testing.assert_close(found.double(), log_weight, rtol=1e-5, atol=1e-3)
    if model.analytic_kl:
        assert not torch.allclose(model.elbo(scene, images).double(), log_weight, rtol=1e-5, atol=1e-3)


@torch.no_grad()
def test_analytic_kl_is_the_mean_of_the_sampled_one() -> None:
    model, images = small_model(num_slots=1), batch_of(1).expand(256, -1, -1, -1)
    scene = model(images)
    sampled, analytic = (model._latent_kl(scene, kind)["component"] for kind in (False, True))
    error = sampled.std() / 16.0
    assert error > 0.0
    assert abs(sampled.mean() - analytic.mean()) < 4.0 * error


def test_gradient_is_the_slope_of_the_loss() -> None:
    """Finite differences through encoder, recurrence, stick breaking, components and priors."""
    model, images = small_model(num_slots=3, norm="instance"), batch_of(2)
    draws = torch.randn(2, 3, 8), torch.randn(2, 3, 4)

    def loss() -> Tensor:
        scene = model(images, Given(*draws))
        return (
            model._total_kl(scene, False).mean() + 10.0 * scene.masks[:, 0].mean() + scene.components.mean()
        )

    loss().backward()
    for name in (
        "network.mask_vae.encoder.layers.1.conv.weight",
        "network.mask_vae.scale_head.weight",
        "network.mask_vae.lstm.weight_hh",
        "network.mask_vae.decoder.output.weight",
        "network.component_vae.encoder.0.weight",
        "slot_prior.lstm.weight_ih_l0",
        "component_prior.0.weight",
    ):
        parameter = model.get_parameter(name)
        assert parameter.grad is not None
        slope = parameter.grad.norm()
        step = 1e-2 * parameter.grad / slope  # along the gradient, where rounding matters least
        with torch.no_grad():
            values = []
            for shift in (step, -2.0 * step, step):
                parameter.add_(shift)
                values.append(loss())
        assert ((values[0] - values[1]) / 2e-2).item() == pytest.approx(slope.item(), rel=1e-2), name


# ---------------------------------------------------------------- pieces, precision, compilation


@any_variant
@torch.no_grad()
def test_pieces_make_the_whole(options: dict[str, Any]) -> None:
    model, images = small_model(**options), batch_of(2)
    scene = model(images, noise_for([0, 1]))
    latents = model.encode(images, noise_for([0, 1]))
    for name in ("mean", "scale", "sample"):
        assert torch.equal(latents[name], scene.latents[name])
    assert_same_scene(model.decode(latents["sample"]), scene)


@pytest.mark.parametrize("options", [{}, {"two_stage": False}, {"symmetric_components": True}])
def test_bfloat16_leaves_the_terms_in_float32(options: dict[str, Any]) -> None:
    model, images = small_model(num_slots=4, **options).train(), batch_of(2)
    expected = model.loss_terms(model(images, noise_for([0, 1])), images)["genesis"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scene = model(images, noise_for([0, 1]))
        found = model.loss_terms(scene, images)["genesis"]
        loss = model.objective({"genesis": found}, num_dimensions=images[0].numel())
    latents = (scene.latents[name] for name in ("mean", "scale", "sample"))
    for value in (scene.components, scene.log_masks, *latents, found.nll, *found.kl.values(), loss):
        assert value.dtype == torch.float32
    torch.testing.assert_close(found.nll, expected.nll, rtol=2e-3, atol=0.0)
    torch.testing.assert_close(found.total_kl, expected.total_kl, rtol=0.1, atol=1.0)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len([*model.parameters()])
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("eager", {}),
        ("eager", {"num_slots": 1}),
        # the VAE has the backward in the graph meanwhile
        pytest.param("aot_eager", {}, marks=pytest.mark.slow),
        pytest.param("eager", {"two_stage": False}, marks=pytest.mark.slow),
    ],
)
def test_encoder_to_decoder_is_one_graph(backend: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model, images = small_model(**options).train(), batch_of(2)
    twin = deepcopy(model)
    compiled = torch.compile(twin.network.forward, backend=backend, fullgraph=True)
    for run in (model.network.forward, compiled):
        torch.manual_seed(5)
        components, log_masks, latents = run(images, None)
        (components.sum() + log_masks[:, 0].sum() + latents["sample"].square().sum()).backward()
    for (name, found), expected in zip(twin.named_parameters(), model.parameters(), strict=True):
        if expected.grad is not None:  # the priors are outside
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-3, msg=name)
    for name, value in twin.state_dict().items():  # so are the running statistics
        torch.testing.assert_close(value, model.state_dict()[name], msg=name)


@pytest.mark.slow
def test_compiled_model_has_the_same_loss() -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    images, losses, gradients = batch_of(2), [], []
    with inductor.patch(fallback_random=True):  # its own generator draws other numbers
        for mode in (None, "default"):
            model = small_model(compile=mode).train()
            model.configure_model()
            assert (model.network._compiled_call_impl is not None) == (mode is not None)
            torch.manual_seed(5)
            loss = loss_of(model, images)
            loss.backward()
            losses.append(loss.detach())
            gradients.append([p.grad for p in model.parameters()])
            assert "_orig_mod" not in "".join(model.state_dict())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-2)


# ---------------------------------------------------------------- a training step


def count_step(model: Genesis, batch_size: int = 2) -> Counts:
    """Counts of forward, loss, backward and the objective's update."""
    images = batch_of(batch_size, model.image_size)
    model.train()
    with count_operations() as counts:
        terms = model.loss_terms(model(images), images)
        model.objective(terms, num_dimensions=images[0].numel()).backward()
        model.objective.update()
    return counts


@any_variant
def test_nothing_waits_for_the_device(options: dict[str, Any]) -> None:
    counts = count_step(small_model(**options))
    assert counts.kernels
    assert not counts.syncs
    assert not counts.host_reads


def test_floating_point_operations() -> None:
    """At most 17.4 GFLOP per image of 64x64 with K = 5; coordinates are convolved once per batch."""
    one, two, four = (count_step(Genesis(5, 64), size).flops for size in (1, 2, 4))
    assert four - two == 2 * (two - one)
    assert 17e9 < two - one < one <= 17.4e9


def test_kernels() -> None:
    """Only the posterior's recurrence, and the prior's inside its one call, are slot by slot."""
    few, many = (count_step(small_model(num_slots)) for num_slots in (5, 10))
    assert 400 < few.kernels.total() <= 850  # 712 with torch 2.15, 718 with 2.11
    assert 0 < many.kernels.total() - few.kernels.total() <= 5 * 60
    assert count_step(small_model(5), 4).kernels.total() == few.kernels.total()
    for name in ("convolution", "convolution_backward", "native_batch_norm"):
        assert few.kernels[name] == many.kernels[name] > 0


def fit(path: Path, callbacks: list[pl.Callback], steps: int, **options: Any) -> Genesis:
    torch.manual_seed(0)
    model = small_model(**options).train()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=path,
    )
    trainer.fit(model, DataLoader(Images(), batch_size=2))
    trainer.save_checkpoint(path / "model.ckpt")
    return model


@pytest.mark.parametrize("options", [{}, {"two_stage": False}])
def test_nothing_waits_for_the_device_in_a_trainer(tmp_path: Path, options: dict[str, Any]) -> None:
    count = Count(1, 3)
    model = fit(tmp_path, [count], 4, **options)
    assert not count.running
    assert count.counts.kernels["_fused_adam_"] == 2
    assert model.objective.step == 4
    assert not count.counts.syncs
    assert set(count.counts.host_reads) == {"numpy"}  # the gate reads the previous step's flags


@pytest.mark.parametrize("options", [{}, {"two_stage": False, "norm": "instance"}, {"num_slots": 1}])
def test_two_steps_and_back(tmp_path: Path, options: dict[str, Any]) -> None:
    before = {name: value.clone() for name, value in small_model(**options).named_parameters()}
    model = fit(tmp_path, [], 2, **options)
    assert not [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    again = Genesis.load_from_checkpoint(tmp_path / "model.ckpt")
    assert again.hparams == model.hparams
    images = batch_of(2)
    scenes = [each.eval()(images, noise_for([0, 1])) for each in (model, again)]
    assert torch.equal(scenes[0].reconstruction, scenes[1].reconstruction)
    loaded = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert loaded["model_class"] == "Genesis"


# ---------------------------------------------------------------- official names


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({}, 171),
        ({"two_stage": False}, 153),
        ({"norm": "instance"}, 111),
        ({"symmetric_components": True}, 275),
        ({"component_prior": False}, 165),
        ({"autoregressive_prior": False}, 165),
        ({"num_slots": 1}, 23),
    ],
)
def test_names_are_a_bijection(options: dict[str, Any], number: int) -> None:
    model = small_model(**options)
    renamed = {"symmetric_components": "symmetric", "autoregressive_prior": "autoregressive"}
    flags = {renamed.get(name, name): value for name, value in options.items() if name != "num_slots"}
    keys = official_keys(**flags, one_slot=model.num_slots == 1, buffers=True)
    assert len(keys) == len(set(keys)) == number
    ours = [genesis_key(key) for key in keys if key != "std"]
    assert len(set(ours)) == number - 1
    assert set(ours) == {key for key in model.state_dict() if not key.startswith("objective.")}


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return Genesis(7, 64).state_dict()


@pytest.mark.parametrize(
    ("official", "shape"),
    [
        ("att_process.core.q_z_nn.0.conv.weight", (64, 3, 5, 5)),
        ("att_process.core.q_z_nn.4.g_norm.running_var", (64,)),
        ("att_process.core.q_z_nn.5.conv.weight", (512, 64, 16, 16)),
        ("att_process.core.q_z_var.0.weight", (64, 256)),
        ("att_process.core.p_x_nn.0.conv.weight", (64, 128, 16, 16)),
        ("att_process.core.p_x_nn.2.h_norm.weight", (32,)),
        ("att_process.core.p_x_nn.5.conv.weight", (32, 64, 5, 5)),
        ("att_process.core.p_x_mean.weight", (1, 32, 1, 1)),
        ("att_process.lstm.weight_ih_l0", (512, 320)),
        ("att_process.linear.weight", (128, 128)),
        ("comp_vae.encoder_module.module.9.weight", (256, 1024)),
        ("comp_vae.decoder_module.seq.1.weight", (32, 18, 3, 3)),
        ("comp_vae.decoder_module.seq.9.weight", (3, 32, 1, 1)),
        ("prior_lstm.weight_ih_l0", (1024, 64)),
        ("prior_mlp.2.weight", (256, 256)),
        ("prior_mlp.4.bias", (32,)),
    ],
)
def test_shapes_are_the_published_ones(state: dict[str, Any], official: str, shape: tuple[int, ...]) -> None:
    assert state[genesis_key(official)].shape == shape


@pytest.mark.parametrize(
    "key",
    [
        "std",
        "comp_vae.decoder_module.seq.0.pixel_coords.g_1",
        "decoder.seq.0.pixel_coords.g_2",
        "att_process.core.q_z_nn.6.conv.weight",
        "att_process.lstm.weight_ih_l1",
        "prior_mlp.1.weight",
        "seg_head.0.weight",
        "",
    ],
)
def test_unknown_name(key: str) -> None:
    with pytest.raises(KeyError, match="no parameter of the official GENESIS"):
        genesis_key(key)
    assert bool(re.match(LEGACY, key)) == ("pixel_coords" in key)


def test_bits_per_pixel_of_a_perfect_scene() -> None:
    """The goal of 0.5655 nats per dimension is a root mean square error of about 0.0563 at σ = 0.7."""
    model = small_model(num_slots=1)
    error = 0.0563
    images = torch.full((1, 3, 32, 32), 0.5)
    scene = Scene(components=images[:, None] + error, log_masks=torch.zeros(1, 1, 1, 32, 32))
    nll = model._nll(scene, images) / images.numel()
    expected = math.log(0.7 * math.sqrt(2.0 * math.pi)) + error**2 / (2 * 0.49)
    assert nll.item() == pytest.approx(expected, rel=1e-6)
    assert nll.item() == pytest.approx(0.5655, abs=1e-4)
