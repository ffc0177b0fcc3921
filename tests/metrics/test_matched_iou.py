"""mIoU by matching: against brute force over all matchings, scikit-learn, and cases worked by hand."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor

from lightning_genesis.metrics import MatchedIoU, SummedSquaredError, matched_iou, summed_squared_error


def brute_force(prediction: np.ndarray, target: np.ndarray, size: int) -> dict[str, float]:
    """Every matching of `size` masks with `size` masks; among the best ones that with the fewest pairs.

    A pair counts if either of its masks has a pixel.
    """
    kept = target != 255
    slots = [(prediction == j) & kept for j in range(size)]
    objects = [(target == i) & kept for i in range(size)]
    iou = np.zeros((size, size))
    for i, j in np.ndindex(size, size):
        if (union := (objects[i] | slots[j]).sum()) > 0:
            iou[i, j] = (objects[i] & slots[j]).sum() / union
    best = max(sum(iou[i, j] for i, j in enumerate(order)) for order in permutations(range(size)))
    counts = [
        (sum(objects[i].any() or slots[j].any() for i, j in enumerate(order)), order)
        for order in permutations(range(size))
        if sum(iou[i, j] for i, j in enumerate(order)) > best - 1e-12
    ]
    pairs, order = min(counts)
    background = iou[0, order[0]]
    there = int(objects[0].any())
    return {
        "miou": best / pairs,
        "miou_gt": best / sum(mask.any() for mask in objects),
        "miou_fg": (best - background) / (pairs - there) if pairs > there else 0.0,
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "miou": {},
    "miou_fg": {"foreground": True},
    "miou_gt": {"over": "objects"},
}


def scores(prediction: Tensor, target: Tensor, num_slots: int) -> dict[str, Tensor]:
    return {
        name: matched_iou(prediction, target, num_slots=num_slots, **options)
        for name, options in OPTIONS.items()
    }


@pytest.mark.parametrize("seed", range(4))
def test_brute_force(seed: int) -> None:
    """Blocky label maps, with slots that are empty and objects that no slot finds."""
    generator = np.random.default_rng(seed)
    size, side = 5, 8
    target = generator.integers(0, generator.integers(1, size + 1, (6, 1, 1)), (6, side, side))
    noise = generator.random(target.shape) < generator.random((6, 1, 1))
    renamed = np.stack([generator.permutation(size)[t] for t in target])
    prediction = np.where(
        noise, generator.integers(0, generator.integers(1, size + 1), target.shape), renamed
    )
    target[:, 0, 0] = 255
    found = scores(torch.from_numpy(prediction), torch.from_numpy(target), size)
    for image in range(6):
        for name, value in brute_force(prediction[image], target[image], size).items():
            assert found[name][image].item() == pytest.approx(value, abs=1e-12), name


def test_matched_pairs_have_scikit_learns_index() -> None:
    """With a matching that is the identity, mIoU is the mean Jaccard index of the classes."""
    generator = np.random.default_rng(5)
    target = generator.integers(0, 4, (3, 16, 16))
    prediction = np.where(
        generator.random(target.shape) < 0.2, generator.integers(0, 4, target.shape), target
    )
    found = matched_iou(torch.from_numpy(prediction), torch.from_numpy(target), num_slots=4)
    for image in range(3):
        expected = jaccard_score(target[image].ravel(), prediction[image].ravel(), average="macro")
        assert found[image].item() == pytest.approx(expected, abs=1e-12)


def test_cases_by_hand() -> None:
    target = torch.tensor([[[0, 0, 1, 1], [0, 0, 2, 2]]])
    perfect = torch.tensor([[[3, 3, 0, 0], [3, 3, 1, 1]]])
    merged = torch.tensor([[[3, 3, 0, 0], [3, 3, 0, 0]]])  # one slot for both objects
    split = torch.tensor([[[3, 2, 0, 0], [3, 2, 1, 1]]])  # two slots for the background
    expected = {
        "perfect": (1.0, 1.0, 1.0),
        "merged": (1.5 / 3, 0.5 / 2, 1.5 / 3),
        "split": (2.5 / 4, 2.0 / 3, 2.5 / 3),
    }
    for name, prediction in (("perfect", perfect), ("merged", merged), ("split", split)):
        found = scores(prediction, target, 4)
        assert tuple(found[key].item() for key in ("miou", "miou_fg", "miou_gt")) == pytest.approx(
            expected[name]
        ), name


def test_order_of_the_slots_changes_nothing() -> None:
    """Neither where an object and a slot are left over that do not meet."""
    target = torch.tensor([[[0, 0, 0, 1, 2, 2]]])
    prediction = torch.tensor([[[0, 0, 3, 1, 1, 1]]])  # slot 3 on the background, none for object 1
    values = set()
    for order in permutations(range(5)):
        renamed = torch.tensor(order)[prediction]
        values.add(round(matched_iou(renamed, target, num_slots=5).item(), 12))
    assert values == {round((2 / 3 + 2 / 3) / 3, 12)}


def test_images_without_objects() -> None:
    empty = torch.zeros(1, 4, 4, dtype=torch.long)
    assert matched_iou(empty, empty, num_slots=3).item() == 1.0
    assert matched_iou(empty, empty, num_slots=3, foreground=True).item() == 0.0
    ignored = torch.full_like(empty, 255)
    assert matched_iou(empty, ignored, num_slots=3).item() == 0.0
    assert matched_iou(empty, ignored, num_slots=3, convention="skip").isnan().item()


def test_class_is_the_mean_over_images() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(0, 4, (5, 8, 8), generator=generator)
    target = torch.randint(0, 6, (5, 8, 8), generator=generator)
    for options in OPTIONS.values():
        metric = MatchedIoU(4, **options)
        metric.update(prediction[:2], target[:2])
        metric.update(prediction[2:], target[2:])
        expected = matched_iou(prediction, target, num_slots=4, **options).mean()
        torch.testing.assert_close(metric.compute(), expected)
    with pytest.raises(ValueError, match="over: expected one of pairs, objects, got 'slots'"):
        MatchedIoU(4, over="slots")  # type: ignore[arg-type]


def test_summed_squared_error() -> None:
    generator = np.random.default_rng(0)
    reconstruction, image = generator.random((2, 3, 3, 4, 5))
    expected = ((reconstruction - image) ** 2).reshape(3, -1).sum(axis=1)
    pair = (torch.from_numpy(reconstruction), torch.from_numpy(image))
    assert summed_squared_error(*pair).tolist() == pytest.approx(expected.tolist())
    metric = SummedSquaredError()
    for rows in (slice(0, 1), slice(1, 3)):
        metric.update(*(part[rows] for part in pair))
    assert metric.compute().item() == pytest.approx(expected.mean())
