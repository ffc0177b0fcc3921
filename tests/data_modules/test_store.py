"""The store: what goes in comes out, and whatever is wrong with one gets a line that says what to do."""

import errno
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from data_modules import store as module
from data_modules import store_writer as writer
from data_modules.base import StoreDataset
from data_modules.store import DataError, Store
from data_modules.store_writer import StoreWriter, write_store

SETTINGS = {"image_size": 8, "variant": "free"}
REMEDY = "run `lightning-genesis prepare toy --root data`"


def records(count: int = 10) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {
        "images": rng.integers(256, size=(count, 8, 8, 3), dtype=np.uint8),
        "segmentations": rng.integers(5, size=(count, 8, 8), dtype=np.uint8),
        "labels.height": rng.integers(9, size=count),
        "objects.present": rng.integers(2, size=(count, 3)).astype(bool),
    }


def chunks(whole: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for part in (slice(0, 3), slice(3, 4), slice(4, None)):
        yield {name: array[part] for name, array in whole.items()}


def make(path: Path, whole: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    whole = whole or records()
    write_store(path, chunks(whole), name="toy", split="train", settings=SETTINGS, source={"file": "toy.bin"})
    return whole


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "train"
    whole = make(path)
    store = Store.open(path, settings=SETTINGS)
    store.verify()
    assert len(store) == 10
    for name, array in whole.items():
        np.testing.assert_array_equal(store.arrays[name], array)
        np.testing.assert_array_equal(store.read([7, 0, 7])[name], array[[7, 0, 7]])
        # a plain NumPy file, for any other program
        np.testing.assert_array_equal(np.load(path / f"{name}.npy"), array)
    assert not store.arrays["images"].flags.writeable
    assert store.read([1])["images"].flags.writeable
    assert [p.name for p in path.parent.iterdir()] == ["train"]


def test_travels_as_a_path(tmp_path: Path) -> None:
    whole = make(tmp_path / "train")
    store = Store.open(tmp_path / "train")
    assert store.arrays
    message = pickle.dumps(store)
    assert len(message) < 5000
    np.testing.assert_array_equal(pickle.loads(message).read([3])["images"], whole["images"][[3]])


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest as a program would that knows its checksum."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    manifest["sha256"] = module.manifest_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def truncate(path: Path) -> None:
    os.truncate(path / "images.npy", 1000)


def other_shape(path: Path) -> None:
    array = np.load(path / "images.npy")
    np.save(path / "images.npy", array.reshape(10, 3, 8, 8))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda path: path.rename(path.with_name("away")), ["train: not found"]),
        (lambda path: (path / "manifest.json").unlink(), ["train: not a store", "manifest.json"]),
        (lambda path: (path / "manifest.json").write_text("{"), ["manifest.json: not readable as JSON"]),
        (
            lambda path: (path / "manifest.json").write_text("[]"),
            ["manifest.json: not the manifest of a store"],
        ),
        (
            lambda path: edit_manifest(path, lambda m: m.update(version=7)),
            ["manifest.json: format version 7, expected 2"],
        ),
        (lambda path: edit_manifest(path, lambda m: m.pop("count")), ["manifest.json: has no key `count`"]),
        (lambda path: (path / "images.npy").unlink(), ["images.npy: missing, expected 2,048 bytes"]),
        (truncate, ["images.npy: 1,000 bytes, expected 2,048"]),
        (other_shape, ["images.npy: found uint8 [10, 3, 8, 8], expected uint8 [10, 8, 8, 3]"]),
        (
            lambda path: (path / "images.npy").write_bytes(b"\0" * 2048),
            ["images.npy: no NumPy array"],
        ),
        (
            lambda path: edit_manifest(path, lambda m: m["settings"].update(variant="unique")),
            ["manifest.json: made with other settings: `variant` is 'unique', expected 'free'"],
        ),
    ],
)
def test_damage_gets_one_line(tmp_path: Path, damage: Callable[[Path], object], parts: list[str]) -> None:
    path = tmp_path / "train"
    make(path)
    damage(path)
    with pytest.raises(DataError) as caught:
        Store.open(path, REMEDY, SETTINGS)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(REMEDY)
    for part in [str(tmp_path), *parts]:
        assert part in message


