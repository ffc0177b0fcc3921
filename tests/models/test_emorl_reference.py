"""Numbers of the published implementation of EfficientMORL (specification §12, §13)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_genesis.models import EfficientMORL
from lightning_genesis.objectives import FixedBeta, SoftplusGECO
from lightning_genesis.scene import Scene
from tests.models.emorl_fixture import CLEVR6, TETROMINOES, fixture_model
from tests.models.v2_fixture import gradient
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

    def __init__(self, options: dict[str, Any], constrained: bool) -> None:
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
        images = fixture_images(size)
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
    assert step.loss.item() == pytest.approx(total, rel=1e-5)
    assert latents["nll"][:, -1].mean().item() == pytest.approx(nll, rel=1e-5)
    assert latents["kl"][:, -1].mean().item() == pytest.approx(kl, rel=2e-5)
    assert [change.item() for change in step.changes] == pytest.approx(changes, rel=2e-5)
    assert step.gradient_norms == pytest.approx(norms, rel=2e-4)


def test_tetrominoes() -> None:
    step = Step(TETROMINOES, constrained=False)
    changes = [0.6618391, 0.7458687, 0.7857572]
    check(step, -8166.112, -1865.695, 51.22931, changes, [3778.378, 294.7722])
    sums, means = [306.4268, 313.0995, 301.9966, 303.4771], [0.4902687, 0.5022521, 0.4906038, 0.4912901]
    assert step.scene.masks[0].sum(dim=(1, 2, 3)).tolist() == pytest.approx(sums, rel=1e-5)
    assert step.scene.components[0].mean(dim=(1, 2, 3)).tolist() == pytest.approx(means, rel=1e-5)


def test_tetrominoes_with_geco() -> None:
    step = Step(TETROMINOES, constrained=True)
    assert step.loss.item() == pytest.approx(1189.164, rel=1e-5)
    assert step.gradient_norms[0] == pytest.approx(7453.005, rel=2e-4)


def test_clevr6() -> None:
    step = Step(CLEVR6, constrained=False)
    check(step, 382845.2, 109227.8, 72.45284, [1.387165], [38415.19, 108.3810])
    sums = [1313.842, 1312.133, 1320.869, 1322.978, 1315.002, 1311.553, 1319.623]
    means = [0.4913, 0.4913968, 0.4911141, 0.4910043, 0.4912573, 0.4914115, 0.4911581]
    assert step.scene.masks[0].sum(dim=(1, 2, 3)).tolist() == pytest.approx(sums, rel=1e-5)
    assert step.scene.components[0].mean(dim=(1, 2, 3)).tolist() == pytest.approx(means, rel=1e-5)


@pytest.mark.slow
def test_clevr6_with_geco() -> None:
    step = Step(CLEVR6, constrained=True)
    assert step.loss.item() == pytest.approx(1286.766, rel=1e-5)
    assert step.gradient_norms[0] == pytest.approx(81038.72, rel=2e-4)


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_evaluation_gives_the_same(surroundings: Any) -> None:
    """Without a graph, and with β's weight out of the checkpoint."""
    model = fixture_model(TETROMINOES, FixedBeta()).eval()
    images = fixture_images(35)
    with surroundings():
        scene = model(images, SineNoise())
        assert model.network.step_weights.tolist() == pytest.approx([1.0054925, 1.0])
        model.network.step_weights.fill_(1.0)
        plain = model(images, SineNoise())
    assert plain.latents["nll"][:, -1].mean().item() == pytest.approx(-1865.695, rel=1e-5)
    assert plain.latents["kl"][:, -1].mean().item() == pytest.approx(51.22931, rel=2e-5)
    assert not torch.equal(scene.latents["kl"][:, 1:], plain.latents["kl"][:, 1:])
    torch.testing.assert_close(scene.latents["kl"], plain.latents["kl"], rtol=1e-2, atol=0.0)
