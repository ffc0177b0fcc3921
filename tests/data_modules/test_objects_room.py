"""ObjectsRoom from raw bytes to batches; and all that the datasets made of raw files have in common."""

import gzip
import hashlib
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_modules import DataError, ObjectsRoom
from data_modules.objects_room import repair_background
from data_modules.raw.download import RawFile
from data_modules.raw_source import share_out
from data_modules.store import Store
from data_modules.synthesis import objects_room as synthesis
from tests.data_modules.multi_object_files import as_masks, ids_of, room_record, write_records
from tests.ranks.command import TIMEOUT

FILE = "objects_room_train.tfrecords"
COUNT = 300
RECORDS = [room_record(i) for i in range(12)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_records(folder / FILE, [RECORDS[i % 12] for i in range(COUNT)])
    return folder


def arrays(data: ObjectsRoom, split: str) -> dict[str, Any]:
    store = Store.open(data.plan(split).path)  # type: ignore[arg-type]
    return store.read(list(range(len(store))))


def test_splits_are_in_file_order_and_proportion(raw: Path, tmp_path: Path) -> None:
    data = ObjectsRoom(root=str(tmp_path), raw=str(raw))
    assert not list(tmp_path.iterdir()), "the constructor must not touch the disk"
    data.prepare()
    # 1 % each for test, then validation, at the beginning of the file
    first = 0
    for split, size in (("test", 3), ("val", 3), ("train", 294)):
        found = arrays(data, split)
        assert len(found["images"]) == size
        for i in range(size):
            record = RECORDS[(first + i) % 12]
            np.testing.assert_array_equal(found["images"][i], record["image"])
            np.testing.assert_array_equal(found["segmentations"][i], ids_of(record))
        first += size
    assert sorted(path.name for path in raw.iterdir()) == [FILE], "nothing is written to the user's folder"
    source = json.loads((tmp_path / "objects_room/train/manifest.json").read_text())["source"]
    assert source["synthetic"] is False
    assert source["licence"] == "Apache-2.0"
    assert "294 / 3 / 3 images" in source["note"]
    assert source["files"][0]["bytes"] == (raw / FILE).stat().st_size
    assert len(source["files"][0]["sha256"]) == 64
    with Image.open(tmp_path / "objects_room/preview.png") as preview:
        assert preview.size == (3 * 66 - 2, 2 * 66 - 2)


def test_batches(raw: Path, tmp_path: Path) -> None:
    data = ObjectsRoom(root=str(tmp_path), raw=str(raw), batch_size=3)
    assert (data.image_size, data.num_slots, data.num_background) == (64, 7, 4)
    with pytest.raises(
        DataError, match=f"lightning-genesis prepare objects_room --root {tmp_path} --raw {raw}"
    ):
        data.prepare_data()
    data.prepare()
    with pytest.warns(UserWarning, match="say so with results"):
        data.setup("test")
    batch = next(iter(data.test_dataloader()))
    expected = np.stack([record["image"] for record in RECORDS[:3]]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(batch["image"].numpy(), expected)
    np.testing.assert_array_equal(batch["segmentation"].numpy(), np.stack([ids_of(r) for r in RECORDS[:3]]))


def test_the_published_file_gives_the_papers_split() -> None:
    assert share_out(1_000_000, ObjectsRoom.published) == {"train": 980_000, "val": 10_000, "test": 10_000}
    assert share_out(1_000_005, ObjectsRoom.published)["train"] == 980_005
    assert share_out(100, ObjectsRoom.published) == {"train": 98, "val": 1, "test": 1}
    assert share_out(3, ObjectsRoom.published) == {"train": 1, "val": 1, "test": 1}
    with pytest.raises(DataError, match="2 records, expected at least 3"):
        share_out(2, ObjectsRoom.published)


def test_subset(raw: Path, tmp_path: Path) -> None:
    data = ObjectsRoom(root=str(tmp_path), raw=str(raw), subset=10)
    data.prepare()
    assert [len(arrays(data, split)["images"]) for split in ("train", "val", "test")] == [8, 1, 1]
    np.testing.assert_array_equal(arrays(data, "val")["images"][0], RECORDS[1]["image"])
    assert data.plan("train").path == tmp_path / "objects_room-first10" / "train"


def test_other_sizes(raw: Path, tmp_path: Path) -> None:
    data = ObjectsRoom(root=str(tmp_path), raw=str(raw), image_size=32, subset=5)
    data.prepare()
    found = arrays(data, "test")
    image = Image.fromarray(RECORDS[0]["image"]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found["images"][0], np.asarray(image))
    # Pillow's nearest takes the pixel at the centre
    np.testing.assert_array_equal(found["segmentations"][0], ids_of(RECORDS[0])[1::2, 1::2])


def test_synthetic_scenes_round_trip(tmp_path: Path) -> None:
    data = ObjectsRoom(root=str(tmp_path), synthetic=6, batch_size=6)
    assert data.prepares_on_fit
    data.prepare_data()
    first = 0
    for split, size in (("test", 8), ("val", 8), ("train", 6)):
        found = arrays(data, split)
        assert len(found["images"]) == size
        for i in range(size):
            truth = synthesis.draw(0, first + i)
            np.testing.assert_array_equal(found["images"][i], truth["image"])
            np.testing.assert_array_equal(found["segmentations"][i], ids_of(truth))
        first += size
    assert data.plan("train").path == tmp_path / "objects_room-synthetic-6" / "train"
    assert (tmp_path / "raw/objects_room-synthetic-6" / FILE).exists()
    source = json.loads((data.plan("test").path / "manifest.json").read_text())["source"]
    assert source["synthetic"] is True
    assert "synthetic" in source["note"]
    with pytest.warns(UserWarning, match="synthetic scenes"):
        data.setup("fit")
    # once made, the raw files are no longer needed
    shutil.rmtree(tmp_path / "raw")
    data.prepare()
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"synthetic": 0}, "synthetic: 0, expected 1"),
        ({"synthetic": 5, "raw": "x"}, "raw, synthetic: both"),
        ({"subset": 2}, "subset: 2"),
        ({"image_size": 0}, "image_size: 0"),
    ],
)
def test_settings_out_of_range(setting: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError, match=part):
        ObjectsRoom(**setting)


