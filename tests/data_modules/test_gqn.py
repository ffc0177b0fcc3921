"""GQN from shards to batches, and which view of a scene is shown when."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch.utils.data import DataLoader

from data_modules import GQN, DataError
from data_modules.base import SPLITS
from data_modules.gqn import draw_view
from data_modules.raw.tfrecord import TFRecordWriter
from data_modules.sampler import TrainingBatchSampler
from data_modules.store import FLAT, Store
from data_modules.synthesis import gqn as synthesis
from tests.data_modules.damage import assert_refused, damaged

SIZES = {"train": 20, "val": 8, "test": 9}
STARTS = {"train": 0, "val": 20, "test": 28}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    synthesis.write(folder, SIZES, seed=5)
    return folder


@pytest.fixture(scope="module")
def truth() -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures `[10, 64, 64, 3]` and cameras `[10, 5]` of every scene."""
    scenes = []
    for index in range(sum(SIZES.values())):
        record = synthesis.record(5, index)
        images = np.stack([np.asarray(Image.open(io.BytesIO(frame))) for frame in record["frames"]])
        scenes.append((images, np.asarray(record["cameras"]).reshape(10, 5)))
    return scenes


@pytest.fixture(scope="module")
def root(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    GQN(root=str(folder), raw=str(raw)).prepare()
    return str(folder)


def shown(batch: dict[str, Any], scene: int, truth: list[Any], first: int = 0) -> int:
    """Which of the ten views item `scene` of a batch is, by comparing all pixels."""
    image = batch["image"][scene].permute(1, 2, 0).numpy()
    images, cameras = truth[first + int(batch["index"][scene])]
    views = [view for view in range(10) if (images[view] == image).all()]
    camera = [float(batch["labels"][f"camera_{key}"][scene]) for key in ("x", "y", "z", "yaw", "pitch")]
    views = [view for view in views if np.array_equal(cameras[view], np.array(camera, np.float32))]
    assert len(views) == 1
    return views[0]


def test_round_trip(raw: Path, root: str, truth: list[Any]) -> None:
    """Every batch is one of the views that were drawn, with its camera; the store has all of them."""
    data = GQN(root=root, raw=str(raw), batch_size=4)
    assert (data.image_size, data.num_slots) == (64, 7)
    for split in SPLITS:
        dataset = data.dataset(split)
        assert len(dataset) == SIZES[split]  # type: ignore[arg-type]
        batch = dataset.__getitems__(list(range(SIZES[split])))  # type: ignore[attr-defined]
        assert "segmentation" not in batch
        assert batch["index"].tolist() == list(range(SIZES[split]))
        views = [shown(batch, i, truth, STARTS[split]) for i in range(SIZES[split])]
        assert len(set(views)) > 3
        store = Store.open(data.plan(split).path)
        records = store.read(list(range(len(store))))
        for scene, places in enumerate(records["places"]):
            pieces = store.read_pieces(f"{FLAT}frames", places[:-1], places[1:])
            frames = synthesis.record(5, STARTS[split] + scene)["frames"]
            assert [piece.tobytes() for piece in pieces] == frames
    note = json.loads((data.plan("val").path / "manifest.json").read_text())["source"]["note"]
    assert "20 / 8 / 9 images" in note


def test_another_view_in_every_pass(raw: Path, root: str, truth: list[Any]) -> None:
    """Drawn from seed, pass and scene: the same again, and another one for another seed."""

    def passes(seed: int = 0) -> list[list[tuple[int, int]]]:
        data = GQN(root=root, raw=str(raw), batch_size=5, seed=seed)
        loader = data.train_dataloader()
        return [
            [(int(batch["index"][i]), shown(batch, i, truth)) for batch in loader for i in range(5)]
            for _ in range(3)
        ]

    one = passes()
    for number, pairs in enumerate(one):
        assert sorted(scene for scene, _ in pairs) == list(range(20))
        assert all(view == draw_view(0, number, scene) for scene, view in pairs)
    views = [dict(pairs) for pairs in one]
    assert sum(views[0][scene] != views[1][scene] for scene in range(20)) > 10
    assert sum(views[1][scene] != views[2][scene] for scene in range(20)) > 10
    other = [dict(pairs) for pairs in passes(seed=1)]
    assert sum(views[0][scene] != other[0][scene] for scene in range(20)) > 10


def as_it_is(batch: Any) -> Any:
    """A lambda does not travel to a process that is not forked."""
    return batch


def test_a_resumed_run_sees_the_same_views_from_other_processes(
    raw: Path, root: str, truth: list[Any]
) -> None:
    dataset = GQN(root=root, raw=str(raw)).dataset("train")

    def pairs(position: int, num_workers: int) -> list[tuple[int, int]]:
        sampler = TrainingBatchSampler(20, 5, position=lambda: position, count_passes=True)
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_sampler=sampler, num_workers=num_workers, collate_fn=as_it_is
        )
        return [(int(batch["index"][i]), shown(batch, i, truth)) for batch in loader for i in range(5)]

    whole = pairs(4, 0) + pairs(8, 0)
    # in the middle of the second pass
    assert pairs(6, 1) == whole[10:30]


