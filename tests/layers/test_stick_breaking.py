"""Stick breaking against products of probabilities in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_genesis.layers import stick_breaking
from lightning_genesis.layers.stick_breaking import break_off


def logits_of(num_slots: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(num_slots)
    return scale * torch.randn(2, num_slots, 1, 3, 4, generator=generator)


@pytest.mark.parametrize("num_slots", [1, 2, 5, 11])
def test_masks_are_shares_of_what_is_left(num_slots: int) -> None:
    logits = logits_of(num_slots)
    share = 1.0 / (1.0 + np.exp(-logits.double().numpy()))
    share[:, -1] = 1.0  # the last slot takes the rest
    left, expected = np.ones_like(share[:, 0]), np.empty_like(share)
    for k in range(num_slots):
        expected[:, k] = share[:, k] * left
        left = left * (1.0 - share[:, k])
    np.testing.assert_allclose(stick_breaking(logits).exp().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 50.0, 1e4])
def test_masks_sum_to_one_and_stay_finite(scale: float) -> None:
    log_masks = stick_breaking(logits_of(6, scale))
    assert log_masks.isfinite().all()
    total = log_masks.exp().sum(dim=1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_one_step_after_the_other_is_the_same() -> None:
    """Its gradients too, of which one is written by hand."""
    logits = logits_of(5).requires_grad_()
    log_scope, log_masks = torch.zeros(2, 1, 3, 4), []
    for k in range(4):
        log_mask, log_scope = break_off(logits[:, k], log_scope)
        log_masks.append(log_mask)
    one_by_one = torch.stack([*log_masks, log_scope], dim=1)
    torch.testing.assert_close(one_by_one, stick_breaking(logits))
    weights = torch.randn(one_by_one.shape, generator=torch.Generator().manual_seed(0))
    found, expected = (
        torch.autograd.grad((value * weights).sum(), logits)[0]
        for value in (one_by_one, stick_breaking(logits))
    )
    torch.testing.assert_close(found, expected)


def test_gradient() -> None:
    """The last logit has none; the others' is right, by finite differences in float64."""
    logits = logits_of(4).requires_grad_()
    weights = torch.randn(2, 4, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    (stick_breaking(logits) * weights).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[:, -1] == 0.0).all()

    def value(changed: np.ndarray) -> float:
        taken, left = -np.logaddexp(0.0, -changed), -np.logaddexp(0.0, changed)
        taken[:, -1], scope, total = 0.0, np.zeros_like(taken[:, 0]), 0.0
        for k in range(4):
            total += ((scope + taken[:, k]) * weights[:, k].double().numpy()).sum()
            scope = scope + left[:, k]
        return float(total)

    start = logits.detach().double().numpy()
    for index in np.ndindex(2, 3):  # of every image and slot, one pixel
        place = (*index, 0, 1, 2)
        step = np.zeros_like(start)
        step[place] = 1e-5
        expected = (value(start + step) - value(start - step)) / 2e-5
        assert logits.grad[place].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_logits_give_float32_masks(autocast: bool) -> None:
    logits = logits_of(4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        log_masks = stick_breaking(logits)
    assert log_masks.dtype == torch.float32
    torch.testing.assert_close(log_masks, stick_breaking(logits.float()))
