"""Numbers of the published implementation of EfficientMORL (specification §12, §13)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_genesis.models import EfficientMORL
from lightning_genesis.objectives import FixedBeta, SoftplusGECO
from lightning_genesis.scene import Scene
from tests.compare import GRADIENT, PRINTED, TOTAL, assert_near
from tests.models.emorl_fixture import CLEVR6, TETROMINOES, fixture_model
from tests.models.v2_fixture import gradient
from tests.quick import few
from tests.reference.float64 import double_precision
from tests.reference.slot_attention import SineNoise, fixture_images

GOALS = {35: -1.224, 96: -2.206}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (CLEVR6, 666_500),
        ({"num_slots": 6, "image_size": 64}, 666_500),
        ({"num_slots": 11, "image_size": 128}, 666_500),
        (TETROMINOES, 467_236),
    ],
)
def test_number_of_parameters(options: dict[str, Any], expected: int) -> None:
    """Two fewer than the published models, whose β and moving average are parameters."""
    assert sum(p.numel() for p in EfficientMORL(**options).parameters()) == expected


class Step:
    """One training forward and backward of the fixture."""

    def __init__(self, options: dict[str, Any], constrained: bool, images: Tensor | None = None) -> None:
        size = options["image_size"]
        dimensions = 3 * size**2
        self.model = fixture_model(options, SoftplusGECO(goal=GOALS[size]) if constrained else FixedBeta())
        if constrained:
            objective: Any = self.model.objective
            objective.step.fill_(5000)
            objective.beta.fill_(2.0)
            objective.average.fill_(GOALS[size] * dimensions + 100.0)
        self.changes: list[Tensor] = []
        self.model.network.refinement.register_forward_hook(self._record)
        images = fixture_images(size) if images is None else images
        self.scene: Scene = self.model(images, SineNoise())
        self.loss = self.model.objective(self.model.loss_terms(self.scene, images), dimensions)
        self.loss.backward()

    def _record(self, module: Any, arguments: Any, output: Any) -> None:
        change = output[0] - arguments[0]
        self.changes.append(change.detach().norm(dim=-1).mean())

    @property
    def gradient_norms(self) -> list[float]:
        """Of all parameters, and of the refinement's."""
        parts = (self.model, self.model.network.refinement)
        norms = [torch.nn.utils.get_total_norm([gradient(p) for p in part.parameters()]) for part in parts]
        return [norm.item() for norm in norms]


def check(step: Step, total: float, nll: float, kl: float, changes: list[float], norms: list[float]) -> None:
    latents = step.scene.latents
    assert_near(step.loss, total, TOTAL)
    assert_near(latents["nll"][:, -1].mean(), nll, TOTAL)
    assert_near(latents["kl"][:, -1].mean(), kl)
    assert_near(step.changes, changes)
    for found, expected in zip(step.gradient_norms, norms, strict=True):
        assert_near(found, expected, GRADIENT)


def test_tetrominoes() -> None:
    step = Step(TETROMINOES, constrained=False)
    changes = [0.6618391, 0.7458687, 0.7857572]
    check(step, -8166.112, -1865.695, 51.22931, changes, [3778.378, 294.7722])
    sums, means = [306.4268, 313.0995, 301.9966, 303.4771], [0.4902687, 0.5022521, 0.4906038, 0.4912901]
    assert_near(step.scene.masks[0].sum(dim=(1, 2, 3)), sums, TOTAL)
    assert_near(step.scene.components[0].mean(dim=(1, 2, 3)), means, TOTAL)


def test_tetrominoes_with_geco() -> None:
    step = Step(TETROMINOES, constrained=True)
    assert_near(step.loss, 1189.164, TOTAL)
    assert_near(step.gradient_norms[0], 7453.005, GRADIENT)


@pytest.mark.parametrize(
    ("constrained", "norms"), few([(False, (3778.378, 294.7722)), (True, (7453.005,))], True)
)
def test_gradient_norms_in_float64(constrained: bool, norms: tuple[float, ...]) -> None:
    images = fixture_images(35).double()
    with double_precision():
        step = Step(TETROMINOES, constrained, images)
    for found, expected in zip(step.gradient_norms, norms, strict=False):
        assert_near(found, expected, PRINTED)


@pytest.mark.slow  # in float64, smaller, in `test_published_sri_in_float64.py`
def test_clevr6() -> None:
    step = Step(CLEVR6, constrained=False)
    check(step, 382845.2, 109227.8, 72.45284, [1.387165], [38415.19, 108.3810])
    sums = [1313.842, 1312.133, 1320.869, 1322.978, 1315.002, 1311.553, 1319.623]
    means = [0.4913, 0.4913968, 0.4911141, 0.4910043, 0.4912573, 0.4914115, 0.4911581]
    assert_near(step.scene.masks[0].sum(dim=(1, 2, 3)), sums, TOTAL)
    assert_near(step.scene.components[0].mean(dim=(1, 2, 3)), means, TOTAL)


@pytest.mark.slow
def test_clevr6_with_geco() -> None:
    step = Step(CLEVR6, constrained=True)
    assert_near(step.loss, 1286.766, TOTAL)
    assert_near(step.gradient_norms[0], 81038.72, GRADIENT)


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_evaluation_gives_the_same(surroundings: Any) -> None:
    """Without a graph, and with β's weight out of the checkpoint."""
    model = fixture_model(TETROMINOES, FixedBeta()).eval()
    images = fixture_images(35)
    with surroundings():
        scene = model(images, SineNoise())
        assert_near(model.network.step_weights, [1.0054925, 1.0], PRINTED)
        model.network.step_weights.fill_(1.0)
        plain = model(images, SineNoise())
    assert_near(plain.latents["nll"][:, -1].mean(), -1865.695, TOTAL)
    assert_near(plain.latents["kl"][:, -1].mean(), 51.22931)
    assert not torch.equal(scene.latents["kl"][:, 1:], plain.latents["kl"][:, 1:])
    assert_near(scene.latents["kl"], plain.latents["kl"], 1e-2)  # the weights differ a little
