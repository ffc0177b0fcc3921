"""EfficientMORL's GECO: the published numbers (specification §5.5, §5.6), and a plain float64 reference."""

import math
from typing import Any

import pytest
import torch

from benchmarks.counting import count_operations
from lightning_genesis.objectives import GECO, FixedBeta, Objective, SoftplusGECO
from lightning_genesis.objectives.base import objective_from_plain
from lightning_genesis.scene import Terms

CLEVR6 = 3 * 96 * 96
GOAL = -2.206 * CLEVR6


def terms(
    error: float, kl: float = 100.0, steps: tuple[Terms, ...] = (), weight: float = 1.0
) -> dict[str, Terms]:
    return {"a": Terms(torch.tensor([error]), {"latent": torch.tensor([kl])}, weight, steps)}


def objective_of(**options: Any) -> SoftplusGECO:
    objective = SoftplusGECO(**options)
    objective.bind(["a"])
    return objective


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


class Plain:
    """Loss and update in plain floating-point numbers, as the specification words them."""

    def __init__(self, goal: float, warmup: int, speedup: float = 1.0, step_size: float = 1e-6) -> None:
        self.goal, self.warmup, self.speedup, self.step_size = goal, warmup, speedup, step_size
        self.step, self.ema, self.beta = 0, 0.0, 0.55

    def loss(self, error: float, kl: float) -> float:
        return error + kl if self.step < self.warmup else kl - softplus(self.beta) * self.ema

    def update(self, error: float) -> None:
        if self.step == self.warmup:
            self.ema = self.goal - error
        elif self.step > self.warmup:
            self.ema = 0.99 * self.ema + 0.01 * (self.goal - error)
            self.beta = max(
                0.55, self.beta - self.step_size * self.ema * (self.speedup if self.ema > 0 else 1.0)
            )
        self.step += 1


def average_constraint(objective: SoftplusGECO, dimensions: int = CLEVR6) -> float:
    return objective.goal * dimensions - objective.average.item()


def test_published_trace() -> None:
    """With the warm-up's 1000 steps; the error then is -50000."""
    objective = objective_of()
    for _ in range(1001):
        objective(terms(-50000.0), CLEVR6)
        objective.update()
    assert average_constraint(objective) == pytest.approx(-10991.48828, abs=5e-3)
    assert objective.beta.item() == pytest.approx(0.55)
    trace = [
        (-55000.0, -10941.48828, 0.560941488),
        (-60000.0, -10841.98828, 0.571783476),
        (-62000.0, -10723.48340, 0.582506959),
    ]
    for error, constraint, beta in trace:
        objective(terms(error), CLEVR6)
        objective.update()
        assert average_constraint(objective) == pytest.approx(constraint, abs=1e-2)
        assert objective.beta.item() == pytest.approx(beta, abs=1e-7)


def test_warm_start() -> None:
    """The plain loss up to step 999; at 1000 the other with an average of 0; β moves from 1001 on."""
    objective = objective_of()
    losses = []
    for _ in range(1002):
        losses.append(objective(terms(-50000.0), CLEVR6).item())
        before = objective.beta.item()
        objective.update()
    assert losses[:1000] == [-49900.0] * 1000
    assert losses[1000] == pytest.approx(100.0)
    assert losses[1001] == pytest.approx(100.0 + 1.0054925 * 10991.48828, rel=1e-6)
    assert before == pytest.approx(0.55)
    assert objective.beta.item() == pytest.approx(0.55 + 10991.48828e-6, rel=1e-6)
    assert objective.step == 1002


@pytest.mark.parametrize("speedup", [1.0, 5.0])
def test_many_steps(speedup: float) -> None:
    goal, dimensions = -1.2, 3 * 35**2
    options = {"step_size": 1e-3, "speedup": speedup}
    objective = objective_of(goal=goal, warmup_steps=5, **options)
    plain = Plain(goal * dimensions, 5, **options)
    generator = torch.Generator().manual_seed(0)
    met, floored = 0, 0
    for step in range(400):
        swing = (0.05 if step < 60 else -0.05) + 0.02 * torch.randn((), generator=generator).item()
        error = goal * dimensions * (1.0 - swing)
        assert objective(terms(error), dimensions).item() == pytest.approx(
            plain.loss(error, 100.0), rel=1e-3, abs=0.1
        )
        objective.update()
        plain.update(error)
        assert objective.beta.item() == pytest.approx(plain.beta, abs=2e-3)
        met += plain.ema > 0.0
        floored += step > 10 and plain.beta == 0.55
    assert 0 < met < 390
    assert floored


