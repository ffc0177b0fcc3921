"""What every convention says about the images on which a score is 0 / 0."""

from collections import Counter
from math import isnan, nan

import pytest
import torch
from torch import Tensor

from lightning_genesis.metrics import (
    CONVENTIONS,
    AdjustedRandIndex,
    Convention,
    SegmentationCovering,
    adjusted_rand_index,
    segmentation_covering,
)

ORDER: list[Convention] = ["genesis", "scikit-learn", "deepmind", "emorl", "skip"]

BACKGROUND = torch.zeros(1, 4, 4, dtype=torch.uint8)
OBJECT = BACKGROUND.clone()
OBJECT[:, :2, :2] = 1
PIXEL = BACKGROUND.clone()
PIXEL[:, 0, 0] = 1
TWO_PIXELS = PIXEL.clone()
TWO_PIXELS[:, 3, 3] = 2
TWO_OBJECTS = OBJECT.clone()
TWO_OBJECTS[:, 2:, 2:] = 2
IGNORED = torch.full((1, 4, 4), 255, dtype=torch.uint8)

ONE_SLOT = torch.zeros(1, 4, 4, dtype=torch.int64)
WRONG_PIXEL = ONE_SLOT.clone()
WRONG_PIXEL[:, 0, 0] = 1
FIELD = {
    "one object, perfect": (OBJECT.long(), OBJECT, (1, 1, nan, 1, 1)),
    "one object, perfect, slot also takes the background": (ONE_SLOT, OBJECT, (1, 1, nan, 1, 1)),
    "one object, one pixel wrong": (WRONG_PIXEL, OBJECT, (0, 0, 0, 0, 0)),
    "no foreground": (WRONG_PIXEL, BACKGROUND, (1, 1, nan, 0, nan)),
    "all ignored": (WRONG_PIXEL, IGNORED, (1, 1, nan, 0, nan)),
    "a single pixel": (WRONG_PIXEL, PIXEL, (1, 1, nan, 1, 1)),
    "two objects of a pixel, apart": (WRONG_PIXEL, TWO_PIXELS, (1, 1, nan, 0, 1)),
    "two objects, perfect": (TWO_OBJECTS.long(), TWO_OBJECTS, (1, 1, 1, 1, 1)),
    "two objects, slot also takes the background": (
        (TWO_OBJECTS == 1).long(),
        TWO_OBJECTS,
        (1, 1, 1, 1, 1),
    ),
    "two objects in one slot": (ONE_SLOT, TWO_OBJECTS, (0, 0, 0, 0, 0)),
}


def test_the_table_lists_all() -> None:
    assert list(CONVENTIONS) == ORDER


@pytest.mark.parametrize("case", FIELD)
@pytest.mark.parametrize("column", range(5), ids=ORDER)
def test_foreground_index(case: str, column: int) -> None:
    prediction, target, expected = FIELD[case]
    score = adjusted_rand_index(prediction, target, num_slots=3, foreground=True, convention=ORDER[column])
    assert score.tolist() == pytest.approx([expected[column]], nan_ok=True)


@pytest.mark.parametrize(("convention", "expected"), list(zip(ORDER, (1, 1, nan, 1, 1), strict=True)))
def test_index_of_an_empty_scene_in_one_slot(convention: Convention, expected: float) -> None:
    score = adjusted_rand_index(ONE_SLOT, BACKGROUND, num_slots=3, convention=convention)
    assert score.tolist() == pytest.approx([expected], nan_ok=True)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("convention", "expected"), list(zip(ORDER, (0, 0, 0, 0, nan), strict=True)))
@pytest.mark.parametrize(("target", "foreground"), [(BACKGROUND, True), (IGNORED, True), (IGNORED, False)])
def test_covering_without_labels(
    target: Tensor, foreground: bool, convention: Convention, expected: float, weighted: bool
) -> None:
    score = segmentation_covering(
        ONE_SLOT, target, num_slots=3, foreground=foreground, weighted=weighted, convention=convention
    )
    assert score.tolist() == pytest.approx([expected], nan_ok=True)


