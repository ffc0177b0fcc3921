"""The adjusted Rand index against scikit-learn, image by image."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from lightning_genesis.metrics import (
    AdjustedRandIndex,
    adjusted_rand_index,
    matched_iou,
    resize_prediction,
    segmentation_covering,
)

IGNORE = 255


def random_maps(
    seed: int, shape: tuple[int, int, int], num_slots: int, num_ids: int
) -> tuple[Tensor, Tensor]:
    """A prediction that agrees with the target in part, and a target with ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(num_ids, shape, generator=generator)
    target = target[:, ::4, ::4].repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    target = target[:, : shape[1], : shape[2]]
    guess = torch.randint(num_slots, shape, generator=generator)
    prediction = torch.where(torch.rand(shape, generator=generator) < 0.6, target % num_slots, guess)
    target = torch.where(torch.rand(shape, generator=generator) < 0.05, IGNORE, target)
    return prediction, target.to(torch.uint8)


def reference(prediction: Tensor, target: Tensor, num_background: int, foreground: bool) -> np.ndarray:
    scores = []
    for slots, ids in zip(prediction.flatten(1).numpy(), target.flatten(1).numpy().astype(int), strict=True):
        keep = ids != IGNORE
        if foreground:
            keep &= ids >= num_background
        merged = np.where(ids < num_background, 0, ids)
        scores.append(adjusted_rand_score(merged[keep], slots[keep]))
    return np.array(scores)


@pytest.mark.parametrize("foreground", [False, True])
@pytest.mark.parametrize("num_background", [0, 1, 4])
@pytest.mark.parametrize(("num_slots", "num_ids"), [(1, 3), (5, 8), (11, 40)])
def test_equals_scikit_learn(foreground: bool, num_background: int, num_slots: int, num_ids: int) -> None:
    prediction, target = random_maps(num_slots, (12, 17, 23), num_slots, num_ids)
    scores = adjusted_rand_index(
        prediction, target, num_slots=num_slots, num_background=num_background, foreground=foreground
    )
    assert scores.dtype == torch.float64
    assert scores.shape == (12,)
    expected = reference(prediction, target, num_background, foreground)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("foreground", [False, True])
def test_counts_of_large_images_do_not_overflow(foreground: bool) -> None:
    prediction, target = random_maps(0, (1, 512, 512), 10, 9)
    scores = adjusted_rand_index(prediction, target, num_slots=10, foreground=foreground)
    np.testing.assert_allclose(
        scores.numpy(), reference(prediction, target, 1, foreground), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integer_types_agree_and_arguments_stay_as_they_are(dtype: torch.dtype) -> None:
    prediction, target = random_maps(1, (3, 8, 8), 5, 6)
    expected = adjusted_rand_index(prediction, target, num_slots=5)
    typed = prediction.to(dtype), target.to(dtype)
    before = typed[0].clone(), typed[1].clone()
    torch.testing.assert_close(adjusted_rand_index(*typed, num_slots=5), expected, rtol=0, atol=0)
    assert torch.equal(typed[0], before[0])
    assert torch.equal(typed[1], before[1])


@pytest.mark.parametrize("foreground", [False, True])
def test_the_order_of_slots_does_not_matter(foreground: bool) -> None:
    prediction, target = random_maps(2, (6, 16, 16), 7, 6)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    scores = adjusted_rand_index(prediction, target, num_slots=7, foreground=foreground)
    permuted = adjusted_rand_index(order[prediction], target, num_slots=7, foreground=foreground)
    torch.testing.assert_close(permuted, scores, rtol=0, atol=1e-15)


def test_more_slots_than_needed_change_nothing() -> None:
    prediction, target = random_maps(3, (4, 16, 16), 5, 6)
    narrow = adjusted_rand_index(prediction, target, num_slots=5)
    torch.testing.assert_close(adjusted_rand_index(prediction, target, num_slots=30), narrow)


def test_other_ignore_index() -> None:
    prediction, target = random_maps(4, (4, 16, 16), 5, 6)
    moved = torch.where(target == IGNORE, torch.tensor(77, dtype=torch.uint8), target)
    torch.testing.assert_close(
        adjusted_rand_index(prediction, moved, num_slots=5, ignore_index=77),
        adjusted_rand_index(prediction, target, num_slots=5),
    )


def test_the_background_in_a_slot_is_free_in_the_foreground_score() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.uint8)
    target[:, :3, :3], target[:, 5:, 5:] = 1, 2
    prediction = (target == 2).long()
    assert adjusted_rand_index(prediction, target, num_slots=2, foreground=True).item() == 1
    assert adjusted_rand_index(prediction, target, num_slots=2).item() < 1


def test_larger_target_scores_the_enlarged_prediction() -> None:
    prediction, _ = random_maps(5, (3, 8, 8), 5, 6)
    _, target = random_maps(6, (3, 24, 16), 5, 6)
    enlarged = prediction.repeat_interleave(3, dim=1).repeat_interleave(2, dim=2)
    assert torch.equal(resize_prediction(prediction, 24, 16), enlarged)
    scores = adjusted_rand_index(prediction, target, num_slots=5)
    np.testing.assert_allclose(scores.numpy(), reference(enlarged, target, 1, False), rtol=0, atol=1e-12)


def test_enlarging_by_a_fraction_takes_the_nearest_centre() -> None:
    row = torch.tensor([[[0, 1]]])
    assert resize_prediction(row, 1, 3).tolist() == [[[0, 1, 1]]]
    image = torch.arange(30).view(1, 5, 6)
    expected = torch.nn.functional.interpolate(image[None].double(), size=(13, 16), mode="nearest-exact")
    assert torch.equal(resize_prediction(image, 13, 16), expected[0].long())


