"""The published SRI implementation's own numbers (specification §2.8, §4.3, §12, §13)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_genesis.models import SRI
from lightning_genesis.objectives import GECO
from lightning_genesis.scene import Scene, Terms
from tests.compare import CANCELLING, PRINTED, TOTAL, assert_near, statistics
from tests.models.sri_fixture import fixture_model
from tests.models.v2_fixture import gradient
from tests.reference.float64 import double_precision
from tests.reference.sri import FixtureNoise, fixture_images

UNNORMALISED: dict[str, Any] = {"num_slots": 7, "image_size": 96, "std": 0.1, "normalized_likelihood": False}
EXPECTED: dict[int, dict[str, Any]] = {
    64: {
        "options": {},
        "terms": {
            "segregation": (8474.09, 8497.58),
            "latent": (-28.34512, 30.9146),
            "sri": (8477.034, 8477.537),
            "scene": (5.709188, 12.69093),
            "cross_order": (79.04572, 92.02594),
            "slot": (82.67255, 96.0515),
        },
        "order": [[6, 5, 4, 2, 8, 3, 7, 1, 0], [5, 7, 4, 3, 8, 2, 6, 1, 0]],
        "loss": 17148.5,
        "norms": (2275.413, 638.1014, 928.8380, 33.42400, 899.7524),
    },
    96: {
        "options": UNNORMALISED,
        "terms": {
            "segregation": (111377.5, 111229.5),
            "latent": (-26.97559, 24.0978),
            "sri": (110219.4, 110344.2),
            "scene": (6.086755, 11.51351),
            "cross_order": (60.99813, 70.33835),
            "slot": (63.93205, 72.97794),
        },
        "order": [[4, 5, 1, 3, 2, 6, 0], [5, 1, 3, 0, 2, 6, 4]],
        "loss": 221726.8,
        "norms": (137806.4, 483.5190, 664.5805, 1188.456, 73863.85),
    },
}
"""The norms are those of float64."""


@dataclass
class Step:
    """A training forward and backward with the fixture's images and noise, β = 1."""

    model: SRI
    scene: Scene
    terms: dict[str, Terms]
    loss: Tensor

    @property
    def values(self) -> dict[str, Tensor]:
        """Errors by branch and divergences by name."""
        errors = {branch: term.nll for branch, term in self.terms.items()}
        return errors | {name: kl for term in self.terms.values() for name, kl in term.kl.items()}

    @property
    def gradient_norms(self) -> list[float]:
        """Of encoder, scene encoder, prior, posterior and decoder."""
        return [norm_of_gradients(part) for part in parts_of(self.model)]


def parts_of(model: SRI) -> list[nn.Module]:
    parts = (model.segregation, model.scene_encoder, model.slot_prior, model.slot_posterior, model.decoder)
    return [part for part in parts if isinstance(part, nn.Module)]


def norm_of_gradients(part: nn.Module) -> float:
    return torch.nn.utils.get_total_norm([gradient(p) for p in part.parameters()]).item()


def training_step(size: int, batch: Tensor | None = None) -> Step:
    model = fixture_model(**EXPECTED[size]["options"])
    batch = fixture_images(size) if batch is None else batch
    scene = model(batch, FixtureNoise())
    terms = model.loss_terms(scene, batch)
    loss = model.objective(terms, batch[0].numel())
    loss.backward()
    return Step(model, scene, terms, loss)


@pytest.fixture(scope="module", params=EXPECTED)
def step(request: pytest.FixtureRequest) -> tuple[Step, dict[str, Any]]:
    return training_step(request.param), EXPECTED[request.param]


# ---------------------------------------------------------------- parameter counts


@pytest.mark.parametrize(
    ("num_slots", "image_size", "options", "expected"),
    [
        (9, 64, {}, 3_634_450),
        (4, 64, {}, 3_634_450),
        (7, 96, {}, 4_292_370),
        (7, 128, {}, 3_745_298),
        (9, 64, {"shared_decoder": True}, 3_220_622),
    ],
)
def test_number_of_parameters(
    num_slots: int, image_size: int, options: dict[str, Any], expected: int
) -> None:
    assert sum(p.numel() for p in SRI(num_slots, image_size, **options).parameters()) == expected


def test_number_of_parameters_by_part() -> None:
    parts = parts_of(SRI(9, 64))
    found = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert found == [2_366_798, 128_512, 370_880, 354_432, 413_828]


# ---------------------------------------------------------------- terms, order and gradients


def test_terms(step: tuple[Step, dict[str, Any]]) -> None:
    found, expected = step[0].values, step[1]["terms"]
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_near(value, expected[name], TOTAL)
    assert_near(step[0].loss, step[1]["loss"], TOTAL)


def test_order(step: tuple[Step, dict[str, Any]]) -> None:
    assert step[0].scene.latents["order"].tolist() == step[1]["order"]


def test_gradient_norms(step: tuple[Step, dict[str, Any]]) -> None:
    for found, expected in zip(step[0].gradient_norms, step[1]["norms"], strict=True):
        assert_near(found, expected, CANCELLING)


@pytest.mark.parametrize("size", [64, pytest.param(96, marks=pytest.mark.slow)])
def test_gradient_norms_in_float64(size: int) -> None:
    batch = fixture_images(size).double()
    with double_precision():
        found = training_step(size, batch)
    for norm, expected in zip(found.gradient_norms, EXPECTED[size]["norms"], strict=True):
        assert_near(norm, expected, PRINTED)


