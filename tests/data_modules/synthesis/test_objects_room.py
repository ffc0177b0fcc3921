"""Synthetic ObjectsRoom: the published schema, and scenes as they should be."""

from pathlib import Path

import numpy as np

from data_modules.raw.tfrecord import read_examples
from data_modules.synthesis import objects_room
from tests.data_modules.synthesis.checks import around, hues, labels


def test_file_has_the_published_schema_and_what_was_drawn(tmp_path: Path) -> None:
    objects_room.write(tmp_path, {"train": 3, "val": 1, "test": 2}, seed=4)
    assert [path.name for path in tmp_path.iterdir()] == ["objects_room_train.tfrecords"]
    assert (tmp_path / objects_room.FILE).read_bytes()[:2] == b"\x1f\x8b"
    examples = list(read_examples(tmp_path / objects_room.FILE))
    assert len(examples) == 6
    for index, example in enumerate(examples):
        assert set(example) == {"image", "mask"}
        # a string of one byte per value
        assert len(example.strings("image")) == 64 * 64 * 3
        assert {len(string) for string in example.strings("mask")} == {1}
        drawn = objects_room.draw(4, index)
        np.testing.assert_array_equal(example.uint8("image", (64, 64, 3)), drawn["image"])
        np.testing.assert_array_equal(example.uint8("mask", (7, 64, 64, 1)), drawn["mask"])


def test_scenes_depend_on_seed_and_index_alone() -> None:
    again = [objects_room.draw(1, index)["image"].tobytes() for index in (5, 2, 5)]
    assert again[0] == again[2] != again[1]
    assert objects_room.draw(2, 5)["image"].tobytes() != again[0]


def test_entities_are_sky_floor_two_walls_and_one_to_three_objects() -> None:
    counts = []
    for index in range(60):
        drawn = objects_room.draw(0, index)
        pixels = np.bincount(labels(drawn["mask"]).ravel(), minlength=7)
        count = int((pixels[4:] > 0).sum())
        counts.append(count)
        # nobody hides, and padding is at the end
        assert (pixels[: 4 + count] >= objects_room.MIN_PIXELS).all()
        assert not pixels[4 + count :].any()
        ids = labels(drawn["mask"])
        # floor at the bottom, objects off the frame's edge
        assert set(ids[-1].tolist()) == {1}
        assert ids[0].min() == 0
        edge = np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]])
        assert (edge < 4).all()
    assert set(counts) == {1, 2, 3}
    assert min(np.bincount(counts)[1:]) >= 10


def test_objects_have_one_hue_each_and_differ_from_each_other() -> None:
    for index in range(20):
        drawn = objects_room.draw(3, index)
        ids = labels(drawn["mask"])
        middles = []
        for entity in range(4, ids.max() + 1):
            found = hues(drawn["image"][ids == entity])
            middle = float(np.median(found))
            # light is white: it does not move the hue
            assert around(found, middle).max() < 0.02
            middles.append(middle)
        for one in range(len(middles)):
            for other in range(one):
                assert around(np.array(middles[one]), middles[other]) > 0.08


def test_with_one_wall_in_view_objects_begin_at_entity_three(tmp_path: Path) -> None:
    for index in range(10):
        drawn = objects_room.draw(0, index, one_wall=True)
        pixels = np.bincount(labels(drawn["mask"]).ravel(), minlength=7)
        assert (pixels[:4] >= objects_room.MIN_PIXELS).all()
        found = hues(drawn["image"][labels(drawn["mask"]) == 3])
        assert around(found, float(np.median(found))).max() < 0.02
    objects_room.write(tmp_path, {"train": 8, "val": 0, "test": 0}, seed=0, one_wall=0.25)
    found = [
        np.array_equal(example.uint8("mask", (7, 64, 64, 1)), objects_room.draw(0, i, one_wall=True)["mask"])
        for i, example in enumerate(read_examples(tmp_path / objects_room.FILE))
    ]
    assert sum(found) == 2