@pytest.mark.parametrize("convention", ORDER)
def test_only_skip_changes_coverings_and_no_convention_an_image_of_background(convention: Convention) -> None:
    options = {"num_slots": 3, "weighted": False, "convention": convention}
    assert segmentation_covering(ONE_SLOT, BACKGROUND, foreground=False, **options).item() == 1
    assert segmentation_covering(ONE_SLOT, OBJECT, foreground=True, **options).item() == 0.25


@pytest.mark.parametrize(
    ("convention", "mean", "counted"),
    [
        ("genesis", (1 + 1 + 0) / 3, 3),
        ("scikit-learn", (1 + 1 + 0) / 3, 3),
        ("deepmind", 0.0, 1),
        ("emorl", (1 + 0 + 0) / 3, 3),
        ("skip", (1 + 0) / 2, 2),
    ],
)
def test_the_mean_leaves_out_what_is_undefined(convention: Convention, mean: float, counted: int) -> None:
    metric = AdjustedRandIndex(3, foreground=True, convention=convention)
    metric.update(torch.cat([OBJECT.long(), ONE_SLOT, WRONG_PIXEL]), torch.cat([OBJECT, BACKGROUND, OBJECT]))
    assert metric.compute().item() == pytest.approx(mean)
    counts = metric.image_counts()
    assert counts["counted"].item() == counted
    assert counts["without_foreground"].item() == 1


def test_a_mean_over_nothing_is_not_a_number() -> None:
    metric = SegmentationCovering(3, foreground=True, convention="skip")
    metric.update(ONE_SLOT, BACKGROUND)
    assert isnan(metric.compute().item())


# ---------------------------------------------------------------- the formula of EMORL and SRI


def emorl_index(prediction: list[int], target: list[int], num_background: int) -> float:
    """Of one image, over all pairs of pixels, as SRI's and EMORL's function is described.

    Source: specs/sri-emorl-slot-attention.md, Section 8.2.
    """
    cells = Counter(
        (slot, label) for slot, label in zip(prediction, target, strict=True) if label >= num_background
    )
    if len(cells) == 1:
        return 1.0
    slots, labels = Counter[int](), Counter[int]()
    for (slot, label), count in cells.items():
        slots[slot] += count
        labels[label] += count
    index, a, b = (sum(n * (n - 1) for n in counts.values()) for counts in (cells, slots, labels))
    pixels = sum(cells.values())
    if pixels < 2:
        return 0.0  # the quotient below is NaN
    expected, largest = a * b / (pixels * (pixels - 1)), (a + b) / 2
    return 0.0 if largest == expected else (index - expected) / (largest - expected)


@pytest.mark.parametrize("num_background", [1, 3])
@pytest.mark.parametrize(
    ("num_slots", "background"), [(1, 0.3), (3, 0.0), (4, 0.5), (4, 0.95), (9, 0.8), (9, 1.0)]
)
def test_index_of_emorl_on_random_maps(num_slots: int, background: float, num_background: int) -> None:
    """From no background to a few pixels of foreground, where the quotient may be 0 / 0."""
    generator = torch.Generator().manual_seed(num_slots)
    shape = (200, 6, 7)
    target = torch.randint(num_background + 3, shape, generator=generator, dtype=torch.uint8)
    target[torch.rand(shape, generator=generator) < background] = 0
    guess = torch.randint(num_slots, shape, generator=generator)
    prediction = torch.where(torch.rand(shape, generator=generator) < 0.6, target % num_slots, guess)
    expected = [
        emorl_index(*pair, num_background)
        for pair in zip(prediction.flatten(1).tolist(), target.flatten(1).tolist(), strict=True)
    ]
    scores = adjusted_rand_index(
        prediction,
        target,
        num_slots=num_slots,
        num_background=num_background,
        foreground=True,
        convention="emorl",
    )
    assert scores.tolist() == pytest.approx(expected, abs=1e-12)
    metric = AdjustedRandIndex(num_slots, num_background=num_background, foreground=True, convention="emorl")
    metric.update(prediction, target)
    assert metric.compute().item() == pytest.approx(sum(expected) / len(expected), abs=1e-12)


def test_the_formula_of_emorl_on_the_edge_cases() -> None:
    for prediction, target, expected in FIELD.values():
        labels = target.where(target != 255, 0).flatten().tolist()
        assert emorl_index(prediction.flatten().tolist(), labels, 1) == expected[ORDER.index("emorl")]
