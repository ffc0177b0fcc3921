"""GECO that sets its own goal, against plain floating-point numbers."""

import math
from typing import Any

import pytest
import torch

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import GenesisV2
from lightning_genesis.objectives import GECO, FixedBeta, Objective, SelfSettingGECO
from lightning_genesis.objectives.base import objective_from_plain
from lightning_genesis.objectives.self_setting_geco import UNSET
from lightning_genesis.storage.finite import not_finite
from tests.objectives.test_geco import DIMENSIONS, terms
from tests.test_checkpoint import train

OPTIONS: dict[str, Any] = {"warmup_steps": 5, "warmup_beta": 0.02, "tolerance": 0.03, "smoothing": 0.8}


def made(branches: int = 1, **options: Any) -> SelfSettingGECO:
    objective = SelfSettingGECO(**{**OPTIONS, **options})
    objective.bind(["a", "b"][:branches])
    return objective


def step(objective: Objective, *errors: float) -> None:
    objective(terms(*errors), DIMENSIONS)
    objective.update()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_goal_is_the_average_and_a_little_more_whatever_its_sign(sign: float) -> None:
    objective = made()
    errors = [sign * (9000.0 - 100.0 * number) for number in range(12)]
    average, beta, goal = errors[0], 0.02, None
    for number, error in enumerate(errors):
        step(objective, error)
        average = error if number == 0 else 0.8 * average + 0.2 * error
        if goal is not None:
            constraint = goal * DIMENSIONS - average
            beta *= math.exp(1e-5 * constraint * (10.0 if constraint > 0 else 1.0))
        assert objective.beta.item() == pytest.approx(beta, rel=1e-5), number
        if number == 4:  # the fifth step is the last of the warm-up
            goal = (average + 0.03 * abs(average)) / DIMENSIONS
            assert goal * DIMENSIONS > average
    assert goal is not None
    assert objective.goal_set.item() == pytest.approx(goal, rel=1e-6)
    assert objective.log_values()["geco/a/goal"].item() == pytest.approx(goal, rel=1e-6)
    assert beta > 0.02  # the goal is met, so β rises


def test_every_branch_has_a_goal_of_its_own_and_meets_it_alone() -> None:
    objective = made(branches=2)
    for _ in range(4):
        step(objective, 9000.0, 5000.0)
        assert objective.goal_met(DIMENSIONS).tolist() == [False, False]  # there is none yet
    step(objective, 9000.0, 5000.0)
    torch.testing.assert_close(objective.goal_set * DIMENSIONS, torch.tensor([9270.0, 5150.0]))
    for _ in range(20):
        step(objective, 12000.0, 5000.0)
    assert objective.goal_met(DIMENSIONS).tolist() == [False, True]


def test_with_a_window_it_waits_until_the_error_is_flat() -> None:
    """Branch a falls by halves and flattens, b is flat at once: each has a goal when its window was flat."""
    objective = made(branches=2, warmup_steps=3, flat_window=2, tolerance=0.05, smoothing=0.0)
    errors = [1024.0, 512.0, 256.0, 128.0, 64.0, 32.0, 31.9, 31.8, 31.7, 31.0]
    goals = []
    for error in errors:
        step(objective, error, 500.0)
        goals.append([round(goal, 2) for goal in (objective.goal_set * DIMENSIONS).tolist()])
    unset = round(UNSET * DIMENSIONS, 2)
    # Windows end after 3, 5, 7 and 9 steps. Within the first two a falls from 256 over 64 to 31.9, ...
    assert all(goal[0] < 0.9 * unset for goal in goals[:8])
    assert [goal[0] for goal in goals[8:]] == pytest.approx([31.7 * 1.05] * 2, abs=0.01)
    # ... b is flat within the first; before it there is no window to compare with.
    assert all(goal[1] < 0.9 * unset for goal in goals[:4])
    assert [goal[1] for goal in goals[4:]] == pytest.approx([525.0] * 6)
    assert objective.beta[0].item() == pytest.approx(0.02, rel=1e-3)  # its goal is only just met
    assert objective.beta[1] > 0.02  # met by 25 for five steps


@pytest.mark.parametrize("flat_window", [None, 2])
def test_it_resumes_bit_for_bit_before_and_after_the_goal_is_set(flat_window: int | None) -> None:
    errors = [9000.0 - 37.0 * number for number in range(12)]
    for stop in (3, 5, 6, 8):
        whole, first, resumed = (made(flat_window=flat_window) for _ in range(3))
        for error in errors:
            step(whole, error)
        for error in errors[:stop]:
            step(first, error)
        resumed.load_state_dict(first.state_dict())
        for error in errors[stop:]:
            step(resumed, error)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (stop, name)


def test_two_micro_batches_are_one_batch() -> None:
    whole, parts = made(), made()
    for number in range(8):
        step(whole, 9000.0 - number)
        parts(terms(8990.0 - number), DIMENSIONS)
        parts(terms(9010.0 - number), DIMENSIONS)
        parts.update()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, parts.state_dict()[name], rtol=1e-6, atol=0)


def test_a_gated_step_neither_counts_nor_sets_the_goal() -> None:
    objective = made(warmup_steps=2)
    step(objective, 9000.0)
    for error in (1e4, math.nan):
        objective(terms(error), DIMENSIONS)
        objective.update(torch.tensor(False))
    assert objective.step.item() == 1
    assert objective.goal_set.item() == pytest.approx(UNSET)
    assert objective.log_values()["geco/a/goal"].item() * DIMENSIONS == pytest.approx(9270.0)
    step(objective, 9000.0)
    assert objective.goal_set.item() * DIMENSIONS == pytest.approx(9270.0)


def test_the_gate_lets_it_train() -> None:
    """Its state is finite from the start; a goal of minus infinity once stopped every run at step 0."""
    model = GenesisV2(
        num_slots=3,
        image_size=32,
        latent_dim=8,
        feature_dim=8,
        objective=SelfSettingGECO(warmup_steps=1, warmup_beta=0.5),
    )
    assert not not_finite({"objective": model.objective.state_dict()})
    train(model)
    assert model.objective.state_dict()["step"] == 1
    assert model.objective.state_dict()["goal_set"].item() > 0.9 * UNSET


def test_it_is_named_in_files_and_refuses_what_makes_no_sense() -> None:
    objective = objective_from_plain(made().plain())
    assert isinstance(objective, SelfSettingGECO)
    assert objective.plain() == made().plain()
    for name, value in {"warmup_steps": 0, "tolerance": -0.1, "flat_window": 0}.items():
        with pytest.raises(ConfigurationError, match=f"{name}={value}"):
            SelfSettingGECO(**{**OPTIONS, name: value})


def test_who_has_a_goal_and_when_it_is_met() -> None:
    fixed = FixedBeta()
    fixed.bind(["a"])
    assert fixed.goal_met(DIMENSIONS) is None
    objective = GECO(goal=9000.0 / DIMENSIONS, smoothing=0.0)
    objective.bind(["a"])
    assert not objective.goal_met(DIMENSIONS)
    for error, met in ((9100.0, False), (8990.0, True), (9100.0, False)):
        step(objective, error)
        assert objective.goal_met(DIMENSIONS).item() is met
