"""The consistency of an order against scikit-learn, by hand, and for its invariances."""

from fractions import Fraction
from itertools import product
from math import log

import numpy as np
import pytest
import torch
from sklearn.metrics import homogeneity_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from lightning_genesis.metrics import count_pixels
from lightning_genesis.metrics.order_consistency import (
    OrderConsistency,
    count_classes,
    object_slots,
    order_consistency,
    slot_places,
)


def random_objects(num: int, dependent: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes 0 to 2, and slots 0 to 5 that are the class's own with a probability."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 3, (num,), generator=generator)
    own = torch.rand(num, generator=generator) < dependent
    random = torch.randint(0, 6, (num,), generator=generator)
    either = torch.randint(0, 2, (num,), generator=generator)
    return torch.where(own, 2 * classes + either, random), classes


@pytest.mark.parametrize("dependent", [0.0, 0.3, 0.9, 1.0])
def test_against_scikit_learn(dependent: float) -> None:
    slots, classes = random_objects(4000, dependent)
    found = order_consistency(count_classes(slots, classes, 6, 3)).item()
    table = contingency_matrix(classes.numpy(), slots.numpy()).astype(np.int64)
    entropy = -sum(n / 4000 * log(n / 4000) for n in table.sum(axis=1))
    chance = expected_mutual_information(table, 4000) / entropy
    homogeneity = homogeneity_score(classes.numpy(), slots.numpy())
    assert found == pytest.approx((homogeneity - chance) / (1.0 - chance), abs=2e-5)


def test_extremes() -> None:
    told = torch.tensor([[5, 0, 0], [0, 7, 0], [0, 0, 2], [9, 0, 0]])
    assert order_consistency(told).item() == pytest.approx(1.0)
    assert abs(order_consistency(torch.full((4, 3), 10_000)).item()) < 1e-4
    assert order_consistency(torch.zeros(3, 2)).isnan()
    assert order_consistency(torch.tensor([[3, 0], [4, 0]])).isnan()


def test_random_order_has_none_on_average() -> None:
    scores = [order_consistency(count_classes(*random_objects(200, 0.0, seed), 6, 3)) for seed in range(200)]
    assert abs(torch.stack(scores).mean()) < 0.005


def test_order_of_slots_and_of_classes_does_not_matter() -> None:
    counts = torch.randint(0, 9, (5, 4), generator=torch.Generator().manual_seed(0))
    expected = order_consistency(counts)
    torch.testing.assert_close(order_consistency(counts.flip(0)), expected)
    torch.testing.assert_close(order_consistency(counts[:, torch.tensor([2, 0, 3, 1])]), expected)
    torch.testing.assert_close(order_consistency(torch.nn.functional.pad(counts, (0, 2, 1, 3))), expected)


def test_counts() -> None:
    slots = torch.tensor([[0, 2, 2, -1], [1, 2, 0, 0]])
    classes = torch.tensor([[1, 0, 0, 1], [1, -1, 1, 0]])
    assert count_classes(slots, classes, 3, 2).tolist() == [[1, 2], [0, 1], [2, 0]]
    with pytest.raises(ValueError, match=r"got \[2, 4\] and \[2, 3\]"):
        count_classes(slots, classes[:, :3], 3, 2)


def test_metric_adds_batches_up() -> None:
    slots, classes = random_objects(100, 0.5)
    metric = OrderConsistency(6, 3)
    for part in (slice(0, 30), slice(30, 100)):
        metric.update(slots[part], classes[part])
    assert metric.compute() == order_consistency(count_classes(slots, classes, 6, 3))


def test_object_slots() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    target[0, 1:3, 1:3], target[0, 3] = 2, 3  # there is no object 1
    prediction = torch.zeros(1, 4, 4, dtype=torch.int64)
    prediction[0, 1, 1:3], prediction[0, 2, 1:3], prediction[0, 3] = 1, 2, 1
    slots = object_slots(count_pixels(prediction, target, num_slots=4))
    assert slots[0, :4].tolist() == [0, -1, 1, 1]  # object 2 is half in slot 1: the first on ties
    assert (slots[0, 4:] == -1).all()


def test_places_against_a_plain_loop() -> None:
    segmentation = torch.randint(0, 5, (3, 6, 8), generator=torch.Generator().manual_seed(0))
    segmentation[1] = segmentation[1].clamp(max=3)
    segmentation[2, :2], segmentation[2, 2:] = 0, 4
    places = slot_places(segmentation, 5, grid=4)
    for image, slot in product(range(3), range(5)):
        pixels = (segmentation[image] == slot).nonzero().tolist()
        if not pixels:
            assert places[image, slot] == -1
            continue
        centre = [
            sum(Fraction(2 * x + 1, 2) for x in axis) / len(pixels) for axis in zip(*pixels, strict=True)
        ]
        assert places[image, slot] == 4 * int(centre[0] * 4 / 6) + int(centre[1] * 4 / 8)