def test_no_two_settings_share_a_folder() -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"synthetic": 10},
        {"synthetic": 20},
        {"subset": 10},
        {"background_repair": True},
        {"image_size": 32},
    ]
    assert len({ObjectsRoom(**setting).plan("val").path for setting in settings}) == len(settings)


# --- the repair ------------------------------------------------------------------------------------------


def room(*objects: tuple[int, int, int, int, int]) -> np.ndarray:
    """Sky above, one wall (2), floor below; objects as (entity, top, left, height, width)."""
    ids = np.repeat([0, 2, 1], [16, 24, 24]).astype(np.uint8)[:, None].repeat(64, 1)
    for entity, top, left, height, width in objects:
        ids[top : top + height, left : left + width] = entity
    return ids


def test_repair_moves_objects_out_of_the_background() -> None:
    only = room((3, 30, 20, 20, 10))
    two = room((3, 45, 20, 10, 10), (4, 45, 40, 10, 10))
    np.testing.assert_array_equal(
        repair_background(np.stack([only, two])),
        np.stack([np.where(only == 3, 4, only), np.where(two == 4, 5, np.where(two == 3, 4, two))]),
    )


def test_repair_leaves_walls_alone() -> None:
    # the second wall goes from the middle to the right border, as high as the first
    ids = room((3, 16, 32, 24, 32), (4, 45, 40, 10, 10))
    np.testing.assert_array_equal(repair_background(ids[None])[0], ids)
    # no number is free
    full = room((3, 45, 20, 10, 10), (4, 45, 40, 8, 8), (5, 50, 5, 8, 8), (6, 50, 15, 5, 4))
    np.testing.assert_array_equal(repair_background(full[None])[0], full)