def test_flipped_byte_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", 500)
    path = tmp_path / "train"
    make(path)
    data = bytearray((path / "images.npy").read_bytes())
    data[1700] ^= 1
    (path / "images.npy").write_bytes(data)
    store = Store.open(path, REMEDY, SETTINGS)
    with pytest.raises(DataError) as caught:
        store.verify()
    message = str(caught.value)
    assert f"{path / 'images.npy'}: damaged in the 500 bytes from 1,500: checksum " in message
    assert message.endswith(REMEDY)


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("index", [0, 4, 9, -1])
def test_damage_is_found_by_the_first_read_that_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    """Nothing has called `verify`; chunks of 500 bytes hold two and a half images, which span them."""
    monkeypatch.setattr(writer, "CHUNK_BYTES", 500)
    path = tmp_path / "train"
    whole = make(path)
    place = 128 + 192 * (index % 10) + 100
    flip(path / "images.npy", place)
    store = Store.open(path, REMEDY, SETTINGS)
    chunk = place // 500
    found = []
    for i in range(10):
        first, last = (128 + 192 * i) // 500, (128 + 192 * i + 191) // 500
        if first <= chunk <= last:
            found.append(i)
            for _ in range(2):  # it stays damaged
                with pytest.raises(DataError) as caught:
                    store.read([i])
                message = str(caught.value)
                assert message.startswith(
                    f"{path / 'images.npy'}: damaged in the 500 bytes from {chunk * 500:,}"
                )
                assert message.endswith(REMEDY)
        else:
            np.testing.assert_array_equal(store.read([i])["images"][0], whole["images"][i])
    assert index % 10 in found
    with pytest.raises(DataError):
        store.read([index])


def test_each_chunk_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", 500)
    make(tmp_path / "train")
    store = Store.open(tmp_path / "train")
    compared: list[tuple[str, int]] = []
    real = Store._compare

    def spy(self: Store, name: str, chunk: int, found: int) -> None:
        compared.append((name, chunk))
        real(self, name, chunk, found)

    monkeypatch.setattr(Store, "_compare", spy)
    store.read([1])
    # image 1 is in bytes 320 to 511, its masks in 192 to 255, all else in the first chunk
    expected = {
        ("images", 0),
        ("images", 1),
        ("segmentations", 0),
        ("labels.height", 0),
        ("objects.present", 0),
    }
    assert set(compared) == expected
    for _ in range(3):
        store.read([*range(10), -1])
    everything = {(name, i) for name, e in store.manifest["arrays"].items() for i in range(len(e["crc32"]))}
    assert sorted(compared) == sorted(everything)


def test_threads_and_processes_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", 500)
    path = tmp_path / "train"
    whole = make(path)
    store = Store.open(path, REMEDY, SETTINGS)
    store.read([0])
    with ThreadPoolExecutor(8) as pool:
        for i, read in zip(range(10), pool.map(lambda i: store.read([i]), range(10)), strict=True):
            np.testing.assert_array_equal(read["images"][0], whole["images"][i])
    flip(path / "images.npy", 1900)
    # what travels to another process has to be compared there again
    with pytest.raises(DataError, match=r"images\.npy: damaged"):
        pickle.loads(pickle.dumps(store)).read([9])
    store = Store.open(path, REMEDY, SETTINGS)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(store.read, [9]) for _ in range(16)]
    assert all(isinstance(future.exception(), DataError) for future in futures)


def test_damage_ends_training_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", 500)
    make(tmp_path / "train")
    flip(tmp_path / "train" / "images.npy", 1900)
    dataset = StoreDataset(Store.open(tmp_path / "train", REMEDY))
    for num_workers in (0, 2):
        loader = DataLoader(dataset, batch_size=5, num_workers=num_workers, collate_fn=list)
        with pytest.raises(DataError) as caught:
            list(loader)
        assert str(caught.value).startswith(f"{tmp_path / 'train' / 'images.npy'}: damaged in the 500 bytes")
        assert "\n" not in str(caught.value)


def test_files_that_change_while_open(tmp_path: Path) -> None:
    path = tmp_path / "train"
    make(path)
    store = Store.open(path, REMEDY)
    assert store.arrays
    os.truncate(path / "images.npy", 200)
    with pytest.raises(DataError, match=r"images\.npy: damaged"):
        store.read([9])
    with pytest.raises(DataError, match=r"images\.npy: damaged"):
        store.verify()
    (path / "images.npy").unlink()
    with pytest.raises(DataError, match=r"images\.npy: cannot be read .No such file"):
        store.read([9])