def test_the_pass_travels_with_the_index() -> None:
    def batches(position: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
        sampler = TrainingBatchSampler(
            20, 4, rank=rank, world_size=world_size, position=lambda: position, count_passes=True
        )
        return list(sampler)

    whole = batches(0) + batches(5) + batches(10)
    for number in range(3):
        scenes = [index - 20 * number for batch in whole[5 * number : 5 * number + 5] for index in batch]
        assert sorted(scenes) == list(range(20))
    # a run that is resumed in the middle of a pass, and one on two ranks
    assert batches(7) == whole[7:12]
    halves = [batches(7, rank, 2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*halves, strict=True)] == whole[7:12]
    # to overfit, the batches stay the same
    sampler = TrainingBatchSampler(20, 4, position=lambda: 9, repeat=2, count_passes=True)
    assert list(sampler)[:4] == [whole[1], whole[0], whole[1], whole[0]]
    plain = TrainingBatchSampler(20, 4, position=lambda: 5)
    assert [[index % 20 for index in batch] for batch in whole[5:10]] == list(plain)


def test_evaluation_shows_the_same_views_under_any_seed(raw: Path, root: str) -> None:
    for split in ("val", "test"):
        one, other = (
            [
                batch["image"]
                for batch in getattr(GQN(root=root, raw=str(raw), seed=seed), f"{split}_dataloader")()
            ]
            for seed in (0, 7)
        )
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_views_are_uniform_and_independent() -> None:
    views = np.array([[draw_view(0, number, scene) for scene in range(300)] for number in range(10)])
    assert stats.chisquare(np.bincount(views.ravel(), minlength=10)).pvalue > 0.001
    pairs = np.zeros((10, 10))
    np.add.at(pairs, (views[:-1].ravel(), views[1:].ravel()), 1)
    assert stats.chi2_contingency(pairs).pvalue > 0.001
    # not one view for a whole group of scenes
    assert min(len(set(row[i : i + 32])) for row in views for i in range(0, 256, 32)) > 5


def test_other_sizes_come_from_the_same_store(raw: Path, root: str) -> None:
    large, small = (GQN(root=root, raw=str(raw), image_size=size) for size in (64, 24))
    assert large.plan("test").path == small.plan("test").path
    image = large.dataset("test")[3]["image"]
    expected = torch.nn.functional.interpolate(image.float(), (24, 24), mode="nearest")
    torch.testing.assert_close(small.dataset("test")[3]["image"].float(), expected, rtol=0, atol=0)


def test_published_shards() -> None:
    names = [file.name for file in GQN().raw_files()]
    assert len(names) == len(set(names)) == 2400
    assert names[0] == "train/0001-of-2160.tfrecord"
    assert names[2123:2125] == ["train/2124-of-2160.tfrecord", "train/2125-of-2160.tfrecord"]
    assert names[-1] == "test/240-of-240.tfrecord"
    parts = GQN()._published_shards()
    assert [len(parts[split]) for split in SPLITS] == [2124, 36, 240]
    for subset in (3, 10, 100, 1000):
        few = GQN(subset=subset)._published_shards()
        assert sum(len(part) for part in few.values()) == subset
        for split in SPLITS:
            assert few[split] == parts[split][: len(few[split])], "a part stays within its published split"
    assert few["val"][0] == "train/2125-of-2160.tfrecord"
    assert GQN(subset=10).plan("val").path.parent.name == "gqn-10shards"
    assert GQN().published["train"] == 2124 * 5000
    for wrong in ({"subset": 2}, {"subset": 5, "synthetic": 5}):
        with pytest.raises(DataError, match=r"^subset: "):
            GQN(**wrong)  # type: ignore[arg-type]


def tiny(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_shards_that_are_there(tmp_path: Path) -> None:
    """Some of the published shards: those of the last sixtieth are for validation, or else the last one."""
    data = GQN(root=str(tmp_path), raw=str(tmp_path))
    for number in (1, 2, 7, 2125, 2160):
        tiny(tmp_path / f"train/{number:04d}-of-2160.tfrecord")
    for number in (1, 240):
        tiny(tmp_path / f"test/{number:03d}-of-240.tfrecord")
    numbers = {
        split: [int(path.name.partition("-")[0]) for path in part]
        for split, part in data.shards(tmp_path).items()
    }
    assert numbers == {"train": [1, 2, 7], "val": [2125, 2160], "test": [1, 240]}
    for number in (2125, 2160):
        (tmp_path / f"train/{number}-of-2160.tfrecord").unlink()
    assert [len(data.shards(tmp_path)[split]) for split in SPLITS] == [2, 1, 2]
    synthetic = GQN(root=str(tmp_path), synthetic=12_000 * 10)
    for number in range(1, 28):
        tiny(tmp_path / f"of27/train/{number:04d}-of-0027.tfrecord")
        tiny(tmp_path / f"of27/test/{number:03d}-of-027.tfrecord")
    # 12,000 scenes for validation are three shards of 5,000 at most
    assert [len(synthetic.shards(tmp_path / "of27")[split]) for split in SPLITS] == [24, 3, 27]
    tiny(tmp_path / "train/0001-of-0003.tfrecord")
    with pytest.raises(DataError, match="shards of more than one set"):
        data.shards(tmp_path)


# --- damage ----------------------------------------------------------------------------------------------


def jpeg(size: int = 64) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(size).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


FRAME = jpeg()
CAMERAS = np.zeros(50, np.float32)


def write(path: Path, *records: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with TFRecordWriter(path, compressed=False) as writer:
        for record in records:
            writer.write(record)


@pytest.fixture
def small(tmp_path: Path) -> GQN:
    record = {"frames": [FRAME] * 10, "cameras": CAMERAS}
    for name in ("train/0001-of-0002", "train/0002-of-0002", "test/001-of-001"):
        write(tmp_path / f"raw/{name}.tfrecord", record, record)
    return GQN(root=str(tmp_path / "data"), raw=str(tmp_path / "raw"))


@pytest.mark.slow  # `raw/test_tfrecord.py` damages such files
def test_damaged_shards(small: GQN) -> None:
    path = Path(str(small.raw)) / "train/0001-of-0002.tfrecord"
    whole = path.read_bytes()
    for case, content in damaged(whole, cuts=12, flips=18):
        if case == f"cut at {len(whole) // 2}":
            continue  # that is a whole shard of one record
        path.write_bytes(content)
        assert_refused(small, f"{path}: ", case)
    path.write_bytes(whole)
    small.prepare()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"frames": [FRAME] * 9, "cameras": CAMERAS}, "record 1: frames: 9 strings, expected 10"),
        ({"frames": [FRAME] * 10}, "record 1: no feature 'cameras'"),
        ({"cameras": CAMERAS}, "record 1: no feature 'frames'"),
        ({"frames": [FRAME] * 10, "cameras": CAMERAS[:49]}, "record 1: cameras: 49 values, expected 50"),
        ({"frames": CAMERAS, "cameras": CAMERAS}, "record 1: frames: found floats"),
        ({"frames": [FRAME] * 10, "cameras": [b"1"]}, "record 1: cameras: found bytes"),
        ({"frames": [jpeg(32)] * 10, "cameras": CAMERAS}, "record 1: frames 1: a picture of 32 x 32"),
        ({"frames": [FRAME[:300]] * 10, "cameras": CAMERAS}, "record 1: frames 1: not readable as JPEG"),
        ({"frames": [b""] * 10, "cameras": CAMERAS}, "record 1: frames 0: begins with b''"),
        ({"frames": [b"\x89PNG"] * 10, "cameras": CAMERAS}, "record 1: frames 0: begins with"),
    ],
)
def test_records_of_another_schema(small: GQN, record: dict[str, Any], message: str) -> None:
    path = Path(str(small.raw)) / "train/0001-of-0002.tfrecord"
    write(path, {"frames": [FRAME] * 10, "cameras": CAMERAS}, record)
    assert_refused(small, f"{path}: {message}")


def test_missing_shards(small: GQN, tmp_path: Path) -> None:
    (Path(str(small.raw)) / "train/0002-of-0002.tfrecord").rename(tmp_path / "elsewhere")
    assert_refused(small, f"{small.raw}/train: 1 shards such as 0001-of-2160.tfrecord, expected 2")
    with pytest.raises(DataError, match="no such folder, expected one with train/0001-of-2160"):
        GQN(root=str(tmp_path), raw=f"{tmp_path}/nowhere").prepare()


def test_a_damaged_store_is_noticed_when_read(small: GQN) -> None:
    small.prepare()
    path = small.plan("test").path / "flat.frames.npy"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"flat\.frames\.npy: damaged"):
        small.dataset("test")[1]
    with pytest.raises(DataError, match=r"flat\.frames\.npy: damaged"):
        small.prepare()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"flat\.frames\.npy: .* bytes, expected"):
        GQN(root=small.root, raw=small.raw).dataset("test")
