import numpy as np
import torch

from lightning_genesis.metrics.slot_count import num_visible_objects, slot_count_error


def test_counts_visible_objects() -> None:
    segmentation = torch.tensor(
        [
            [[0, 0, 1], [2, 7, 7]],  # three objects
            [[0, 0, 0], [0, 0, 0]],  # none
            [[0, 255, 255], [5, 5, 255]],  # one, and pixels to ignore
        ],
        dtype=torch.uint8,
    )
    assert num_visible_objects(segmentation).tolist() == [3, 0, 1]
    assert num_visible_objects(segmentation, num_background=2).tolist() == [2, 0, 1]
    assert num_visible_objects(segmentation, num_background=0).tolist() == [4, 1, 2]


def test_error_to_the_ideal_number() -> None:
    """GENESIS-V2's ideal: visible objects and one slot for the background."""
    segmentation = torch.tensor([[[0, 1, 2]], [[0, 0, 0]], [[4, 5, 6]]])
    error = slot_count_error(torch.tensor([5, 1, 2]), segmentation)
    assert error.tolist() == [2, 0, 2]
    assert slot_count_error(torch.tensor([5, 1, 2]), segmentation, num_background=0).tolist() == [2, 0, 1]


def test_against_numpy() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, (20, 4, 5))
    expected = [len(set(np.unique(image)) - {0}) for image in labels]
    assert num_visible_objects(torch.from_numpy(labels)).tolist() == expected