def test_repair_finds_the_objects_of_drawn_rooms_with_one_wall() -> None:
    scenes = [ids_of(synthesis.draw(0, i, one_wall=True)) for i in range(12)]
    for before, after in zip(scenes, repair_background(np.stack(scenes)), strict=True):
        np.testing.assert_array_equal(after > 3, before > 2)


def test_repair_is_an_option(tmp_path: Path) -> None:
    record = {"image": RECORDS[0]["image"], "mask": as_masks(room((3, 30, 20, 20, 10)), 7)}
    write_records(tmp_path / "raw" / FILE, [record] * 3)
    for repair, highest in ((False, 3), (True, 4)):
        data = ObjectsRoom(root=str(tmp_path), raw=str(tmp_path / "raw"), background_repair=repair)
        data.prepare()
        assert arrays(data, "train")["segmentations"].max() == highest


# --- damage ----------------------------------------------------------------------------------------------


def test_damaged_files_leave_no_store(raw: Path, tmp_path: Path) -> None:
    """Cut and flipped anywhere, unpacked and not: one clear line, and nothing that opens."""
    whole = (raw / FILE).read_bytes()
    plain = gzip.decompress(whole)[: 9 * 123_100]
    rng = np.random.default_rng(0)
    damaged = {f"cut {end}": whole[:end] for end in np.linspace(0, len(whole) - 1, 12).astype(int)}
    for name, content in (("packed", whole), ("plain", plain)):
        for position in rng.integers(10, len(content), 10):
            flipped = bytearray(content)
            flipped[position] ^= 1 << int(rng.integers(8))
            damaged[f"{name} {position}"] = bytes(flipped)
    for name, content in damaged.items():
        folder = tmp_path / "raw"
        folder.mkdir(exist_ok=True)
        (folder / FILE).write_bytes(content)
        data = ObjectsRoom(root=str(tmp_path / "data"), raw=str(folder))
        with pytest.raises(DataError) as caught:
            data.prepare()
        assert FILE in str(caught.value), name
        assert "\n" not in str(caught.value)
        for split in ("test", "val", "train"):
            path = data.plan(split).path  # type: ignore[arg-type]
            if path.exists():
                # a split whose records were all sound before the damage was met is whole
                Store.open(path).verify()
                assert split != "train"
                shutil.rmtree(path)
        assert not list((tmp_path / "data").rglob("*.partial"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"mask": r["mask"] // 2}, "other values than 0 and 255"),
        (
            lambda r: r | {"mask": r["mask"] | 255 * np.eye(7, dtype=np.uint8)[4][:, None, None, None]},
            "or of two",
        ),
        (lambda r: r | {"mask": r["mask"] * 0}, "a pixel of no entity"),
        (lambda r: r | {"mask": as_masks(np.full((64, 64), 5, np.uint8), 7)}, "no pixel of the background"),
        (lambda r: r | {"mask": r["mask"][:4]}, "mask: 16,384 strings"),
        (lambda r: r | {"image": r["image"][..., :1]}, "image: 4,096 strings"),
        (lambda r: {"image": r["image"]}, "no feature 'mask', found image"),
        (lambda r: {"pixels": r["image"]}, "no feature 'image', found pixels"),
        (lambda r: r | {"image": np.zeros(12_288, np.float32)}, "image: found floats, expected bytes"),
    ],
)
def test_records_of_another_schema_are_named(tmp_path: Path, change: Any, message: str) -> None:
    records = [*RECORDS[:7], change(RECORDS[7]), *RECORDS[8:]]
    write_records(tmp_path / "raw" / FILE, records)
    data = ObjectsRoom(root=str(tmp_path), raw=str(tmp_path / "raw"))
    with pytest.raises(DataError, match=message) as caught:
        data.prepare()
    assert str(caught.value).startswith(f"{tmp_path / 'raw' / FILE}: record 7: ")
    assert not data.plan("train").path.exists()


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"raw: {tmp_path}/nowhere: no such folder, expected one with {FILE}"):
        ObjectsRoom(root=str(tmp_path), raw=f"{tmp_path}/nowhere").prepare()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path}/empty/{FILE}: missing"):
        ObjectsRoom(root=str(tmp_path), raw=f"{tmp_path}/empty").prepare()


