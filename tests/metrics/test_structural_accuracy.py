"""Structural accuracy: drawn towers whose verdict is plain, brute force, and held-out rendered ones."""

import sys
from math import isnan, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_genesis.metrics.structural_accuracy import (
    StructuralAccuracy,
    Towers,
    _touching,
    judge_towers,
    wilson_interval,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import structural_accuracy as benchmark

SIDE = 64
COLOURS = torch.tensor(
    [(0.5, 0.5, 0.5), (0.9, 0.1, 0.1), (0.1, 0.9, 0.1), (0.1, 0.1, 0.9), (0.9, 0.9, 0.1)], dtype=torch.float64
)
Box = tuple[int, int, int, int]
"""Top, left, height, width."""
GOOD: tuple[Box, ...] = ((44, 28, 10, 12), (34, 27, 10, 11), (25, 30, 9, 8))


def scene(*boxes: Box) -> tuple[Tensor, Tensor]:
    """Ids `[1, H, W]` and images `[1, 3, H, W]` with a block of its own colour per box."""
    ids = torch.zeros(1, SIDE, SIDE, dtype=torch.int64)
    for number, (top, left, height, width) in enumerate(boxes, start=1):
        ids[0, top : top + height, left : left + width] = number
    return ids, COLOURS[ids].movedim(-1, 1).float()


def verdict(ids: Tensor, images: Tensor) -> tuple[bool, bool, bool, int]:
    towers = judge_towers(ids, images)
    return tuple(column.item() for column in towers)  # type: ignore[return-value]


def test_a_tower() -> None:
    assert verdict(*scene(*GOOD)) == (True, False, True, 3)
    towers = judge_towers(*scene(*GOOD))
    assert towers.correct.tolist() == towers.stable.tolist() == [True]
    assert towers.connected.dtype == torch.bool
    assert towers.num_blocks.dtype == torch.int64


def test_a_floating_block() -> None:
    lifted = (*GOOD[:2], (18, 30, 9, 8))
    connected, overlapping, _, blocks = verdict(*scene(*lifted))
    assert (connected, overlapping, blocks) == (False, False, 3)
    assert judge_towers(*scene(*lifted)).correct.tolist() == [False]


@pytest.mark.parametrize(("pixels", "connected"), [(0, True), (1, True), (2, False)])
def test_the_gap_that_is_a_seam(pixels: int, connected: bool) -> None:
    assert verdict(*scene(*GOOD[:2], (25 - pixels, 30, 9, 8)))[0] is connected
    assert verdict(*scene((44, 20, 10, 12), (44, 32 + pixels, 10, 12)))[0] is connected


def test_blocks_in_each_others_place() -> None:
    connected, overlapping, *_ = verdict(*scene((44, 20, 10, 12), (43, 32, 10, 12)))
    assert (connected, overlapping) == (True, True)
    sunk = (*GOOD[:2], (32, 34, 9, 8))
    assert verdict(*scene(*sunk))[:2] == (True, True)


def test_a_mass_beside_its_support() -> None:
    leaning = (*GOOD[:2], (25, 36, 9, 8))  # two columns rest on the block below
    assert verdict(*scene(*leaning)) == (True, False, False, 3)
    balanced = ((44, 30, 10, 16), (34, 18, 10, 20), (22, 24, 12, 22))  # without the third the second falls
    assert verdict(*scene(*balanced))[2] is True
    assert verdict(*scene(*balanced[:2]))[2] is False


def test_nothing_but_background() -> None:
    assert verdict(*scene()) == (False, False, False, 0)


def test_one_block_is_no_tower() -> None:
    towers = judge_towers(*scene(GOOD[0]))
    assert (towers.connected.item(), towers.num_blocks.item()) == (True, 1)
    assert not towers.correct.item()


def test_background_in_several_slots_one_of_them_in_the_middle() -> None:
    ids, images = scene(*GOOD)
    alone = verdict(ids, images)
    ids[:, 40:][ids[:, 40:] == 0] = 7
    ids[:, :10] = 8
    ids[:, 12:16, 10:30] = 8  # away from the border, but of a slot that has some of it
    assert verdict(ids, images) == alone


def test_a_block_of_two_slots_is_one() -> None:
    ids, images = scene(*GOOD)
    ids[:, 44:54, 33:40] = 9
    assert verdict(ids, images) == (True, False, True, 3)
    images[:, :, 44:54, 33:40] = COLOURS[4].float()[:, None, None]
    connected, overlapping, _, blocks = verdict(ids, images)
    assert (connected, overlapping, blocks) == (True, True, 4)


def test_light_does_not_split_a_block() -> None:
    ids, images = scene(*GOOD)
    ids[:, 44:54, 33:40] = 9
    images[:, :, 44:54, 33:40] *= 0.5
    assert verdict(ids, images)[3] == 3


def test_two_blocks_of_one_slot_apart() -> None:
    ids, images = scene(*GOOD[:2], (10, 30, 9, 8))
    ids[ids == 3] = 1
    assert verdict(ids, images)[0] is False


def test_specks_are_not_looked_at() -> None:
    ids, images = scene(*GOOD)
    ids[0, 5, 5] = ids[0, 50:52, 10:12] = 2
    assert verdict(ids, images) == (True, False, True, 3)
    ids[0, 5:10, 5:10] = 2
    assert verdict(ids, images)[0] is False


def several() -> tuple[Tensor, Tensor]:
    scenes = [
        scene(*GOOD),
        scene(*GOOD[:2], (10, 30, 9, 8)),
        scene((44, 20, 10, 12), (43, 32, 10, 12)),
        scene(),
    ]
    return torch.cat([ids for ids, _ in scenes]), torch.cat([images for _, images in scenes])


def same(first: Towers, second: Towers) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_slots_in_any_order_images_in_any_batch() -> None:
    ids, images = several()
    towers = judge_towers(ids, images)
    assert towers.correct.tolist() == [True, False, False, False]
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    assert same(judge_towers(order[ids], images), towers)
    assert same(judge_towers(ids.to(torch.uint8), images), towers)
    assert same(judge_towers(ids.flip(2), images.flip(3)), towers)
    one_by_one = [judge_towers(ids[i : i + 1], images[i : i + 1]) for i in range(len(ids))]
    assert same(Towers(*map(torch.cat, zip(*one_by_one, strict=True))), towers)


def test_any_size() -> None:
    ids, images = several()
    large = judge_towers(
        ids.repeat_interleave(2, 1).repeat_interleave(2, 2),
        images.repeat_interleave(2, 2).repeat_interleave(2, 3),
    )
    assert same(large, judge_towers(ids, images))


def test_no_images() -> None:
    assert [len(column) for column in judge_towers(*(value[:0] for value in several()))] == [0] * 4


def test_touching_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    pieces = rng.random((6, 12, 12)) < 0.03
    for reach in (1, 2, 3):
        points = [np.argwhere(piece) for piece in pieces]
        expected = [
            [bool((np.abs(a[:, None] - b[None]).max(axis=2) <= reach).any()) for b in points] for a in points
        ]
        assert _touching(pieces, reach).tolist() == expected


def test_shapes_are_checked() -> None:
    ids, images = scene(*GOOD)
    for bad in (ids[0], ids[:, :32]):
        with pytest.raises(ValueError, match=r"expected segmentation \[B, H, W\] and images"):
            judge_towers(bad, images)


def test_the_metric_counts_images() -> None:
    ids, images = several()
    metric = StructuralAccuracy()
    metric.update(ids[:1], images[:1])
    metric.update(ids[1:], images[1:])
    found = metric.compute()
    assert found["s_acc"] == found["s_acc_stable"] == 0.25
    assert found["num_blocks"] == judge_towers(ids, images).num_blocks.double().mean().item()
    assert (found["s_acc_low"], found["s_acc_high"]) == wilson_interval(1, 4)
    metric.reset()
    assert all(isnan(end) for end in wilson_interval(0, 0))


def test_wilson_interval_by_its_formula() -> None:
    z = 1.959963984540054
    for hits, count in ((0, 7), (80, 100), (100, 100)):
        share = hits / count
        middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
        reach = z / (1 + z**2 / count) * sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
        assert wilson_interval(hits, count) == pytest.approx((middle - reach, middle + reach), abs=1e-12)


def accepted(count: int) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of held-out correct and of flawed towers that are accepted, by the name of the set."""
    pictures = benchmark.rendered(benchmark.HELD_OUT, count)
    flawed = {flaw: benchmark.rendered(benchmark.HELD_OUT, count, flaw) for flaw in benchmark.MISPLACED}
    sets = benchmark.all_sets(pictures, flawed)
    rules = benchmark.TowerRules()
    shares = {
        name: benchmark.judge(some, rules).correct.double().mean().item() for name, some in sets.items()
    }
    correct = {name: share for name, share in shares.items() if name.startswith("correct")}
    others = {name: share for name, share in shares.items() if name not in correct}
    assert len(correct) == 2
    assert len(others) == 12
    return correct, others


def test_held_out_towers() -> None:
    """A few of those that `benchmarks/structural_accuracy.py` measures."""
    correct, others = accepted(20)
    assert min(correct.values()) >= 0.85
    assert max(others.values()) <= 0.15
    assert sum(others.values()) / len(others) <= 0.05


@pytest.mark.slow
def test_300_held_out_towers() -> None:
    """Judged right about 95 times of 100; the two rows that trade one for the other somewhat less often.

    docs/structural-accuracy.md has the shares of 500, and why.
    """
    correct, others = accepted(300)
    assert correct["correct"] >= 0.94
    assert correct["correct (rough)"] >= 0.9
    weak = others.pop("overlapping, in the picture (rough)")
    assert weak <= 0.1
    assert max(others.values()) <= 0.07, others
