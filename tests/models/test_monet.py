"""How MONet behaves: what it accepts, what depends on what, and what its numbers mean."""

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.counting import count_operations
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import MONet
from lightning_genesis.objectives import FixedBeta
from lightning_genesis.scene import IndexedNoise, Scene
from tests.models.test_counts import Images

ORIGINAL: dict[str, Any] = {"std": 0.11, "background_std": 0.09}


def small_model(num_slots: int = 3, image_size: int = 32, **options: Any) -> MONet:
    torch.manual_seed(0)
    return MONet(num_slots, image_size, **{"latent_dim": 6, "feature_dim": 8, **options}).eval()


def batch_of(size: int, image_size: int = 32) -> Tensor:
    return torch.rand(size, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))


def noise_for(index: list[int]) -> IndexedNoise:
    return IndexedNoise(7, index)


# ---------------------------------------------------------------- output


@pytest.mark.parametrize("image_size", [32, 48, 64, 96])
def test_image_sizes(image_size: int) -> None:
    model = small_model(image_size=image_size).train()
    images = batch_of(2, image_size)
    scene = model(images)
    assert scene.components.shape == (2, 3, 3, image_size, image_size)
    for kind in ("decoded", "attention"):
        assert scene.log_masks_of(kind).shape == (2, 3, 1, image_size, image_size)  # type: ignore[arg-type]
    assert scene.reconstruction.shape == images.shape
    terms = model.loss_terms(scene, images)["monet"]
    (terms.nll + terms.total_kl).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("image_size", [40, 72, 30, 16, 1, 0])
def test_image_sizes_that_do_not_fit(image_size: int) -> None:
    with pytest.raises(ConfigurationError, match=f"image_size={image_size}.*: .*use ") as raised:
        MONet(3, image_size)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"num_slots": 0},
        {"latent_dim": 0},
        {"feature_dim": 0},
        {"std": 0.0},
        {"std": float("nan")},
        {"background_std": -0.1},
        {"mask_prior": "dirichlet"},
        {"component_activation": "tanh"},
        {"optimizer": "Adamm"},
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigurationError, match=f"{name}={value!r}") as raised:
        MONet(**{"num_slots": 3, "image_size": 32, **options})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("c", [4, 32])
def test_parameters_of_a_width(c: int) -> None:
    """Counted by hand from Appendix B, with channels c where it has 32 and 2 c where it has 64."""

    def affine(channels_in: int, channels_out: int, kernel: int = 1) -> int:
        return channels_out * (channels_in * kernel**2 + 1)

    def block(channels_in: int, channels_out: int) -> int:
        return channels_out * (channels_in * 9 + 2)

    down = block(4, c) + block(c, 2 * c) + 2 * block(2 * c, 2 * c)
    up = 2 * block(4 * c, 2 * c) + block(4 * c, c) + block(2 * c, c)
    flat = 2 * c * 4**2
    attention = down + up + affine(flat, 128) + affine(128, 128) + affine(128, flat) + affine(c, 1)
    components = affine(4, c, 3) + affine(c, c, 3) + affine(c, 2 * c, 3) + affine(2 * c, 2 * c, 3)
    components += affine(2 * c * 2**2, 256) + affine(256, 2 * 6)
    components += affine(6 + 2, c, 3) + 3 * affine(c, c, 3) + affine(c, 4)
    model = small_model(feature_dim=c).train()
    network = model.network
    parts = [part for part in (network.attention, network.component_vae) if part is not None]
    found = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert found == [attention, components]
    images = batch_of(2)
    terms = model.loss_terms(model(images), images)["monet"]
    (terms.nll + terms.total_kl).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("mask_prior", ["softmax", "scope"])
@pytest.mark.parametrize("num_slots", [2, 5])
def test_masks_sum_to_one(mask_prior: str, num_slots: int) -> None:
    scene = small_model(num_slots, mask_prior=mask_prior)(batch_of(2))
    assert scene.decoded_log_masks is not None
    for log_masks in (scene.log_masks, scene.decoded_log_masks):
        torch.testing.assert_close(log_masks.exp().sum(dim=1), torch.ones(2, 1, 32, 32))


