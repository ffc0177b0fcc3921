"""Learning rates against closed forms and against torch's own schedulers."""

from collections.abc import Callable

import pytest
import torch

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import MONet, SlotAttention
from lightning_genesis.optimization.schedules import make_schedule

Factor = Callable[[int], float]


def factor_of(**options: object) -> Factor:
    factor = make_schedule(**options)  # type: ignore[arg-type]
    assert factor is not None
    return factor


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (1, 4e-8), (5_000, 1.931873e-4), (10_000, 3.732132e-4), (300_000, 5e-5)],
)
def test_slot_attention(step: int, expected: float) -> None:
    """Specification §6.1: `4e-4 min(1, t / 10000) 0.5^(t / 100000)`."""
    factor = factor_of(warmup_steps=10_000, decay_steps=100_000, decay_in_warmup=True)
    assert 4e-4 * factor(step) == pytest.approx(expected, rel=1e-6)
    assert SlotAttention(2, 16, decoder="small", slot_dim=8).learning_rate_schedule()(step) == factor(step)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (5_000, 2e-4), (10_000, 4e-4), (10_100, 3.997228e-4), (110_000, 2e-4), (300_000, 5.358867e-5)],
)
def test_emorl(step: int, expected: float) -> None:
    """Specification §5.7: linear up to step 10000, then half every 100000."""
    factor = factor_of(warmup_steps=10_000, decay_steps=100_000)
    assert 4e-4 * factor(step) == pytest.approx(expected, rel=1e-6)


def test_nothing_asked_for_is_constant() -> None:
    assert make_schedule() is None
    assert [factor_of(warmup_steps=4)(step) for step in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0]
    factor = factor_of(decay_rate=0.1, decay_steps=10)
    assert [factor(step) for step in (0, 20)] == pytest.approx([1.0, 0.01])


def rates(
    make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], steps: int
) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        (
            {"schedule": "cosine", "decay_steps": 17},
            lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 17),
        ),
        (
            {"schedule": "cosine", "decay_steps": 17, "final_factor": 0.1},
            lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 17, eta_min=0.03),
        ),
        (
            {"schedule": "step", "decay_steps": 5, "decay_rate": 0.3},
            lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.3),
        ),
        (
            {"schedule": "exponential", "decay_steps": 1, "decay_rate": 0.9},
            lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
        ),
    ],
)
def test_against_torch(options: dict[str, object], theirs: Callable[..., object]) -> None:
    ours = factor_of(**options)
    assert [0.3 * ours(step) for step in range(17)] == pytest.approx(rates(theirs, 17), abs=1e-12)  # type: ignore[arg-type]


def test_warm_up_then_cosine_against_torch() -> None:
    def theirs(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 6)
        down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [up, down], [6])

    ours = factor_of(schedule="cosine", warmup_steps=6, decay_steps=20)
    assert [0.3 * ours(step) for step in range(26)] == pytest.approx(rates(theirs, 26), abs=1e-12)
    assert ours(26) == ours(1000) == pytest.approx(0.0, abs=1e-12)  # and stays, where torch's rises again


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"schedule": "linear"}, "schedule='linear' is unknown: use one of exponential, cosine, step"),
        ({"schedule": "cosine"}, "schedule='cosine' needs decay_steps"),
        ({"schedule": "step"}, "schedule='step' needs decay_steps"),
        ({"warmup_steps": -1}, "warmup_steps=-1 is too small"),
        ({"decay_steps": -1}, "decay_steps=-1 is too small"),
        ({"decay_rate": 0.0}, "decay_rate=0.0 is no decay"),
        ({"decay_rate": float("nan")}, "decay_rate=nan is no decay"),
        ({"decay_rate": 2.0}, "decay_rate=2.0 is no decay"),
        ({"final_factor": 1.5}, "final_factor=1.5"),
    ],
)
def test_what_does_not_fit_is_refused_by_every_model(options: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigurationError, match=line.replace("(", r"\(")):
        make_schedule(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=line.replace("(", r"\(")):
        MONet(2, 32, latent_dim=4, feature_dim=8, **options)
