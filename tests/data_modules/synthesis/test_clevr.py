"""Synthetic CLEVR with masks: the published schema, factors that agree with the picture, CLEVR6's share."""

from pathlib import Path

import numpy as np
import pytest

from data_modules.raw.tfrecord import read_examples
from data_modules.synthesis import clevr
from tests.data_modules.synthesis.checks import around, hues, labels

SCHEMA = {"size", "material", "shape", "color"}, {"x", "y", "z", "rotation", "visibility"}


def test_file_has_the_published_schema_and_what_was_drawn(tmp_path: Path) -> None:
    clevr.write(tmp_path, {"train": 2, "val": 1, "test": 0}, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["clevr_with_masks_train.tfrecords"]
    for index, example in enumerate(read_examples(tmp_path / clevr.FILE)):
        drawn = clevr.draw(1, index)
        assert set(example) == {"image", "mask", "pixel_coords", *SCHEMA[0], *SCHEMA[1]}
        assert len(example.strings("mask")) == 844_800
        np.testing.assert_array_equal(example.uint8("image", (240, 320, 3)), drawn["image"])
        np.testing.assert_array_equal(example.uint8("mask", (11, 240, 320, 1)), drawn["mask"])
        for name in SCHEMA[0]:
            assert {len(string) for string in example.strings(name)} == {1}
            np.testing.assert_array_equal(example.uint8(name, (11,)), drawn[name])
        for name in SCHEMA[1]:
            np.testing.assert_array_equal(example.floats(name, (11,)), drawn[name])
        np.testing.assert_array_equal(example.floats("pixel_coords", (11, 3)), drawn["pixel_coords"])
    assert index == 2


@pytest.mark.parametrize("index", range(12))
def test_masks_and_factors_agree_with_each_other(index: int) -> None:
    drawn = clevr.draw(0, index)
    ids = labels(drawn["mask"])
    count = int(drawn["visibility"].sum()) - 1
    assert 3 <= count <= 10
    # the background counts as visible, the rest is padding
    assert drawn["visibility"].tolist() == [1.0] * (count + 1) + [0.0] * (10 - count)
    for name in SCHEMA[0]:
        assert (drawn[name][1 : count + 1] > 0).all()
        assert not drawn[name][0]
        assert not drawn[name][count + 1 :].any()
    pixels = np.bincount(ids.ravel(), minlength=11)
    assert (pixels[1 : count + 1] >= clevr.MIN_PIXELS).all()
    assert not pixels[count + 1 :].any()
    assert (np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]]) == 0).all()
    colours = list(clevr.COLOURS.values())
    for entity in range(1, count + 1):
        column, _, depth = drawn["pixel_coords"][entity]
        rows, columns = np.nonzero(ids == entity)
        assert columns.min() - 1 <= column <= columns.max() + 2 or pixels[entity] < 2000
        assert 6 < depth < 16
        name = list(clevr.COLOURS)[drawn["color"][entity] - 1]
        inside = drawn["image"][ids == entity]
        if name == "gray":
            assert np.ptp(inside.astype(int), axis=1).max() <= 3
        elif drawn["material"][entity] == 1:  # rubber: white light does not move the hue
            expected = float(hues(np.array([colours[drawn["color"][entity] - 1]]) * 255)[0])
            assert np.median(around(hues(inside), expected)) < 0.02
        # a larger one looks larger at the same depth
        size = list(clevr.SIZES.values())[drawn["size"][entity] - 1]
        assert np.ptp(rows) < 2.6 * size * 420 / depth


def test_nearer_objects_cover_farther_ones() -> None:
    for index in range(6):
        drawn = clevr.draw(5, index)
        ids = labels(drawn["mask"])
        for entity in range(1, int(drawn["visibility"].sum())):
            column, row, depth = drawn["pixel_coords"][entity]
            seen = int(ids[int(row), int(column)])
            # at an object's centre there is it, or something nearer
            assert seen == entity or drawn["pixel_coords"][seen, 2] < depth


def test_the_published_share_has_at_most_six_objects() -> None:
    counts = [int(clevr.draw(9, index)["visibility"].sum()) - 1 for index in range(40)]
    assert set(counts) >= {3, 4, 5, 6, 7, 8, 9, 10}
    # 0.535 with four standard deviations
    assert np.mean(np.array(counts) <= 6) == pytest.approx(0.535, abs=4 * (0.25 / 40) ** 0.5)


def test_scenes_depend_on_seed_and_index_alone() -> None:
    again = [clevr.draw(1, index)["image"].tobytes() for index in (5, 2, 5)]
    assert again[0] == again[2] != again[1]
    assert clevr.draw(2, 5)["image"].tobytes() != again[0]