def test_reconstruction_mixes_by_attention_and_segmentation_knows_both() -> None:
    scene = small_model(5)(batch_of(2))
    assert scene.decoded_log_masks is not None
    assert scene.attention_log_masks is not None
    torch.testing.assert_close(
        scene.reconstruction, (scene.attention_log_masks.exp() * scene.components).sum(dim=1)
    )
    decoded, attention = scene.segmentation("decoded"), scene.segmentation("attention")
    assert torch.equal(decoded, scene.decoded_log_masks.argmax(dim=1).squeeze(1))
    assert torch.equal(attention, scene.attention_log_masks.argmax(dim=1).squeeze(1))
    assert not torch.equal(decoded, attention)
    assert scene[:1].decoded_log_masks is not None  # moves with the rest


@torch.no_grad()
def test_every_step_sees_the_scope_that_is_left() -> None:
    """Against a loop over probabilities in float64, with the network as a black box."""
    model, images = small_model(4), batch_of(2)
    attention = model.network.attention
    assert attention is not None
    scope, expected = torch.ones(2, 1, 32, 32, dtype=torch.float64), []
    for _ in range(3):
        x = torch.cat([images, scope.log().float()], dim=1)
        share = attention.logit(attention.unet(x)).double().sigmoid()
        expected.append(scope * share)
        scope = scope * (1.0 - share)
    found = attention(images, 4).double().exp()
    torch.testing.assert_close(found, torch.stack([*expected, scope], dim=1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("mask_prior", ["softmax", "scope"])
def test_one_slot(mask_prior: str) -> None:
    model = small_model(1, mask_prior=mask_prior, background_std=0.5).train()
    images = batch_of(2)
    scene = model(images)
    for kind in ("decoded", "attention"):
        assert torch.equal(scene.log_masks_of(kind), torch.zeros(2, 1, 1, 32, 32))  # type: ignore[arg-type]
    assert torch.equal(scene.reconstruction, scene.components[:, 0])
    terms = model.loss_terms(scene, images)["monet"]
    assert (terms.kl["mask"] == 0.0).all()
    (terms.nll + terms.total_kl).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.sample(2).components.shape == (2, 1, 3, 32, 32)


def test_linear_components_are_what_the_sigmoid_would_see() -> None:
    images = batch_of(2)
    sigmoid, linear = (
        small_model(component_activation=name)(images, noise_for([0, 1])).components
        for name in ("sigmoid", "linear")
    )
    torch.testing.assert_close(linear.sigmoid(), sigmoid)
    assert not torch.allclose(linear, sigmoid)


# ---------------------------------------------------------------- order of slots


@pytest.mark.parametrize("mask_prior", ["softmax", "scope"])
@torch.no_grad()
def test_order_of_slots(mask_prior: str) -> None:
    """Softmax masks do not depend on the order of the latents; scope masks do, all but the components."""
    model = small_model(4, mask_prior=mask_prior)
    latents, order = torch.randn(2, 4, 6), [2, 0, 3, 1]
    scene, permuted = model.decode(latents), model.decode(latents[:, order])
    torch.testing.assert_close(permuted.components, scene.components[:, order])
    same = torch.allclose(permuted.log_masks, scene.log_masks[:, order], atol=1e-5)
    assert same == (mask_prior == "softmax")


@torch.no_grad()
def test_terms_do_not_depend_on_the_order_of_slots() -> None:
    """Unless the first slot has a standard deviation of its own."""
    images, order = batch_of(2), [3, 1, 0, 2]
    for options, invariant in (({}, True), (ORIGINAL, False)):
        model = small_model(4, **options)
        scene = model(images, noise_for([0, 1]))
        permuted = Scene(
            scene.components[:, order],
            scene.log_masks[:, order],
            decoded_log_masks=scene.log_masks_of("decoded")[:, order],
            latents={name: value[:, order] for name, value in scene.latents.items()},
        )
        terms, other = (model.loss_terms(s, images)["monet"] for s in (scene, permuted))
        torch.testing.assert_close(other.kl, terms.kl, rtol=1e-4, atol=1e-3)
        assert torch.allclose(other.nll, terms.nll, rtol=1e-5) == invariant


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


@pytest.mark.parametrize("mask_prior", ["softmax", "scope"])
@torch.no_grad()
def test_result_depends_on_neither_batch_nor_order(mask_prior: str) -> None:
    model, images = small_model(4, mask_prior=mask_prior), batch_of(5)
    whole = model(images, noise_for([10, 11, 12, 13, 14]))
    part = model(images[1:3], noise_for([11, 12]))
    reverse = model(images.flip(0), noise_for([14, 13, 12, 11, 10])).map(lambda tensor: tensor.flip(0))
    for found, expected in ((part, whole[1:3]), (reverse, whole)):
        for name in ("components", "log_masks", "decoded_log_masks"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- prior and samples


@pytest.mark.parametrize("mask_prior", ["softmax", "scope"])
def test_sample(mask_prior: str) -> None:
    model = small_model(mask_prior=mask_prior, **ORIGINAL)
    for num_slots in (1, 2, 6):
        scene = model.sample(2, num_slots)
        assert scene.components.shape == (2, num_slots, 3, 32, 32)
        torch.testing.assert_close(scene.masks.sum(dim=1), torch.ones(2, 1, 32, 32))
        assert scene.attention_log_masks is None  # nothing was looked at
        assert torch.equal(scene.log_masks_of("decoded"), scene.log_masks)
    assert model.sample(2).num_slots == 3
    again = [model.sample(2, noise=noise_for([0, 1])).reconstruction for _ in range(2)]
    assert torch.equal(again[0], again[1])


def test_temperature_scales_the_latents() -> None:
    model = small_model()
    hot, cold, zero = (
        model.sample(2, temperature=t, noise=noise_for([0, 1])).latents["sample"] for t in (1.0, 0.5, 0.0)
    )
    torch.testing.assert_close(0.5 * hot, cold)
    assert (zero == 0.0).all()


def test_samples_have_the_moments_of_the_prior() -> None:
    latents = small_model(4).sample(64).latents["sample"]
    mean, scale = small_model(4).prior(latents)
    assert (mean == 0.0).all()
    assert (scale == 1.0).all()
    assert abs(latents.mean().item()) < 4.0 / math.sqrt(latents.numel())
    assert latents.var().item() == pytest.approx(1.0, abs=4.0 * math.sqrt(2.0 / latents.numel()))


# ---------------------------------------------------------------- terms and bounds


def log_likelihood(
    images: Tensor, components: Tensor, log_masks: Tensor, std: float, background_std: float
) -> Tensor:
    """By torch.distributions in float64, `[B]`."""
    scale = torch.tensor([background_std] + [std] * (components.shape[1] - 1)).double()
    pixels = torch.distributions.Normal(components.double(), scale[:, None, None, None])
    log_joint = log_masks.double() + pixels.log_prob(images.double().unsqueeze(1))
    return log_joint.logsumexp(dim=1).sum(dim=(1, 2, 3))


@pytest.mark.parametrize(("options", "stds"), [({}, (0.7, 0.7)), (ORIGINAL, (0.11, 0.09))])
@torch.no_grad()
def test_training_mixes_by_attention_and_the_elbo_by_decoded_masks(
    options: dict[str, Any], stds: tuple[float, float]
) -> None:
    """Against torch.distributions, in float64."""
    model, images = small_model(4, **options), batch_of(2)
    scene = model(images)
    terms = model.loss_terms(scene, images)["monet"]
    attention, decoded = (
        log_likelihood(images, scene.components, log_masks, *stds)
        for log_masks in (scene.log_masks, scene.decoded_log_masks)
    )
    torch.testing.assert_close(terms.nll.double(), -attention, rtol=1e-5, atol=0.0)
    elbo = model.elbo(scene, images)
    torch.testing.assert_close(elbo.double(), decoded - terms.kl["latent"].double(), rtol=1e-5, atol=0.0)
    assert not torch.allclose(elbo, -(terms.nll + terms.total_kl), rtol=1e-5)
    assert (terms.kl["mask"] > 0.0).all()


@pytest.mark.parametrize(("options", "stds"), [({}, (0.7, 0.7)), (ORIGINAL, (0.11, 0.09))])
@torch.no_grad()
def test_log_weight_is_joint_minus_posterior(options: dict[str, Any], stds: tuple[float, float]) -> None:
    model, images = small_model(4, analytic_kl=True, **options), batch_of(2)
    found = model.log_weight(images, noise_for([0, 1]))
    scene = model(images, noise_for([0, 1]))
    mean, scale, sample = (scene.latents[name].double() for name in ("mean", "scale", "sample"))
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    posterior = torch.distributions.Normal(mean, scale)
    generated = model.decode(scene.latents["sample"])  # the joint knows the latents alone
    log_weight = log_likelihood(images, generated.components, generated.log_masks, *stds)
    log_weight += (standard.log_prob(sample) - posterior.log_prob(sample)).sum(dim=(1, 2))
    torch.testing.assert_close(found.double(), log_weight, rtol=1e-5, atol=0.0)
    assert not torch.allclose(model.elbo(scene, images).double(), log_weight, rtol=1e-6, atol=0.0)


@torch.no_grad()
def test_analytic_kl_is_the_mean_of_the_sampled_one() -> None:
    images = batch_of(1).expand(256, -1, -1, -1)
    sampled, analytic = (
        model.loss_terms(model(images), images)["monet"].kl["latent"]
        for model in (small_model(2, analytic_kl=choice) for choice in (False, True))
    )
    error = sampled.std() / 16.0
    assert error > 0.0
    assert abs(sampled.mean() - analytic.mean()) < 4.0 * error
    assert analytic.std() < 1e-3


@torch.no_grad()
def test_small_standard_deviations_do_not_underflow() -> None:
    model, images = small_model(4, std=0.02, background_std=0.01), batch_of(2)
    scene = model(images)
    assert model.loss_terms(scene, images)["monet"].nll.isfinite().all()
    assert model.elbo(scene, images).isfinite().all()


def test_one_beta_weighs_both_divergences() -> None:
    model, images = small_model(objective=FixedBeta(0.5)), batch_of(2)
    terms = model.loss_terms(model(images), images)
    one = terms["monet"]
    loss = model.objective(terms, num_dimensions=images[0].numel())
    torch.testing.assert_close(loss, (one.nll + 0.5 * one.kl["latent"] + 0.5 * one.kl["mask"]).mean())


def test_masks_divergence_trains_decoder_and_attention() -> None:
    model, images = small_model(), batch_of(2)
    model.loss_terms(model(images), images)["monet"].kl["mask"].mean().backward()
    attention, vae = model.network.attention, model.network.component_vae
    assert attention is not None
    for part in (attention, vae.encoder, vae.decoder):
        gradients = [p.grad for p in part.parameters()]
        assert any(g is not None and g.abs().max() > 0.0 for g in gradients)


# ---------------------------------------------------------------- pieces, precision, compilation


@torch.no_grad()
def test_pieces_make_the_whole() -> None:
    model, images = small_model(), batch_of(2)
    scene = model(images, noise_for([0, 1]))
    latents = model.encode(images, noise_for([0, 1]))
    for name in ("mean", "scale", "sample"):
        assert torch.equal(latents[name], scene.latents[name])
    decoded = model.decode(latents["sample"])
    torch.testing.assert_close(decoded.components, scene.components)
    torch.testing.assert_close(decoded.log_masks, scene.decoded_log_masks)


@pytest.mark.parametrize("options", [{}, {"mask_prior": "scope", **ORIGINAL}])
def test_bfloat16_leaves_the_terms_in_float32(options: dict[str, Any]) -> None:
    model = small_model(4, **options).train()
    images = batch_of(2)
    expected = model.loss_terms(model(images, noise_for([0, 1])), images)["monet"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scene = model(images, noise_for([0, 1]))
        found = model.loss_terms(scene, images)["monet"]
        loss = model.objective({"monet": found}, num_dimensions=images[0].numel())
    masks = (scene.log_masks, scene.decoded_log_masks)
    for value in (*masks, *scene.latents.values(), found.nll, *found.kl.values(), loss):
        assert value is not None
        assert value.dtype == torch.float32
    torch.testing.assert_close(found.nll, expected.nll, rtol=5e-3, atol=0.0)
    torch.testing.assert_close(found.kl["latent"], expected.kl["latent"], rtol=0.1, atol=1.0)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len([*model.parameters()])
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("backend", "mask_prior"),
    [
        ("eager", "scope"),
        # the VAE has the backward in the graph meanwhile
        pytest.param("aot_eager", "softmax", marks=pytest.mark.slow),
    ],
)
def test_encoder_to_decoder_is_one_graph(backend: str, mask_prior: str) -> None:
    torch._dynamo.reset()
    model, images = small_model(mask_prior=mask_prior).train(), batch_of(2)
    compiled = torch.compile(model.network.forward, backend=backend, fullgraph=True)
    results = []
    for run in (model.network.forward, compiled):
        model.zero_grad()
        torch.manual_seed(5)
        components, decoded, attention, latents = run(images, None, 3)
        (components.sum() + (decoded * attention).sum() + latents["sample"].square().sum()).backward()
        gradients = [p.grad for p in model.parameters()]
        results.append((components, decoded, attention, latents, gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3)


def test_normalisation_is_that_of_every_image_and_channel() -> None:
    attention = small_model().network.attention
    assert attention is not None
    norm = attention.unet.down[1][1]  # type: ignore[index]
    torch.nn.init.uniform_(norm.weight)  # type: ignore[arg-type]
    x = torch.randn(2, norm.weight.numel(), 8, 8)  # type: ignore[union-attr,operator]
    expected = torch.nn.functional.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=1e-5)  # type: ignore[arg-type]
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_model_has_the_same_loss() -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    images, losses, gradients = batch_of(2), [], []
    with inductor.patch(fallback_random=True):  # its own generator draws other numbers
        for mode in (None, "default"):
            model = small_model(compile=mode).train()
            model.configure_model()
            torch.manual_seed(5)
            terms = model.loss_terms(model(images), images)["monet"]
            loss = terms.nll.mean() + terms.total_kl.mean()
            loss.backward()
            losses.append(loss.detach())
            gradients.append([p.grad for p in model.parameters()])
            assert "_orig_mod" not in "".join(model.state_dict())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-2)


# ---------------------------------------------------------------- training


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "objective": FixedBeta(0.5, warmup_steps=10),
            "optimizer": "RMSprop",
            "mask_prior": "scope",
            "analytic_kl": True,
            **ORIGINAL,
        },
    ],
)
def test_two_steps(tmp_path: Path, options: dict[str, Any]) -> None:
    model = small_model(**options).train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(model, DataLoader(Images(), batch_size=2))
    assert type(fit.optimizers[0]).__name__ == options.get("optimizer", "Adam")
    assert model.objective.step == 2
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    fit.save_checkpoint(tmp_path / "two.ckpt")
    checkpoint = torch.load(tmp_path / "two.ckpt", weights_only=True)
    assert not any("slot_std" in name for name in checkpoint["state_dict"])
    again = MONet(**checkpoint["hyper_parameters"])
    again.load_state_dict(checkpoint["state_dict"])
    assert again.hparams == model.hparams
    assert again.objective.plain() == model.objective.plain()