def test_empty_batch() -> None:
    nothing = torch.zeros(0, 4, 4, dtype=torch.int64)
    assert adjusted_rand_index(nothing, nothing, num_slots=3).shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"prediction": torch.zeros(2, 4, 4)},
            TypeError,
            "prediction: expected integer ids, got torch.float32",
        ),
        ({"target": torch.zeros(2, 4, 4).bool()}, TypeError, "target: expected integer ids, got torch.bool"),
        ({"prediction": torch.zeros(2, 3, 1, 4, 4).long()}, ValueError, r"expected \[B, H, W\], got \[2, 3"),
        ({"prediction": torch.zeros(1, 4, 4).long()}, ValueError, "same number of images, got 1 and 2"),
        ({"prediction": torch.zeros(2, 8, 8).long()}, ValueError, "expected at least the 8x8 pixels"),
        ({"prediction": torch.full((2, 4, 4), 3)}, RuntimeError, "prediction: expected ids from 0 to 2"),
        ({"prediction": torch.full((2, 4, 4), -1)}, RuntimeError, "prediction: expected ids from 0 to 2"),
        ({"target": torch.full((2, 4, 4), -1)}, RuntimeError, "target: expected ids from 0 to 255"),
        ({"num_slots": 0}, ValueError, "num_slots: expected at least 1, got 0"),
        ({"num_background": -1}, ValueError, "num_background: expected 0 to 255, got -1"),
        ({"ignore_index": 0}, ValueError, "ignore_index: expected an id from num_background=1 to 255, got 0"),
        ({"convention": "mine"}, ValueError, "convention: expected one of genesis, .* got 'mine'"),
    ],
)
def test_bad_input_gives_one_clear_line(change: dict, error: type[Exception], message: str) -> None:
    ids = torch.zeros(2, 4, 4, dtype=torch.int64)
    with pytest.raises(error, match=message) as caught:
        adjusted_rand_index(**{"prediction": ids, "target": ids, "num_slots": 3, **change})
    assert "\n" not in str(caught.value).strip()


def test_the_class_refuses_bad_options_at_once() -> None:
    with pytest.raises(ValueError, match="convention: expected one of"):
        AdjustedRandIndex(3, convention="mine")
    with pytest.raises(ValueError, match="num_slots: expected at least 1"):
        AdjustedRandIndex(0)
    with pytest.raises(TypeError, match="target: expected instance ids"):
        AdjustedRandIndex(3).update(torch.zeros(1, 4, 4, dtype=torch.int64))


def test_mean_over_images_whatever_the_batches() -> None:
    prediction, target = random_maps(7, (7, 16, 16), 5, 6)
    metric = AdjustedRandIndex(5, foreground=True)
    for part in (slice(0, 5), slice(5, 7)):
        metric.update(prediction[part], target[part])
    np.testing.assert_allclose(metric.compute().item(), reference(prediction, target, 1, True).mean())
    assert metric.compute().dtype == torch.float64
    assert metric.higher_is_better
    assert not metric.is_differentiable
    assert not metric.full_state_update
    metric.reset()
    torch.testing.assert_close(
        metric(prediction[:2], target[:2]),
        adjusted_rand_index(prediction[:2], target[:2], num_slots=5, foreground=True).mean(),
    )


def test_soft_masks_are_scored_by_their_largest() -> None:
    """A `Scene`'s segmentation goes in as it is."""
    from lightning_genesis.scene import Scene

    masks = torch.randn(2, 4, 1, 8, 8).log_softmax(dim=1)
    scene = Scene(components=torch.rand(2, 4, 3, 8, 8), log_masks=masks)
    target = scene.segmentation().to(torch.uint8)
    assert adjusted_rand_index(scene.segmentation(), target, num_slots=4).tolist() == [1, 1]


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint16, np.int64, ">u2"])
def test_numpy_in_numpy_out(kind: str | type) -> None:
    prediction, target = random_maps(3, (4, 12, 9), 5, 8)
    scores = adjusted_rand_index(prediction.numpy().astype(kind), target.numpy().astype(kind))
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, reference(prediction, target, 1, False), rtol=0, atol=1e-12)
    covering = segmentation_covering(
        prediction.numpy(), target.numpy()[::-1].copy()[::-1], foreground=True, weighted=False
    )
    expected = segmentation_covering(prediction, target, num_slots=5, foreground=True, weighted=False)
    assert np.array_equal(covering, expected.numpy())
    assert np.array_equal(
        matched_iou(prediction.numpy(), target.numpy()), matched_iou(prediction, target, num_slots=5).numpy()
    )


def test_without_a_number_of_slots_they_are_counted() -> None:
    prediction, target = random_maps(4, (3, 10, 10), 6, 4)
    for shift in (0, 1, 7):  # slots from 1, as in pictures, are the same partition
        scores = adjusted_rand_index(prediction + shift, target)
        np.testing.assert_allclose(scores, reference(prediction, target, 1, False), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("prediction", "error", "message"),
    [
        (np.zeros((1, 4, 4)), TypeError, "prediction: expected integer ids, got torch.float64"),
        (np.zeros((1, 4, 4), bool), TypeError, "prediction: expected integer ids, got torch.bool"),
        (np.zeros((4, 4), int), ValueError, r"prediction: expected \[B, H, W\], got \[4, 4\]"),
    ],
)
def test_wrong_arrays_are_one_line(prediction: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        adjusted_rand_index(prediction, np.zeros((1, 4, 4), np.uint8))
