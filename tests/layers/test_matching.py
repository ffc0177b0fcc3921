"""Greedy and optimal matching against plain loops and brute force."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.matching import greedy_order, hungarian_order, reorder, slot_order


def plain_greedy(cost: Tensor) -> list[int]:
    """Algorithm 1 of the SRI paper, of one image."""
    rows, order = cost.tolist(), []
    for row in rows:
        free = [column for column in range(len(row)) if column not in order]
        order.append(min(free, key=lambda column: row[column]))  # the first one on ties
    return order


@pytest.mark.parametrize("num_slots", [1, 2, 5, 9])
def test_greedy_is_the_plain_loop(num_slots: int) -> None:
    cost = torch.rand(50, num_slots, num_slots, generator=torch.Generator().manual_seed(0))
    assert greedy_order(cost).tolist() == [plain_greedy(image) for image in cost]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_greedy_takes_the_first_one_on_ties(levels: int) -> None:
    cost = torch.randint(0, levels, (200, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    assert greedy_order(cost).tolist() == [plain_greedy(image) for image in cost]


def test_example_of_the_specification() -> None:
    slots = torch.tensor([0.0, 1.0, 5.0]).reshape(1, 3, 1)
    rollout = torch.tensor([0.9, 0.6, 0.0]).reshape(1, 3, 1)
    assert slot_order(rollout, slots).tolist() == [[1, 0, 2]]
    assert reorder(slots, slot_order(rollout, slots)).flatten().tolist() == [1.0, 0.0, 5.0]
    best = reorder(slots, slot_order(rollout, slots, "hungarian"))
    assert (rollout - best).abs().sum().item() == pytest.approx(4.5)  # greedy: 5.7


def test_hungarian_is_the_best_of_all_permutations() -> None:
    cost = torch.rand(20, 5, 5, generator=torch.Generator().manual_seed(0))
    for image, order in zip(cost.double(), hungarian_order(cost), strict=True):
        best = min(sum(image[row, column] for row, column in enumerate(p)) for p in permutations(range(5)))
        assert sorted(order.tolist()) == list(range(5))
        torch.testing.assert_close(image[torch.arange(5), order].sum(), best)


def test_distances_and_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    rollout = torch.randn(7, 4, 3, generator=generator, requires_grad=True)
    slots = torch.randn(7, 4, 3, generator=generator)
    cost = (rollout.detach().unsqueeze(2) - slots.unsqueeze(1)).double().square().sum(dim=3)
    order = slot_order(rollout, slots)
    assert not order.requires_grad
    assert order.tolist() == [plain_greedy(image) for image in cost]


def test_order_finds_a_permutation_back() -> None:
    generator = torch.Generator().manual_seed(0)
    slots = torch.randn(5, 6, 4, generator=generator)
    order = torch.rand(5, 6, generator=generator).argsort(dim=1)
    for matching in ("greedy", "hungarian"):
        assert torch.equal(slot_order(reorder(slots, order), slots, matching), order)  # type: ignore[arg-type]


def test_reorder_any_shape() -> None:
    values, order = torch.rand(2, 3, 1, 4, 5), torch.tensor([[2, 0, 1], [0, 1, 2]])
    assert torch.equal(reorder(values, order)[0], values[0, [2, 0, 1]])
    assert torch.equal(reorder(values, order)[1], values[1])
    assert torch.equal(reorder(values[:, :, 0, 0, 0], order)[0], values[0, [2, 0, 1], 0, 0, 0])


def test_unknown_matching() -> None:
    with pytest.raises(ConfigurationError, match="matching='best' is unknown: use 'greedy' or 'hungarian'"):
        slot_order(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), "best")  # type: ignore[arg-type]