@pytest.mark.slow  # Slot Attention and the objectives learn meanwhile
def test_it_learns() -> None:
    """A flat picture is explained better after thirty steps, by both sets of masks."""
    model = small_model(feature_dim=32).train()
    images = torch.tensor([0.9, 0.2, 0.4])[:, None, None].expand(4, 3, 32, 32)
    optimizer, elbos = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(30):
        scene = model(images)
        terms = model.loss_terms(scene, images)["monet"]
        elbos.append(model.elbo(scene, images).mean().item())
        optimizer.zero_grad()
        (terms.nll + terms.total_kl).mean().backward()
        optimizer.step()
    best = -images[0].numel() * (math.log(0.7) + 0.5 * math.log(2.0 * math.pi))
    assert elbos[-1] - elbos[0] > 0.5 * (best - elbos[0])


# ---------------------------------------------------------------- counts


def step_counts(model: MONet, batch_size: int = 2) -> Any:
    images = torch.rand(batch_size, 3, model.image_size, model.image_size)
    model.train()
    with count_operations() as counts:
        loss = model.objective(model.loss_terms(model(images), images), num_dimensions=images[0].numel())
        loss.backward()
        model.objective.update()
    return counts


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_prior": "scope", "analytic_kl": True, **ORIGINAL},
        {"objective": FixedBeta(0.5, warmup_steps=100)},
    ],
)
def test_nothing_waits_for_the_device(options: dict[str, Any]) -> None:
    counts = step_counts(small_model(4, **options))
    assert counts.kernels
    assert not counts.syncs
    assert not counts.host_reads


def test_kernels_and_floating_point_operations() -> None:
    """Of the published model at batch 32; with the image copied K times, 247 GFLOP."""
    counts = step_counts(MONet(5, 64))
    assert 400 < counts.kernels.total() <= 1000  # 829
    assert 200e9 < 16 * counts.flops <= 225e9


def test_slots_cost_kernels_only_in_the_attention_network() -> None:
    """Everything but its K - 1 passes treats all slots at once, forward and backward."""
    totals = {k: step_counts(small_model(k)).kernels.total() for k in (3, 4, 6)}
    attention = small_model().network.attention
    assert attention is not None
    images = batch_of(2)
    passes = []
    for k in (3, 4):
        with count_operations() as counts:
            attention(images, k).square().sum().backward()
        attention.zero_grad()
        passes.append(counts.kernels.total())
    assert totals[6] - totals[4] == 2 * (totals[4] - totals[3])
    assert totals[4] - totals[3] <= passes[1] - passes[0] + 2
    assert step_counts(small_model(3), 4).kernels.total() == totals[3]
