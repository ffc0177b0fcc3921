"""Synthetic Sketchy: every published feature in its type and shape, and pictures with an arm and blocks."""

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from data_modules.raw.tfrecord import is_gzip, read_examples
from data_modules.synthesis import sketchy

FLOATS = {
    "actions": 7,
    "sawyer/joints/angle": 7,
    "sawyer/joints/velocity": 7,
    "sawyer/joints/torque": 7,
    "sawyer/pinch/pose": 7,
    "sawyer/tcp/pose": 7,
    "sawyer/tcp/velocity": 6,
    "sawyer/tcp/effort": 6,
    "wrist/force": 3,
    "wrist/torque": 3,
    "gripper/joints/angle": 1,
    "gripper/joints/velocity": 1,
    "gripper/joints/torque": 1,
}
JPEGS = {
    "pixels/basket_front_left": ("RGB", (960, 600)),
    "pixels/basket_front_right": ("RGB", (960, 600)),
    "pixels/basket_back_left": ("RGB", None),
    "pixels/usbcam0": ("RGB", None),
    "pixels/usbcam1": ("RGB", None),
    "pixels/royale_camera_driver_gray": ("L", (224, 171)),
}


def test_episodes_have_the_published_form(tmp_path: Path) -> None:
    sketchy.write(tmp_path, {"train": 1, "val": 1, "test": 0}, seed=0, timesteps=2)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == [sketchy.episode_name(0, episode) for episode in range(2)]
    uuid = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    for episode, path in enumerate(files):
        assert re.fullmatch(rf"\d+_{uuid}", path.name)
        assert not is_gzip(path)
        records = list(read_examples(path))
        assert len(records) == 2
        for timestep, example in enumerate(records):
            depth = "pixels/royale_camera_driver_depth"
            assert set(example) == {*FLOATS, *JPEGS, depth, "gripper/grasp"}
            for name, size in FLOATS.items():
                assert np.isfinite(example.floats(name, (size,))).all()
            assert example.floats(depth, (171, 224, 1)).max() > 0.5
            assert example.integers("gripper/grasp", (1,)) in (0, 1)
            for name, (mode, size) in JPEGS.items():
                picture = Image.open(io.BytesIO(example.strings(name, 1)[0]))
                assert (picture.format, picture.mode) == ("JPEG", mode)
                assert size is None or picture.size == size
            for view in ("front_left", "front_right"):
                frame = Image.open(io.BytesIO(example.strings(f"pixels/basket_{view}")[0]))
                drawn = sketchy.draw(0, episode, timestep, view, timesteps=2)
                assert np.abs(np.asarray(frame).astype(int) - drawn.image).mean() < 2


def test_names_rise_with_the_number_of_the_episode() -> None:
    names = [sketchy.episode_name(3, episode) for episode in (0, 1, 9, 10, 99, 100, 395)]
    assert names == sorted(names)
    assert len({name.split("_")[1] for name in names}) == len(names)


def test_blocks_are_red_green_and_blue_and_inside_the_published_crops() -> None:
    crops = {"front_left": slice(71, 519), "front_right": slice(91, 539)}
    for episode in range(4):
        for view, rows in crops.items():
            drawn = sketchy.draw(1, episode, 0, view)
            pixels = np.bincount(drawn.entities.ravel(), minlength=5)
            crop = drawn.entities[rows, 144:816]
            assert (crop == sketchy.ARM).sum() > 500
            for block in (1, 2, 3):
                assert pixels[block] > 300
                assert (crop == block).sum() == pixels[block]
                inside = drawn.image[drawn.entities == block].astype(int)
                assert (inside.argmax(axis=1) == block - 1).all()


def test_the_block_is_lifted_at_the_end_and_the_others_stay() -> None:
    for episode in range(3):
        first, last = (sketchy.draw(2, episode, step, "front_left").entities for step in (0, 7))
        rises = []
        for block in (1, 2, 3):
            (before, _), (after, _) = (np.argwhere(ids == block).mean(axis=0) for ids in (first, last))
            rises.append(before - after)
        assert max(rises) > 60
        assert sorted(np.abs(rises))[1] < 30
        grasp = [int(sketchy._Episode(2, episode, 8).state(step)["gripper/grasp"][0]) for step in (0, 7)]
        assert grasp == [0, 1]


def test_velocities_are_the_differences_of_positions() -> None:
    episode = sketchy._Episode(0, 1, 8)
    poses = np.array([episode.state(step)["sawyer/pinch/pose"] for step in range(8)])
    velocities = np.array([episode.state(step)["sawyer/tcp/velocity"] for step in range(7)])
    # 10 Hz
    np.testing.assert_allclose(velocities[:, :3], np.diff(poses[:, :3], axis=0) * 10, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(poses[:, 3:], axis=1), 1, atol=1e-6)


def test_scenes_depend_on_seed_and_index_alone() -> None:
    one, again, other = (sketchy.draw(seed, 1, 3, "front_right").image.tobytes() for seed in (0, 0, 1))
    assert one == again != other
