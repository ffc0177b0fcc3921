"""Synthetic GQN: shards and records as published, cameras on a ring that face the centre."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_modules.raw.tfrecord import is_gzip, read_examples
from data_modules.synthesis import gqn


def test_shards_have_the_published_names_and_hold_the_scenes_in_order(tmp_path: Path) -> None:
    gqn.write(tmp_path, {"train": 5, "val": 2, "test": 3}, seed=0)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.tfrecord"))
    assert names == [
        "test/001-of-002.tfrecord",
        "test/002-of-002.tfrecord",
        "train/0001-of-0004.tfrecord",
        "train/0002-of-0004.tfrecord",
        "train/0003-of-0004.tfrecord",
        "train/0004-of-0004.tfrecord",
    ]
    assert not any(is_gzip(tmp_path / name) for name in names)
    scenes = [list(read_examples(tmp_path / name)) for name in (*names[2:], *names[:2])]
    # training in 2 + 2 + 1, validation in the last training shard, then test
    assert [len(shard) for shard in scenes] == [2, 2, 1, 2, 2, 1]
    for index, example in enumerate(example for shard in scenes for example in shard):
        assert set(example) == {"frames", "cameras"}
        renderings, cameras = gqn.draw(0, index)
        np.testing.assert_array_equal(example.floats("cameras", (10, 5)), cameras)
        for frame, rendering in zip(example.strings("frames", 10), renderings, strict=True):
            picture = Image.open(io.BytesIO(frame))
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (64, 64))
            difference = np.abs(np.asarray(picture).astype(int) - rendering.image)
            assert difference.mean() < 4


def test_cameras_are_on_a_ring_and_face_its_centre() -> None:
    for index in range(5):
        _, cameras = gqn.draw(1, index)
        assert cameras.dtype == np.float32
        x, y, z, yaw, pitch = cameras.T.astype(float)
        np.testing.assert_allclose(np.hypot(x, y), np.hypot(x, y)[0], rtol=1e-6)
        assert np.ptp(z) == 0
        assert (pitch < 0).all()
        # straight ahead it comes to the axis
        radius = np.hypot(x, y)
        np.testing.assert_allclose(x + radius * np.cos(yaw), 0, atol=1e-5)
        np.testing.assert_allclose(y + radius * np.sin(yaw), 0, atol=1e-5)
        assert (np.abs(yaw) <= np.pi + 1e-6).all()


def test_every_object_is_seen_from_somewhere() -> None:
    counts = []
    for index in range(30):
        renderings, _ = gqn.draw(2, index)
        pixels = sum(np.bincount(rendering.entities.ravel(), minlength=4) for rendering in renderings)
        count = int(max(rendering.entities.max() for rendering in renderings))
        counts.append(count)
        assert (pixels[1 : count + 1] > 100).all()
        # nobody stands in front of the lens
        assert max((rendering.entities > 0).mean() for rendering in renderings) < 0.6
    assert set(counts) == {1, 2, 3}


def test_scenes_depend_on_seed_and_index_alone() -> None:
    assert gqn.record(3, 7)["frames"] == gqn.record(3, 7)["frames"]
    assert gqn.record(3, 7)["frames"] != gqn.record(3, 8)["frames"]
    assert gqn.record(4, 7)["frames"] != gqn.record(3, 7)["frames"]
