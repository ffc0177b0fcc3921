"""The published GENESIS-V2 implementation's own numbers (specification §9.6, §12.1, §12.7)."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_genesis.layers.broadcast import spatial_broadcast
from lightning_genesis.models import GenesisV2
from lightning_genesis.objectives import mask_kl
from tests.compare import CANCELLING, GRADIENT, TOTAL, assert_near, statistics
from tests.models.v2_fixture import Step, fixture_model, gradient, training_step
from tests.reference import FixtureNoise, images


@pytest.fixture(scope="module")
def activations() -> dict[str, Tensor]:
    """Outputs of the modules by name; filled by `step`."""
    return {}


@pytest.fixture(scope="module")
def step(activations: dict[str, Tensor]) -> Iterator[Step]:
    model = fixture_model()
    parts = dict(model.network.named_modules())
    names = ("backbone.down.0", "backbone.down.4", "backbone.mlp", "backbone.up.0", "backbone.up.4")
    handles = [
        parts[name].register_forward_hook(
            lambda _, __, output, name=name: activations.update({name: output.detach().clone()})
        )
        for name in (*names, "attention_head", "feature_head")
    ]
    yield training_step(model)
    for handle in handles:
        handle.remove()


# ---------------------------------------------------------------- parameter counts


@pytest.mark.parametrize(
    ("image_size", "options", "expected"),
    [
        (32, {}, 2_618_574),
        (64, {}, 2_729_422),
        (128, {}, 2_840_270),
        (64, {"autoregressive_prior": False}, 2_366_798),
    ],
)
@pytest.mark.parametrize("num_slots", [3, 7])
def test_number_of_parameters(
    num_slots: int, image_size: int, options: dict[str, Any], expected: int
) -> None:
    model = GenesisV2(num_slots, image_size, **options)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_number_of_parameters_by_part() -> None:
    model = GenesisV2(7, 64)
    assert model.slot_prior is not None
    network = model.network
    parts = {
        "backbone": network.backbone,
        "colouring": network.colouring,
        "attention head": network.attention_head,
        "feature head": torch.nn.ModuleList([network.feature_head, network.feature_projection]),
        "posterior head": network.posterior_head,
        "decoder": network.decoder,
        "prior LSTM": model.slot_prior.lstm,
        "prior linear": model.slot_prior.linear,
    }
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()} == {
        "backbone": 1_836_864,
        "colouring": 522,
        "attention head": 36_992,
        "feature head": 45_312,
        "posterior head": 33_280,
        "decoder": 413_828,
        "prior LSTM": 329_728,
        "prior linear": 32_896,
    }


@pytest.mark.parametrize(
    ("kernel", "log_sigma"), [("gaussian", -1.5794), ("laplacian", -0.6064), ("epanechnikov", -1.2528)]
)
def test_initial_kernel_width(kernel: str, log_sigma: float) -> None:
    colouring = GenesisV2(7, 64, kernel=kernel).network.colouring  # type: ignore[arg-type]
    assert colouring.log_sigma.item() == pytest.approx(log_sigma, abs=5e-5)
    assert colouring.gate is not None
    assert colouring.gate.item() == 0.0


# ---------------------------------------------------------------- encoder


@pytest.mark.parametrize(
    ("name", "expected", "first_three"),
    [
        ("backbone.down.0", [0.400684, 0.587646], [1.4336, 1.01603, 1.64998]),
        ("backbone.down.4", [0.402283, 0.60804], [1.29395, 2.09003, 0.0]),
        ("backbone.mlp", [0.134289, 0.198436], None),
        ("backbone.up.0", [0.393169, 0.593359], None),
        ("backbone.up.4", [0.406486, 0.56003], [0.0, 0.315366, 0.0]),
        ("attention_head", [0.410808, 0.572307], None),
    ],
)
def test_encoder_activations(
    step: Step,
    activations: dict[str, Tensor],
    name: str,
    expected: list[float],
    first_three: list[float] | None,
) -> None:
    output = activations[name]
    assert_near(statistics(output), expected)
    if first_three is not None:
        assert_near(output[0, 0, 0, :3], first_three, of=output)


def test_feature_head_with_its_projection(step: Step, activations: dict[str, Tensor]) -> None:
    """We project after pooling; the published head projects every pixel."""
    features = step.model.network.feature_projection(activations["feature_head"])
    assert_near(statistics(features), [-0.0526995, 0.712658])


def test_projecting_after_pooling_changes_nothing(step: Step, activations: dict[str, Tensor]) -> None:
    features = activations["feature_head"]
    assert step.scene.attention_log_masks is not None
    log_masks = step.scene.attention_log_masks.detach()
    network = step.model.network.double()
    projected, masks = network.feature_projection(features.double()), log_masks.double().exp()
    per_slot = torch.einsum("bkhw,bchw->bkc", masks.squeeze(2), projected)
    expected = per_slot / (masks.sum(dim=(3, 4)) + 1e-5)
    pooled = step.model.network.float().pool(features, log_masks)
    assert_near(pooled, expected)


# ---------------------------------------------------------------- IC-SBP


def test_embedding_and_seeds(step: Step, activations: dict[str, Tensor]) -> None:
    colouring = step.model.network.colouring
    with torch.no_grad():
        embeddings = colouring.embed(activations["attention_head"])
        scores = FixtureNoise().uniform((2, 1, 64, 64), step.images).flatten(1)
        seeds = colouring._select_seeds(embeddings.flatten(2), scores, 6)
    assert_near(
        embeddings[1, :, 30, 40],
        [0.145775, 0.0111529, -0.343584, 0.257914, 0.0822334, -0.189273, -0.0184946, -0.290088],
    )
    assert_near(
        embeddings.flatten(2)[0, :, seeds[0, 0]],
        [0.483222, -0.65454, -0.212908, 0.674214, 0.207728, -0.00462943, 0.56261, -1.64609],
    )
    assert_near(
        embeddings.flatten(2)[1, :, seeds[1, 5]],
        [0.454324, -0.258341, 0.252768, 0.303975, -0.115503, -0.290345, 0.891498, -1.62683],
    )


def test_attention_masks(step: Step) -> None:
    log_masks = step.scene.attention_log_masks
    assert log_masks is not None
    assert_near(
        log_masks[0].exp().mean(dim=(1, 2, 3)),
        [0.0135101, 0.0220829, 0.0219418, 0.0106313, 0.0358884, 0.0198199, 0.876126],
    )
    assert_near(
        log_masks[1, :, 0, 30, 40],
        [-1.78093, -4.78967, -4.79972, -4.80977, -4.81982, -4.82987, -0.234752],
    )


# ---------------------------------------------------------------- latents, decoder, prior


def test_posterior(step: Step) -> None:
    mean, scale = step.scene.latents["mean"], step.scene.latents["scale"]
    assert_near(mean[0, 0, :4], [1.94663, -0.798296, 0.553924, -1.29668])
    assert_near(scale[0, 0, :4], [1.15184, 1.20878, 0.883102, 0.775733])
    assert_near(mean[1, 6, :4], [1.98157, -0.780675, 0.572942, -1.30752])


@torch.no_grad()
def test_decoder_on_slot_0(step: Step) -> None:
    decoder = step.model.network.decoder
    broadcast = spatial_broadcast(step.scene.latents["sample"][:, 0], decoder.grid)
    assert_near(broadcast.mean(), 0.0916123)
    assert_near(decoder.layers[:3](broadcast).mean(), 0.382132)
    assert_near(statistics(decoder.layers(broadcast)), [-0.379314, 0.684973])


def test_decoded_masks(step: Step) -> None:
    assert_near(
        step.scene.log_masks[1, :, 0, 30, 40],
        [-2.21775, -1.31816, -2.08803, -1.84963, -2.85262, -2.02125, -1.88315],
    )


@torch.no_grad()
def test_prior(step: Step) -> None:
    prior = step.model.slot_prior
    assert prior is not None
    hidden, _ = prior.lstm(step.scene.latents["sample"][:, :-1])
    assert_near(statistics(hidden), [0.00159391, 0.236405])
    assert_near(statistics(prior.linear(hidden)), [0.00977307, 0.239788])


# ---------------------------------------------------------------- terms


def test_terms(step: Step) -> None:
    assert_near(step.terms.nll, [8353.96, 8353.64], TOTAL)
    for found, expected in zip(
        step.slot_kl,
        (
            [13.0931, 25.7848, 39.9119, 22.4518, 23.2786, 24.3747, 19.2215],
            [46.309, 44.7513, 22.384, 35.1723, 26.2958, 27.248, 24.188],
        ),
        strict=True,
    ):
        assert_near(found, expected)
    assert_near(step.terms.kl["latent"], step.slot_kl.sum(dim=1))
    assert step.scene.attention_log_masks is not None
    assert_near(mask_kl(step.scene.attention_log_masks, step.scene.log_masks), [6322.54, 5952.31])


def test_reconstruction(step: Step) -> None:
    reconstruction = step.scene.reconstruction
    assert_near(reconstruction.mean(dim=(1, 2, 3)), [0.37895, 0.380731])
    assert_near(reconstruction[0, :, 10, 20], [0.120062, 0.131583, 0.286317])


def test_gradients(step: Step) -> None:
    network, prior = step.model.network, step.model.slot_prior
    assert network.colouring.gate is not None
    assert prior is not None
    assert_near(step.loss, 8551.04, TOTAL)
    assert_near(step.gradient_norm, 3466.48, GRADIENT)
    assert_near(gradient(network.colouring.log_sigma), 1.49575, CANCELLING)
    assert_near(gradient(network.colouring.gate), -3.4096, CANCELLING)
    assert_near(gradient(network.backbone.down[0][0].weight).norm(), 114.174, GRADIENT)  # type: ignore[index]
    assert_near(gradient(network.decoder.layers[0].weight).norm(), 224.225, GRADIENT)  # type: ignore[arg-type]
    assert_near(gradient(prior.lstm.weight_ih_l0).norm(), 62.4533, GRADIENT)


@pytest.mark.parametrize(
    ("detached", "norm", "log_sigma", "gate"),
    [(True, 26917.7, -2006.53, 4879.68), (False, 27346.9, -2007.47, None)],
)
def test_mask_consistency(detached: bool, norm: float, log_sigma: float, gate: float | None) -> None:
    step = training_step(fixture_model(mask_consistency=True, detach_decoded_masks=detached))
    colouring = step.model.network.colouring
    assert colouring.gate is not None
    assert_near(step.terms.kl["mask"], [6322.54, 5952.31])
    assert_near(step.loss, 14688.5, TOTAL)
    assert_near(step.gradient_norm, norm, GRADIENT)
    assert_near(gradient(colouring.log_sigma), log_sigma, CANCELLING)
    if gate is not None:
        assert_near(gradient(colouring.gate), gate, CANCELLING)


@pytest.mark.parametrize(
    ("kernel", "err", "kl", "masks", "log_sigma", "gate"),
    [
        (
            "laplacian",
            [8354.54, 8352.47],
            [13.7358, 23.9085, 39.1592],
            [0.0691503, 0.628627],
            0.471508,
            0.83208,
        ),
        (
            "epanechnikov",
            [8354.21, 8352.96],
            [12.9837, 25.9363, 37.8951],
            [0.0106906, 0.928152],
            3.04316,
            -9.40275,
        ),
    ],
)
def test_other_kernels(
    kernel: str, err: list[float], kl: list[float], masks: list[float], log_sigma: float, gate: float
) -> None:
    step = training_step(fixture_model(kernel=kernel))
    colouring = step.model.network.colouring
    assert step.scene.attention_log_masks is not None
    assert colouring.gate is not None
    assert_near(step.terms.nll, err, TOTAL)
    assert_near(step.slot_kl[0, :3], kl)
    assert_near(step.scene.attention_log_masks[0, [0, 6]].exp().mean(dim=(1, 2, 3)), masks)
    assert_near(gradient(colouring.log_sigma), log_sigma, CANCELLING)
    assert_near(gradient(colouring.gate), gate, CANCELLING)


def test_sample() -> None:
    picture = fixture_model().eval().sample(2, noise=FixtureNoise()).reconstruction
    assert_near(picture.mean(dim=(1, 2, 3)), [0.37978, 0.380943])
    assert_near(picture[1, :, 5, 50], [0.406193, 0.279666, 0.472361])


# ---------------------------------------------------------------- other sizes and options


@pytest.mark.parametrize(
    ("image_size", "num_slots", "options", "err", "loss", "norm"),
    [
        (32, 3, {}, [2095.19, 2080.01], 2168.2, 1420.27),
        (128, 3, {}, [33456.7, 33370.9], 33489.9, 12572.2),
        (64, 7, {"semi_convolutional": False}, [8354.19, 8353.04], 8550.83, 3490.9),
        (64, 7, {"autoregressive_prior": False}, [8353.96, 8353.64], 8526.67, 3394.66),
    ],
)
def test_other_sizes_and_options(
    image_size: int, num_slots: int, options: dict[str, Any], err: list[float], loss: float, norm: float
) -> None:
    step = training_step(fixture_model(num_slots, image_size, **options))
    assert_near(step.terms.nll, err, TOTAL)
    assert_near(step.loss, loss, TOTAL)
    assert_near(step.gradient_norm, norm, GRADIENT)


# ---------------------------------------------------------------- flexible number of slots


class ImageNoise:
    """The fixture's noise for one image alone."""

    def __init__(self, image: int) -> None:
        self.image, self.batch = slice(image, image + 1), FixtureNoise()

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return self.batch.uniform((2, *shape[1:]), like)[self.image]

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return self.batch.normal((2, *shape[1:]), like)[self.image]