def test_an_interrupted_preparation_goes_on(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ObjectsRoom(root=str(tmp_path), raw=str(raw))
    convert, calls = data.convert, []

    def interrupted(examples: Any) -> Any:
        calls.append(len(examples))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return convert(examples)

    monkeypatch.setattr(data, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.prepare()
    assert not data.plan("train").path.exists()
    before = data.plan("test").path.stat().st_mtime_ns
    monkeypatch.setattr(data, "convert", convert)
    data.prepare()
    assert data.plan("test").path.stat().st_mtime_ns == before, "what was whole is kept"
    assert len(arrays(data, "train")["images"]) == 294


def test_an_interrupted_synthesis_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ObjectsRoom(root=str(tmp_path), synthetic=1)

    def interrupted(folder: Path, *_: object) -> None:
        (folder / FILE).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "synthesise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.prepare()
    assert not list((tmp_path / "raw").iterdir())


def test_two_prepare_synthetic_scenes_at_once(tmp_path: Path) -> None:
    """Two threads, which share no more than processes do: everything is under names of their own."""
    root, both = tmp_path / "data", threading.Barrier(2, timeout=TIMEOUT)

    class Together(ObjectsRoom):
        """Draws once the other one is about to draw too."""

        def synthesise(self, *args: Any) -> None:
            both.wait()
            super().synthesise(*args)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(Together(root=str(root), synthetic=1).prepare) for _ in range(2)]:
            done.result()
    ObjectsRoom(root=str(root), synthetic=1).prepare()  # opens and verifies every split
    assert [path.name for path in (root / "raw").iterdir()] == ["objects_room-synthetic-1"]
    assert not list(root.rglob("*.partial"))


def test_a_killed_synthesis_is_cleared_away_when_old(tmp_path: Path) -> None:
    """A young one may belong to a process that is at work."""
    old, young = (tmp_path / f"raw/.objects_room-synthetic-1.{name}.partial" for name in ("old", "young"))
    for folder in (old, young):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / FILE).write_bytes(b"half a file")
    for path in (old, *old.rglob("*")):
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    ObjectsRoom(root=str(tmp_path), synthetic=1).prepare()
    names = sorted(path.name for path in (tmp_path / "raw").iterdir())
    assert names == [young.name, "objects_room-synthetic-1"]


def test_too_small_a_disk(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_modules.raw_source.free_bytes", lambda folder: 1000)
    for settings in ({"raw": str(raw)}, {"synthetic": 5}, {}):
        with pytest.raises(DataError, match=r"1\.0 kB free, expected .* for objects_room"):
            ObjectsRoom(root=str(tmp_path), **settings).prepare()  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_downloads_what_is_missing(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the publisher's place to the store; a second preparation asks for nothing."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = (raw / FILE).read_bytes() if self.path == f"/{FILE}" else None
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        monkeypatch.setattr(
            ObjectsRoom,
            "file",
            RawFile(FILE, f"{url}/elsewhere", about_bytes=(raw / FILE).stat().st_size * 2),
        )
        data = ObjectsRoom(root=str(tmp_path), subset=20)
        with pytest.raises(DataError, match=f"{url}/elsewhere: HTTP status 404 .* --raw FOLDER"):
            data.prepare()
        monkeypatch.setattr(
            ObjectsRoom, "file", RawFile(FILE, f"{url}/{FILE}", about_bytes=(raw / FILE).stat().st_size * 2)
        )
        data.prepare()
        shutil.rmtree(data.plan("val").path)
        data.prepare()
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["/elsewhere", f"/{FILE}"]
    assert (tmp_path / "raw/objects_room" / FILE).read_bytes() == (raw / FILE).read_bytes()
    np.testing.assert_array_equal(arrays(data, "val")["images"][0], RECORDS[1]["image"])
    file = json.loads((data.plan("val").path / "manifest.json").read_text())["source"]["files"][0]
    assert file["url"] == f"{url}/{FILE}"
    assert file["sha256"] == hashlib.sha256((raw / FILE).read_bytes()).hexdigest()
