"""GECO against the published numbers (specification §12.6) and a plain float64 reference."""

import math
from typing import Any

import pytest
import torch

from lightning_genesis.objectives import GECO
from lightning_genesis.scene import Terms

DIMENSIONS = 3 * 64 * 64


def terms(*errors: float, kl: float = 100.0) -> dict[str, Terms]:
    """One branch per error, all with the same KL."""
    names = [chr(ord("a") + i) for i in range(len(errors))]
    return {
        name: Terms(torch.tensor([float(error)]), {"latent": torch.tensor([kl])})
        for name, error in zip(names, errors, strict=True)
    }


def geco(branches: int = 1, **options: Any) -> GECO:
    objective = GECO(**options)
    objective.bind([chr(ord("a") + i) for i in range(branches)])
    return objective


class PlainGECO:
    """The update in plain floating-point numbers (specification §5)."""

    def __init__(
        self,
        goal: float = 0.5655,
        step_size: float = 1e-5,
        smoothing: float = 0.99,
        speedup: float = 10.0,
        beta: float = 1.0,
        beta_min: float = 1e-10,
        beta_max: float = 1e10,
        side: int = 64,
    ) -> None:
        self.goal, self.eta = goal * 3 * side**2, step_size * 64**2 / side**2
        self.alpha, self.speedup, self.beta = smoothing, speedup, beta
        self.beta_min, self.beta_max = beta_min, beta_max
        self.ema: float | None = None

    def update(self, error: float) -> None:
        self.ema = error if self.ema is None else self.alpha * self.ema + (1.0 - self.alpha) * error
        constraint = self.goal - self.ema
        factor = self.speedup if constraint > 0.0 else 1.0
        self.beta *= math.exp(self.eta * constraint * factor)
        self.beta = min(max(self.beta, self.beta_min), self.beta_max)


def test_published_numbers() -> None:
    objective = geco()
    table = [
        (9000, 9100, 9000, 0.9796976),
        (8000, 8097.97, 8990, 0.9599033),
        (7000, 7095.99, 8970.1, 0.9406962),
        (6900, 6994.07, 8949.398, 0.9220642),
        (6000, 6092.207, 8919.904, 0.9040679),
        (6000, 6090.407, 8890.705, 0.8866817),
        (1000, 1088.668, 8811.798, 0.8703164),
    ]
    for error, loss, average, beta in table:
        assert objective(terms(error), DIMENSIONS).item() == pytest.approx(loss, rel=1e-6)
        objective.update()
        assert objective.average.item() == pytest.approx(average, rel=1e-6)
        assert objective.beta.item() == pytest.approx(beta, rel=1e-6)
    assert objective.step == len(table)


@pytest.mark.parametrize("side", [32, 64, 128])
@pytest.mark.parametrize(
    "options",
    [{}, {"speedup": 3.0, "smoothing": 0.5, "beta": 1e-4, "goal": 0.2, "step_size": 1e-4}],
)
def test_many_steps(side: int, options: dict[str, Any]) -> None:
    objective, plain = geco(**options), PlainGECO(**options, side=side)
    generator = torch.Generator().manual_seed(0)
    above = 0
    for step in range(200):
        swing = (-0.3 if step < 20 else 0.3) + 0.1 * torch.randn((), generator=generator).item()
        error = plain.goal + 3 * side**2 * swing
        objective(terms(error), 3 * side**2)
        objective.update()
        plain.update(error)
        assert plain.ema is not None
        above += plain.ema > plain.goal
    assert 0 < above < 200
    assert objective.average.item() == pytest.approx(plain.ema, rel=1e-4)
    assert objective.beta.item() == pytest.approx(plain.beta, rel=1e-3)


@pytest.mark.parametrize(("side", "step_size"), [(64, 1e-5), (128, 2.5e-6), (32, 4e-5)])
def test_step_size_scales_with_the_resolution(side: int, step_size: float) -> None:
    objective, dimensions = geco(), 3 * side**2
    objective(terms(0.5655 * dimensions + 1000.0), dimensions)
    objective.update()
    assert -math.log(objective.beta.item()) == pytest.approx(1000.0 * step_size, rel=1e-3)


def test_speedup_is_for_a_met_constraint_only() -> None:
    rates = []
    for sign in (1.0, -1.0):
        objective = geco()
        objective(terms(0.5655 * DIMENSIONS + sign * 1000.0), DIMENSIONS)
        objective.update()
        rates.append(math.log(objective.beta.item()))
    assert rates == pytest.approx([-0.01, 0.1], rel=1e-3)


@pytest.mark.parametrize(("error", "bound"), [(1e9, 1e-3), (-1e9, 50.0)])
def test_bounds(error: float, bound: float) -> None:
    objective = geco(beta_min=1e-3, beta_max=50.0)
    for _ in range(2):
        objective(terms(error), DIMENSIONS)
        objective.update()
        assert objective.beta.item() == pytest.approx(bound)


