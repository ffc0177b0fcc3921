"""The fixed weight and its warm-up, by hand-worked numbers."""

import pytest
import torch

from lightning_genesis.objectives import FixedBeta
from lightning_genesis.scene import Terms

TERMS = {"a": Terms(torch.tensor([10.0, 30.0]), {"latent": torch.tensor([4.0, 8.0])})}


def losses(objective: FixedBeta, num_steps: int) -> list[float]:
    found = []
    for _ in range(num_steps):
        found.append(objective(TERMS, num_dimensions=12).item())
        objective.update()
    return found


def test_constant() -> None:
    assert losses(FixedBeta(0.5), 3) == [23.0, 23.0, 23.0]
    assert losses(FixedBeta(), 1) == [26.0]


def test_warm_up_is_linear_from_zero() -> None:
    assert losses(FixedBeta(0.5, warmup_steps=4), 6) == pytest.approx([20.0, 20.75, 21.5, 22.25, 23.0, 23.0])


def test_step_that_is_not_finite_is_not_counted() -> None:
    objective = FixedBeta(0.5, warmup_steps=4)
    objective.update(finite=torch.tensor(False))
    assert objective.beta == 0.0
    objective.update(finite=torch.tensor(True))
    assert objective.beta.item() == pytest.approx(0.125)


def test_state() -> None:
    first, second = FixedBeta(1.0, warmup_steps=10), FixedBeta(1.0, warmup_steps=10)
    losses(first, 3)
    second.load_state_dict(first.state_dict())
    assert losses(second, 2) == losses(first, 2)


def test_logged_values() -> None:
    objective = FixedBeta(0.5)
    objective.bind(["a", "b"])
    assert {name: value.item() for name, value in objective.log_values().items()} == {
        "geco/a/beta": 0.5,
        "geco/b/beta": 0.5,
    }