@pytest.mark.parametrize(("step", "weight"), [(0, 1.0), (999, 1.0), (1000, 1.0054925), (5000, softplus(2.0))])
def test_gradient(step: int, weight: float) -> None:
    """That of `weight nll + KL`, whatever the value."""
    objective = objective_of()
    objective.step.fill_(step)
    if step == 5000:
        objective.beta.fill_(2.0)
    nll, kl = torch.full((4,), -5e4, requires_grad=True), torch.ones(4, requires_grad=True)
    objective({"a": Terms(nll, {"latent": kl}, weight=2.0)}, CLEVR6).backward()
    assert nll.grad is not None
    assert kl.grad is not None
    assert nll.grad.tolist() == pytest.approx([2.0 * weight / 4] * 4)
    assert kl.grad.tolist() == pytest.approx([0.5] * 4)
    assert objective.weights().flatten().tolist() == pytest.approx([weight, 1.0])


def with_steps(last: float = -50000.0) -> dict[str, Terms]:
    """Two earlier steps and the last one."""
    return terms(
        last,
        kl=30.0,
        weight=0.75,
        steps=(terms(-40000.0, 20.0, weight=1.25)["a"], terms(-45000.0, 25.0, weight=1.0)["a"]),
    )


NLL, KL = 1.25 * -40000 - 45000 + 0.75 * -50000, 1.25 * 20 + 25 + 0.75 * 30


def test_earlier_steps_add_to_the_loss_alone() -> None:
    plain = objective_of()
    assert plain(with_steps(), CLEVR6).item() == pytest.approx(NLL + KL)
    constrained = objective_of()
    constrained.step.fill_(5000)
    constrained.beta.fill_(2.0)
    constrained.average.fill_(GOAL + 100.0)
    expected = KL + softplus(2.0) * 100.0 * (1.25 + 1.0 + 0.75)
    assert constrained(with_steps(), CLEVR6).item() == pytest.approx(expected, rel=1e-5)
    constrained.update()
    assert average_constraint(constrained) == pytest.approx(-99.0 + 0.01 * (GOAL + 50000.0), abs=0.02)


def test_earlier_steps_in_other_objectives() -> None:
    fixed, geco = FixedBeta(0.5), GECO(beta=0.25)
    for objective, beta in ((fixed, 0.5), (geco, 0.25)):
        objective.bind(["a"])
        assert objective(with_steps(), CLEVR6).item() == pytest.approx(NLL + beta * KL)
        objective.update()
    assert geco.average.item() == -50000.0


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (FixedBeta(0.5), [[1.0, 1.0], [0.5, 0.5]]),
        (GECO(beta=0.25), [[1.0, 1.0], [0.25, 0.25]]),
        (SoftplusGECO(warmup_steps=0, beta=2.0), [[softplus(2.0)] * 2, [1.0, 1.0]]),
    ],
)
def test_weights(objective: Objective, expected: list[list[float]]) -> None:
    """Those of the loss's gradient."""
    objective.bind(["a", "b"])
    weights = objective.weights()
    torch.testing.assert_close(weights, torch.tensor(expected))
    values = torch.ones(2, 2, requires_grad=True)
    branches = {name: Terms(values[0, i : i + 1], {"x": values[1, i : i + 1]}) for i, name in enumerate("ab")}
    objective(branches, CLEVR6).backward()
    torch.testing.assert_close(values.grad, weights)


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_error_that_is_not_finite_changes_nothing(error: float) -> None:
    objective = objective_of(warmup_steps=0)
    for _ in range(2):
        objective(terms(-50000.0), CLEVR6)
        objective.update()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    assert not objective(terms(error), CLEVR6).isfinite()
    objective.update()
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_nothing_waits_for_the_device() -> None:
    objective = objective_of()
    with count_operations() as counts:
        objective(with_steps(), CLEVR6)
        objective.update()
        objective.log_values()
    assert counts.kernels
    assert not counts.syncs
    assert not counts.host_reads


def test_plain_data_and_logged_values() -> None:
    again = objective_from_plain(objective_of(goal=-1.224, speedup=5.0).plain())
    assert isinstance(again, SoftplusGECO)
    assert (again.goal, again.speedup, again.warmup_steps) == (-1.224, 5.0, 1000)
    objective = objective_of()
    objective(terms(-50000.0), CLEVR6)
    objective.update()
    values = {name: value.item() for name, value in objective.log_values().items()}
    assert values == pytest.approx(
        {"geco/a/beta": 0.55, "geco/a/nll_average": -50000.0 / CLEVR6, "geco/a/goal": -2.206}
    )
