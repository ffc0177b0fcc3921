"""Learning rates at the steps that the specification prints (§5.7, §6.1)."""

import pytest

from lightning_genesis.optimization.schedules import warmup_and_decay


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (1, 4e-8), (5_000, 1.931873e-4), (10_000, 3.732132e-4), (300_000, 5e-5)],
)
def test_slot_attention(step: int, expected: float) -> None:
    """`4e-4 min(1, t / 10000) 0.5^(t / 100000)`."""
    factor = warmup_and_decay(10_000, 0.5, 100_000, decay_in_warmup=True)
    assert 4e-4 * factor(step) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (5_000, 2e-4), (10_000, 4e-4), (10_100, 3.997228e-4), (110_000, 2e-4), (300_000, 5.358867e-5)],
)
def test_emorl(step: int, expected: float) -> None:
    """Linear up to step 10000, then half every 100000."""
    factor = warmup_and_decay(10_000, 0.5, 100_000, decay_in_warmup=False)
    assert 4e-4 * factor(step) == pytest.approx(expected, rel=1e-6)


def test_parts_can_be_left_out() -> None:
    assert [warmup_and_decay(0, 0.5, 0, True)(step) for step in (0, 10, 10**6)] == [1.0, 1.0, 1.0]
    assert [warmup_and_decay(4, 0.5, 0, True)(step) for step in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0]
    assert [warmup_and_decay(0, 0.1, 10, False)(step) for step in (0, 20)] == pytest.approx([1.0, 0.01])