def test_every_branch_has_its_own_state() -> None:
    objective, plain = geco(2), [PlainGECO(), PlainGECO()]
    for errors in ((9000.0, 5000.0), (8000.0, 4000.0)):
        loss = objective(terms(*errors), DIMENSIONS)
        expected = sum(error + 100.0 * p.beta for error, p in zip(errors, plain, strict=True))
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        objective.update()
        for error, p in zip(errors, plain, strict=True):
            p.update(error)
    assert objective.beta.tolist() == pytest.approx([p.beta for p in plain])
    assert objective.average.tolist() == pytest.approx([p.ema for p in plain])


def test_loss_weights_terms() -> None:
    objective = geco(beta=0.5)
    branch = Terms(
        torch.tensor([10.0, 20.0]), {"x": torch.tensor([1.0, 3.0]), "y": torch.tensor([4.0, 4.0])}, weight=2.0
    )
    assert objective({"a": branch}, DIMENSIONS).item() == pytest.approx(2.0 * (15.0 + 0.5 * 6.0))


def test_beta_is_a_constant_of_the_gradient() -> None:
    objective, nll, kl = geco(beta=0.25), torch.ones(4), torch.ones(4)
    nll.requires_grad_()
    kl.requires_grad_()
    loss = objective({"a": Terms(nll, {"latent": kl})}, DIMENSIONS)
    loss.backward()
    objective.update()
    assert nll.grad is not None
    assert kl.grad is not None
    assert nll.grad.tolist() == [0.25] * 4
    assert kl.grad.tolist() == [0.0625] * 4


def test_micro_batches_equal_one_large_batch() -> None:
    small, large = geco(), geco()
    for errors in ((9000.0, 7000.0), (5000.0, 6500.0)):
        for error in errors:
            small(terms(error), DIMENSIONS)
        large({"a": Terms(torch.tensor(errors), {"latent": torch.zeros(2)})}, DIMENSIONS)
        small.update()
        large.update()
        assert small.beta.item() == pytest.approx(large.beta.item(), rel=1e-6)
        assert small.average.item() == pytest.approx(large.average.item(), rel=1e-6)
    assert small.step == large.step == 2


def state(objective: GECO) -> dict[str, list[float]]:
    return {name: value.reshape(-1).tolist() for name, value in objective.state_dict().items()}


@pytest.mark.parametrize("error", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_error_that_is_not_finite_changes_nothing(error: float, steps_before: int) -> None:
    objective = geco(2)
    for _ in range(steps_before):
        objective(terms(9000.0, 8000.0), DIMENSIONS)
        objective.update()
    before = state(objective)
    objective(terms(9000.0, error), DIMENSIONS)
    objective.update()
    assert state(objective) == before
    objective(terms(9000.0, 8000.0), DIMENSIONS)
    objective.update()  # and the next step is as if it had not been
    assert objective.step == steps_before + 1
    assert objective.beta.isfinite().all()
    if steps_before == 0:
        assert objective.average.tolist() == [9000.0, 8000.0]


def test_gate_closed_from_outside_changes_nothing() -> None:
    objective = geco()
    before = state(objective)
    objective(terms(9000.0), DIMENSIONS)
    objective.update(finite=torch.tensor(False))
    assert state(objective) == before
    objective(terms(9000.0), DIMENSIONS)
    objective.update(finite=torch.tensor(True))
    assert objective.average.item() == 9000.0


def test_evaluation_does_not_move_it() -> None:
    objective = geco()
    objective(terms(9000.0), DIMENSIONS)
    objective.update()
    before = state(objective)
    objective.eval()
    objective(terms(1.0), DIMENSIONS)
    objective.update()
    objective.train()
    objective.update()  # nothing was seen since the last one
    assert state(objective) == before


def test_state_is_saved_after_the_update() -> None:
    first = geco()
    for error in (9000.0, 8000.0):
        first(terms(error), DIMENSIONS)
        first.update()
    second = geco(beta=0.123)
    second.load_state_dict(first.state_dict())
    assert second.beta.item() == pytest.approx(0.9599033, rel=1e-6)
    for objective in (first, second):
        objective(terms(7000.0), DIMENSIONS)
        objective.update()
    assert state(first) == state(second)
    assert set(state(first)) == {"beta", "average", "step"}
    assert all(value.dtype == torch.float32 for value in first.state_dict().values())


def test_logged_values() -> None:
    objective = geco(2)
    objective(terms(9000.0, 8000.0), DIMENSIONS)
    objective.update()
    values = {name: value.item() for name, value in objective.log_values().items()}
    assert set(values) == {f"geco/{b}/{name}" for b in "ab" for name in ("beta", "nll_average", "goal")}
    assert values["geco/b/nll_average"] == pytest.approx(8000.0 / DIMENSIONS)
    assert values["geco/a/goal"] == pytest.approx(0.5655)
    assert values["geco/a/beta"] == pytest.approx(0.9796976)