def test_shifted_data(tmp_path: Path) -> None:
    """A shorter header is a valid one that says that the numbers begin earlier."""
    path = tmp_path / "train"
    make(path)
    data = bytearray((path / "images.npy").read_bytes())
    data[8] -= 3
    data[10 + data[8] - 1] = ord("\n")
    (path / "images.npy").write_bytes(data)
    assert np.load(path / "images.npy", mmap_mode="r").shape == (10, 8, 8, 3)
    with pytest.raises(DataError, match=r"images\.npy: no NumPy array .damaged header"):
        Store.open(path)


def test_fortran_order(tmp_path: Path) -> None:
    path = tmp_path / "train"
    whole = make(path)
    np.save(path / "images.npy", np.asfortranarray(whole["images"]))
    with pytest.raises(DataError, match=r"images\.npy: no NumPy array .damaged header"):
        Store.open(path)


def test_records_without_numbers(tmp_path: Path) -> None:
    whole = records() | {"objects.none": np.zeros((10, 0), np.float32)}
    make(tmp_path / "train", whole)
    read = Store.open(tmp_path / "train").read([3, 9])
    assert read["objects.none"].shape == (2, 0)
    with pytest.raises(IndexError):
        Store.open(tmp_path / "train").read([10])


def test_split(tmp_path: Path) -> None:
    make(tmp_path / "val")
    with pytest.raises(DataError, match=r"manifest\.json: is the split 'train', expected 'val'"):
        Store.open(tmp_path / "val", split="val")


def test_stores_of_version_1_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They had chunks of 16 MiB and no checksum of the manifest."""
    monkeypatch.setattr(writer, "CHUNK_BYTES", 16 * 2**20)
    path = tmp_path / "train"
    whole = make(path)
    file = path / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    file.write_text(json.dumps(manifest | {"version": 1}))
    monkeypatch.undo()
    store = Store.open(path, settings=SETTINGS)
    store.verify()
    np.testing.assert_array_equal(store.read([7])["images"], whole["images"][[7]])
    file.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest\.json: damaged: SHA-256"):
        Store.open(path)


def test_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError) as caught:
        make(tmp_path / "file" / "train")
    assert str(caught.value).startswith(f"{tmp_path / 'file'}: cannot be written to (Not a directory)")


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> Iterator[dict[str, np.ndarray]]:
        yield records()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError) as caught:
        write_store(tmp_path / "train", fill(), name="toy", split="train", settings={}, source={})
    assert f"{tmp_path / 'train'}: the disk is full after 10 records" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_in_the_middle_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open
    monkeypatch.setattr(
        writer,
        "open",
        lambda path, mode="r", **more: real("/dev/full" if "w" in mode else path, mode, **more),
        False,
    )
    whole = records(2000)
    with pytest.raises(DataError, match="the disk is full"):
        make(tmp_path / "train", whole)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_preparation_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> Iterator[dict[str, np.ndarray]]:
        yield records()
        raise error

    with pytest.raises(error):
        write_store(tmp_path / "train", interrupted(), name="toy", split="train", settings={}, source={})
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_one_go_when_old(tmp_path: Path) -> None:
    old, young = tmp_path / ".train.abc.partial", tmp_path / ".train.def.partial"
    for folder in (old, young):
        folder.mkdir()
        (folder / "images.npy").write_bytes(b"x")
    for path in (old, old / "images.npy"):
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    make(tmp_path / "train")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".train.def.partial", "train"]


def test_two_at_once_leave_one(tmp_path: Path) -> None:
    path = tmp_path / "train"
    with StoreWriter(path, "toy", "train", SETTINGS, {}) as writer:
        writer.append(records())
        make(path)
    assert len(Store.open(path, settings=SETTINGS)) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["train"]


def test_records_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "train"
    for second in (
        {"images": records()["images"]},
        records() | {"labels.height": np.zeros(3, int)},
        records() | {"images": np.zeros((10, 8, 8, 4), np.uint8)},
        records() | {"images": np.zeros((10, 8, 8, 3), np.float32)},
    ):
        with pytest.raises(ValueError, match=r"records|npy"):
            write_store(path, iter([records(), second]), name="toy", split="train", settings={}, source={})
    assert not list(tmp_path.iterdir())


def test_an_error_from_a_loaders_process_keeps_its_line() -> None:
    wrapped = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    )
    wrapped += '  File "x.py", line 1\ndata_modules.store.DataError: a.png: missing, add it\n'
    assert str(DataError(wrapped)) == "a.png: missing, add it"
    assert str(pickle.loads(pickle.dumps(DataError("a: b")))) == "a: b"
