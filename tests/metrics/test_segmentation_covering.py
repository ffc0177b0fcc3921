"""Segmentation covering against hand-worked numbers and a plain loop."""

import pytest
import torch
from torch import Tensor

from lightning_genesis.metrics import SegmentationCovering, segmentation_covering

A = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2, 0, 255]], dtype=torch.uint8)[None]
B = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0], [3, 3, 3, 3], [0, 3, 0, 0]])[None]


def reference(
    prediction: Tensor, target: Tensor, num_slots: int, num_background: int, foreground: bool, weighted: bool
) -> list[float]:
    """Pixel by pixel with sets."""
    scores = []
    for slots, ids in zip(prediction.flatten(1).tolist(), target.flatten(1).tolist(), strict=True):
        ids = [0 if label < num_background else label for label in ids]
        valid = [pixel for pixel, label in enumerate(ids) if label != 255]
        regions = [{pixel for pixel in valid if slots[pixel] == slot} for slot in range(num_slots)]
        total = weight = 0.0
        for label in sorted({ids[pixel] for pixel in valid}):
            if foreground and label < num_background:
                continue
            area = {pixel for pixel in valid if ids[pixel] == label}
            best = max(len(area & region) / len(area | region) for region in regions)
            share = len(area) if weighted else 1
            total, weight = total + share * best, weight + share
        scores.append(total / weight if weight else 0.0)
    return scores


@pytest.mark.parametrize(
    ("foreground", "weighted", "expected"),
    [(False, False, 0.601852), (False, True, 0.592593), (True, False, 0.625), (True, True, 0.625)],
)
def test_worked_example(foreground: bool, weighted: bool, expected: float) -> None:
    score = segmentation_covering(B, A, num_slots=4, foreground=foreground, weighted=weighted)
    assert score.dtype == torch.float64
    assert score.tolist() == pytest.approx([expected], abs=5e-7)


@pytest.mark.parametrize("weighted", [False, True])
def test_worked_example_beside_an_image_of_background(weighted: bool) -> None:
    prediction, target = torch.cat([B, B]), torch.cat([A, torch.zeros_like(A)])
    metric = SegmentationCovering(4, foreground=True, weighted=weighted)
    metric.update(prediction, target)
    assert metric.compute().item() == pytest.approx(0.3125)
    assert {name: count.item() for name, count in metric.image_counts().items()} == {
        "counted": 2,
        "without_foreground": 1,
    }
    skipping = SegmentationCovering(4, foreground=True, weighted=weighted, convention="skip")
    skipping.update(prediction, target)
    assert skipping.compute().item() == pytest.approx(0.625)
    assert skipping.image_counts()["counted"].item() == 1


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("foreground", [False, True])
@pytest.mark.parametrize("num_background", [0, 1, 3])
def test_equals_the_plain_loop(num_background: int, foreground: bool, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(6, (8, 9, 7), generator=generator).to(torch.uint8)
    guess = torch.randint(5, (8, 9, 7), generator=generator)
    prediction = torch.where(torch.rand(target.shape, generator=generator) < 0.7, target % 5, guess).long()
    target[torch.rand(target.shape, generator=generator) < 0.1] = 255
    target[0] = 255
    target[1] = 0
    scores = segmentation_covering(
        prediction,
        target,
        num_slots=5,
        num_background=num_background,
        foreground=foreground,
        weighted=weighted,
    )
    expected = reference(prediction, target, 5, num_background, foreground, weighted)
    assert scores.tolist() == pytest.approx(expected, abs=1e-12)
    order = torch.randperm(5, generator=generator)
    permuted = segmentation_covering(
        order[prediction],
        target,
        num_slots=5,
        num_background=num_background,
        foreground=foreground,
        weighted=weighted,
    )
    assert torch.equal(permuted, scores)


def test_the_background_in_a_slot_costs_in_the_foreground_score() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    target[:, :2, :2] = 1
    whole = torch.zeros(1, 4, 4, dtype=torch.int64)
    exact = (target == 1).long()
    options = {"num_slots": 2, "foreground": True, "weighted": False}
    assert segmentation_covering(whole, target, **options).item() == pytest.approx(4 / 16)
    assert segmentation_covering(exact, target, **options).item() == 1


def test_ignored_pixels_leave_the_slots() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    target[:, :2, :2] = 1
    target[:, 2:] = 255
    target[:, :, 2:] = 255
    whole = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert segmentation_covering(whole, target, num_slots=1, foreground=True, weighted=True).item() == 1


def test_mean_over_images_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(4, (7, 8, 8), generator=generator).to(torch.uint8)
    prediction = torch.randint(3, (7, 8, 8), generator=generator)
    together, apart = SegmentationCovering(3), SegmentationCovering(3)
    together.update(prediction, target)
    for part in (slice(0, 5), slice(5, 7)):
        apart.update(prediction[part], target[part])
    torch.testing.assert_close(apart.compute(), together.compute(), rtol=0, atol=1e-15)
    expected = reference(prediction, target, 3, 1, False, False)
    assert together.compute().item() == pytest.approx(sum(expected) / 7)