# ---------------------------------------------------------------- without noise


@pytest.fixture(scope="module")
def quiet() -> Iterator[tuple[SRI, Scene, dict[str, Tensor]]]:
    """In evaluation mode, all normal draws 0; and the output of the UNet."""
    model, seen = fixture_model().eval(), {}
    unet = dict(model.named_modules())["segregation.network.backbone"]
    handle = unet.register_forward_hook(lambda _, __, output: seen.update(features=output))
    with torch.no_grad():
        yield model, model(fixture_images(64), FixtureNoise(0.0)), seen
    handle.remove()


def test_terms_without_noise(quiet: tuple[SRI, Scene, dict[str, Tensor]]) -> None:
    model, scene, seen = quiet
    terms = model.loss_terms(scene, fixture_images(64))
    assert_near(terms["segregation"].nll, [8473.363, 8498.979], TOTAL)
    assert_near(terms["segregation"].kl["latent"], [21.63954, 22.35694])
    assert_near(terms["sri"].nll, [8479.438, 8478.103], TOTAL)
    assert_near(terms["sri"].kl["scene"], [8.616959, 8.65086])
    assert_near(terms["sri"].kl["cross_order"], [84.53503, 85.2173])
    assert_near(terms["sri"].kl["slot"], [88.94576, 89.66947])
    assert scene.latents["order"].tolist() == EXPECTED[64]["order"]
    features = seen["features"]
    assert_near(statistics(features), [0.428109, 0.570651])


def test_attention_masks(quiet: tuple[SRI, Scene, dict[str, Tensor]]) -> None:
    """Those of the encoder, and in SRI's order."""
    scene, order = quiet[1], EXPECTED[64]["order"][0]
    sums = [353.6146, 247.2027, 55.16081, 249.429, 229.6176, 117.8445, 152.3495, 68.66814, 2622.113]
    own, ordered = scene.auxiliary["segregation"].attention_log_masks, scene.attention_log_masks
    assert own is not None
    assert ordered is not None
    assert_near(own.exp().sum(dim=(2, 3, 4))[0], sums, TOTAL)
    assert_near(ordered.exp().sum(dim=(2, 3, 4))[0], [sums[slot] for slot in order], TOTAL)


def test_errors_without_the_constant(quiet: tuple[SRI, Scene, dict[str, Tensor]]) -> None:
    model, scene, _ = quiet
    other = SRI(9, 64, normalized_likelihood=False)
    terms = other.loss_terms(scene, fixture_images(64))
    assert_near(terms["segregation"].nll, [-2818.553, -2792.938], TOTAL)
    assert_near(terms["sri"].nll, [-2812.48, -2813.814], TOTAL)
    assert_near(  # the density's, whatever is trained with; its prior is that of the fixture
        model.elbo(scene, fixture_images(64)),
        -torch.stack([value for name, value in _sri(model, scene).items() if name != "cross_order"]).sum(0),
        TOTAL,
    )


def _sri(model: SRI, scene: Scene) -> dict[str, Tensor]:
    terms = model.loss_terms(scene, fixture_images(64))["sri"]
    return {"nll": terms.nll, **terms.kl}


def test_sample(quiet: tuple[SRI, Scene, dict[str, Tensor]]) -> None:
    sample = quiet[0].sample(1, noise=FixtureNoise(0.0), scene_latent=torch.zeros(1, 128))
    assert_near(sample.reconstruction.mean(dim=(2, 3))[0], [0.5094963, 0.5067685, 0.493749])
    first = [
        0.4027612,
        0.5014147,
        0.5089825,
        0.4973457,
        0.4903374,
        0.4893893,
        0.4909483,
        0.4927847,
        0.4941843,
    ]
    assert_near(sample.latents["sample"][0, :, 0], first)


# ---------------------------------------------------------------- GECO


def errors_of(first: float, second: float) -> dict[str, Terms]:
    one = torch.ones(1)
    return {"segregation": Terms(first * one, {}), "sri": Terms(second * one, {})}


def test_two_constraints_move_each_by_its_own_error() -> None:
    """The trace of §4.3 in one branch, while the other one stays where it is."""
    model = SRI(3, 64, encoder_options={"latent_dim": 8, "feature_dim": 8})
    objective = model.objective
    assert isinstance(objective, GECO)
    assert (objective.goal, objective.step_size, objective.speedup) == (0.5655, 1e-6, 10.0)
    trace = []
    for error in (8114.93, 8000.0, 7500.0, 7000.0, 6900.0, 6900.0):
        objective(errors_of(0.5655 * 12288, error), 12288)
        objective.update()
        trace.append(objective.beta.tolist())
    expected = [0.998834610, 0.997671723, 0.996516287, 0.995373249, 0.994243383, 0.993126571]
    assert [beta for _, beta in trace] == pytest.approx(expected, rel=2e-7)
    assert [beta for beta, _ in trace] == pytest.approx([1.0] * 6, abs=1e-5)


def test_beta_is_not_stopped_at_one() -> None:
    objective = SRI(3, 64, encoder_options={"latent_dim": 8, "feature_dim": 8}).objective
    for _ in range(1000):
        objective(errors_of(6900.0, 6900.0), 12288)
        objective.update()
    assert objective.beta.tolist() == pytest.approx([1.630096] * 2, rel=2e-6)  # type: ignore[operator]
