"""Sketchy from episodes to batches."""

import bz2
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tfrecord.example_pb2 import Example
from tfrecord.reader import tfrecord_iterator

from data_modules import DataError, Sketchy
from data_modules.base import SPLITS
from data_modules.raw.tfrecord import TFRecordWriter, read_examples
from data_modules.sketchy import _ARCHIVES, STATE
from data_modules.store import Store
from data_modules.synthesis import sketchy as synthesis
from tests.data_modules.damage import CASES, assert_refused, damaged

# top, left of the published cuts of 448 x 672, and of the squares in them
CUTS = {"front_left": (71, 144), "front_right": (91, 144)}
SQUARES = [(0, 0), (0, 160), (0, 320), (96, 0), (96, 160), (96, 320)]


def name(number: int) -> str:
    return f"{number}_{number:08x}-0000-4000-8000-00000000000a"


def jpeg(value: int, width: int = 960, height: int = 600) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def record(left: int, right: int, **others: Any) -> dict[str, Any]:
    state = {key: np.full(count, left + i, np.float32) for i, (key, count) in enumerate(STATE.items())}
    return {
        "pixels/basket_front_left": [jpeg(left)],
        "pixels/basket_front_right": [jpeg(right)],
        **state,
        "gripper/grasp": np.array([left % 2], np.int64),
        **others,
    }


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with TFRecordWriter(path, compressed=False) as writer:
        for features in records:
            writer.write(features)
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Twelve episodes; the views at timestep `t` of episode `e` are plain greys 10 e + t and 200 - e."""
    for episode in range(12):
        records = [record(10 * episode + t, 200 - episode) for t in range(1 + episode % 2)]
        write(tmp_path / "raw" / name(100 + episode), *records)
    (tmp_path / "raw/metadata.sqlite").write_bytes(b"SQLite")
    return tmp_path / "raw"


def arrays(data: Sketchy, split: Any) -> dict[str, Any]:
    store = Store.open(data.plan(split).path)
    return store.read(list(range(len(store))))


def test_crops_of_drawn_episodes(tmp_path: Path) -> None:
    """At the side of the squares nothing is resized: the pixels of the JPEGs, close to those drawn."""
    (tmp_path / "raw").mkdir()
    synthesis.write(tmp_path / "raw", dict.fromkeys(SPLITS, 1), 2, 1)
    data = Sketchy(root=str(tmp_path), raw=str(tmp_path / "raw"), image_size=352, batch_size=14)
    data.prepare()
    paths = sorted((tmp_path / "raw").iterdir())
    for split, path, episode in zip(("val", "test", "train"), paths, range(3), strict=True):
        found = arrays(data, split)
        assert len(found["images"]) == 14
        assert found["labels.crop"].tolist() == list(range(14))
        example = next(read_examples(path))
        for v, (view, (top, left)) in enumerate(CUTS.items()):
            content = example.strings(f"pixels/basket_{view}")[0]
            picture = np.asarray(Image.open(io.BytesIO(content)))
            drawn = synthesis.draw(2, episode, 0, view, timesteps=1).image
            cut = picture[top : top + 448, left : left + 672]
            for c, (row, column) in enumerate(SQUARES):
                square = (slice(row, row + 352), slice(column, column + 352))
                crop = found["images"][7 * v + 1 + c]
                np.testing.assert_array_equal(crop, cut[square])
                near = drawn[top : top + 448, left : left + 672][square]
                assert np.abs(crop.astype(int) - near).mean() < 3
            # the middle of the full square, by a filter that averages 448/352 pixels, is that of the cut
            full = found["images"][7 * v].astype(float)
            area = cut[:, 112:560].astype(float)
            assert np.abs(full.mean((0, 1)) - area.mean((0, 1))).max() < 0.5
            corners = full[[0, 0, -1, -1], [0, -1, 0, -1]], area[[0, 0, -1, -1], [0, -1, 0, -1]]
            assert np.abs(corners[0] - corners[1]).max() < 40
    # the test can tell squares apart that are a pixel off
    assert (cut[:352, 160:512] == cut[:352, 161:513]).mean() < 0.9
    with Image.open(tmp_path / "sketchy-352px/preview.png") as preview:
        assert preview.size == (7 * 354 - 2, 352)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    np.testing.assert_array_equal(batch["image"].permute(0, 2, 3, 1), arrays(data, "test")["images"])
    assert "segmentation" not in batch


def test_the_published_sample(tmp_path: Path) -> None:
    """The file that the publisher ships, as three episodes, against protobuf and NumPy."""
    sample = CASES / "real/sketchy_example_data.tfrecords"
    if not sample.is_file():
        pytest.skip("the published sample is not here")
    (tmp_path / "raw").mkdir()
    for number in range(3):
        shutil.copy(sample, tmp_path / "raw" / name(number))
    data = Sketchy(root=str(tmp_path), raw=str(tmp_path / "raw"), state=True)
    data.prepare()
    records = [bytes(record) for record in tfrecord_iterator(str(sample))]
    assert len(records) == 4
    found = [arrays(data, split) for split in SPLITS]
    for split in found:
        assert len(split["images"]) == 56
        np.testing.assert_array_equal(split["images"], found[0]["images"])
    images = iter(found[0]["images"])
    for timestep, content in enumerate(records):
        features = Example.FromString(content).features.feature
        for view, (top, left) in CUTS.items():
            picture = Image.open(io.BytesIO(features[f"pixels/basket_{view}"].bytes_list.value[0]))
            assert (picture.size, picture.mode) == ((960, 600), "RGB")
            cut = Image.fromarray(np.asarray(picture)[top : top + 448, left : left + 672])
            for row, column, side in [(0, 112, 448), *((*corner, 352) for corner in SQUARES)]:
                square = Image.fromarray(np.asarray(cut)[row : row + side, column : column + side])
                expected = np.asarray(square.resize((128, 128), Image.Resampling.BILINEAR))
                np.testing.assert_array_equal(next(images), expected)
        for feature in STATE:
            stored = found[0][f"labels.{feature.replace('/', '_')}"][14 * timestep]
            np.testing.assert_array_equal(stored, np.float32(features[feature].float_list.value))
        assert (
            found[0]["labels.gripper_grasp"][14 * timestep] == features["gripper/grasp"].int64_list.value[0]
        )


def test_splits_are_by_episode(raw: Path, tmp_path: Path) -> None:
    data = Sketchy(root=str(tmp_path), raw=str(raw))
    assert (data.image_size, data.num_slots) == (128, 10)
    data.prepare()
    expected = {"val": [0], "test": [1], "train": list(range(2, 12))}
    for split, episodes in expected.items():
        found = arrays(data, split)
        steps = [(i, e, t) for i, e in enumerate(episodes) for t in range(1 + e % 2)]
        assert len(found["images"]) == 14 * len(steps)
        for n, (i, e, t) in enumerate(steps):
            images = found["images"][14 * n : 14 * n + 14].astype(int)
            assert np.abs(images[:7] - (10 * e + t)).max() <= 2
            assert np.abs(images[7:] - (200 - e)).max() <= 2
            assert (found["labels.episode"][14 * n : 14 * n + 14] == i).all()
            assert (found["labels.timestep"][14 * n : 14 * n + 14] == t).all()
    source = json.loads((data.plan("val").path / "manifest.json").read_text())["source"]
    assert "210 / 14 / 28 images" in source["note"]


def test_published_split() -> None:
    """395 episodes: 39 for validation, 39 for test, 317 for training."""
    data = Sketchy()
    paths = [Path(f"{name(i)}") for i in range(395)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_modules.sketchy._find_episodes", lambda folder: paths[::-1])
        parts = data.episodes(Path())
        ordered = sorted(paths, key=lambda path: path.name)
        assert parts == {"val": ordered[:39], "test": ordered[39:78], "train": ordered[78:]}
        few = Sketchy(subset=40).episodes(Path())
    assert sum(len(part) for part in few.values()) == 40
    assert all(set(few[split]) <= set(parts[split]) for split in SPLITS)
    assert sum(data.published.values()) == 14 * (24_107 + 2 * 2_959)


def test_state(raw: Path, tmp_path: Path) -> None:
    data = Sketchy(root=str(tmp_path), raw=str(raw), state=True, batch_size=14)
    data.prepare()
    data.setup("test")
    labels = next(iter(data.test_dataloader()))["labels"]
    assert labels["actions"].shape == (14, 7)
    for i, (feature, count) in enumerate(STATE.items()):
        assert labels[feature.replace("/", "_")].tolist() == [[10.0 + i] * count] * 14
    assert labels["gripper_grasp"].tolist() == [0] * 14
    assert data.plan("train").path.parent.name == "sketchy-state"


def test_archives(raw: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    episodes = sorted(raw.glob("1*"))
    for number, archive in enumerate(_ARCHIVES):
        with tarfile.open(packed / archive, "w:bz2", compresslevel=1) as file:
            for path in episodes[number::4]:
                file.add(path, f"deep/{archive}/{path.name}")
            file.add(raw / "metadata.sqlite", "metadata.sqlite")
    plain = Sketchy(root=str(tmp_path / "0"), raw=str(raw))
    data = Sketchy(root=str(tmp_path / "1"), raw=str(packed))
    plain.prepare()
    data.prepare()
    for split in SPLITS:
        one, other = arrays(plain, split), arrays(data, split)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    path = packed / _ARCHIVES[0]
    whole = bz2.compress(bz2.decompress(path.read_bytes())[:20_000])
    other_root = Sketchy(root=str(tmp_path / "2"), raw=str(packed))
    for case, content in damaged(whole, cuts=4, flips=4, start=14):
        path.write_bytes(content)
        assert_refused(other_root, str(path), case)
    path.unlink()
    assert "missing, expected the publisher's file" in assert_refused(other_root, str(path))


def test_synthetic_sizes_are_whole_episodes(tmp_path: Path) -> None:
    data = Sketchy(root=str(tmp_path), synthetic=20)
    assert data.synthetic_sizes == {"train": 24, "val": 8, "test": 8}
    assert data.plan("train").count == 24 * 14
    for wrong in ({"subset": 2}, {"subset": 5, "synthetic": 5}):
        with pytest.raises(DataError, match=r"^subset: "):
            Sketchy(**wrong)  # type: ignore[arg-type]


def test_damaged_episodes(raw: Path, tmp_path: Path) -> None:
    data = Sketchy(root=str(tmp_path / "data"), raw=str(raw))
    path = raw / name(102)
    whole = path.read_bytes()
    for case, content in damaged(whole, cuts=6, flips=8):
        path.write_bytes(content)
        assert_refused(data, f"{path}: ", case)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels/basket_front_left": [jpeg(1, 640, 480)]}, "a picture of 640 x 480, expected 960 x 600"),
        ({"pixels/basket_front_left": [jpeg(1)[:400]]}, "not readable as JPEG"),
        ({"pixels/basket_front_left": [b""]}, "pixels/basket_front_left: empty"),
        ({"pixels/basket_front_left": [jpeg(1)] * 2}, "2 strings, expected 1"),
        ({"pixels/basket_front_left": np.zeros(3, np.float32)}, "found floats, expected bytes"),
        ({"actions": np.zeros(6, np.float32)}, "actions: 6 values, expected 7"),
        ({"gripper/grasp": np.zeros(1, np.float32)}, "gripper/grasp: found floats, expected integers"),
    ],
)
def test_timesteps_of_another_schema(raw: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(raw / name(103), record(1, 2), record(1, 2, **change))
    data = Sketchy(root=str(tmp_path / "data"), raw=str(raw), state=True)
    assert message in assert_refused(data, f"{path}: record 1: ")


def test_missing_and_double_episodes(raw: Path, tmp_path: Path) -> None:
    data = Sketchy(root=str(tmp_path / "data"), raw=str(raw))
    write(raw / "lift" / name(103), record(1, 2))
    assert_refused(data, "expected every episode once")
    for path in list(raw.glob("1*"))[:-2]:
        path.unlink()
    (raw / "lift" / name(103)).unlink()
    assert_refused(data, f"{raw}: 2 episodes, expected at least 3")
    (tmp_path / "empty").mkdir()
    assert_refused(Sketchy(root=str(tmp_path / "data"), raw=str(tmp_path / "empty")), f"empty/{_ARCHIVES[0]}")