@torch.no_grad()
def test_flexible_number_of_slots() -> None:
    """The published code agrees for an image alone; in a batch its empty slots disturb the real ones."""
    model = fixture_model(flexible_slots=True).eval()
    model.network.colouring.log_sigma.fill_(3.0)
    batch = images()
    alone = [model(batch[i : i + 1], ImageNoise(i)) for i in range(2)]
    log_masks = alone[0].attention_log_masks
    assert log_masks is not None
    assert alone[0].num_active.tolist() == [4]
    assert_near(log_masks[0, :4].exp().sum(dim=(1, 2, 3)), [3524.32, 485.077, 74.6379, 11.9685])
    assert_near(model.loss_terms(alone[0], batch[:1])["genesis_v2"].nll, [8355.64], TOTAL)

    together = model(batch, FixtureNoise())
    terms = model.loss_terms(together, batch)["genesis_v2"]
    assert_near(terms.nll[0], 8355.64, TOTAL)
    assert_near(terms.kl["latent"][0], 13.372 + 24.632 + 37.992 + 21.136)
    for image in range(2):
        own = model.loss_terms(alone[image], batch[image : image + 1])["genesis_v2"]
        assert together.num_active[image] == alone[image].num_active[0]
        assert_near(terms.nll[image], own.nll[0], TOTAL)
        assert_near(terms.kl["latent"][image], own.kl["latent"][0])
        assert_near(together.reconstruction[image], alone[image].reconstruction[0])


def test_flexible_slots_are_for_evaluation() -> None:
    model = fixture_model(flexible_slots=True)
    with torch.no_grad():
        model.network.colouring.log_sigma.fill_(3.0)
        assert model.train()(images(), FixtureNoise()).num_active is None


def test_masks_sum_to_one(step: Step) -> None:
    assert step.scene.attention_log_masks is not None
    for log_masks in (step.scene.log_masks, step.scene.attention_log_masks):
        total = log_masks.exp().sum(dim=1)
        assert_near(total, torch.ones_like(total), TOTAL)


def test_gradients_reach_every_parameter() -> None:
    step = training_step(fixture_model(mask_consistency=True))
    unreached = [n for n, p in step.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unreached == []


@pytest.mark.gpu
def test_reference_on_a_gpu() -> None:
    model = fixture_model().to("cuda")
    batch = images().to("cuda")
    scene = model(batch, FixtureNoise())
    terms = model.loss_terms(scene, batch)["genesis_v2"]
    assert_near(terms.nll, [8353.96, 8353.64], 1e-3)  # TF32
