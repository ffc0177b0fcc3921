"""The files of object-centric-library, as h5py writes them, to batches."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from data_modules import DataError, ObjectCentricHDF5
from data_modules.base import SPLITS
from data_modules.store import Store
from tests.data_modules.damage import assert_refused

FILE = "clevrtex-full.hdf5"


def scenes(count: int = 30, side: int = 128) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        "mask": rng.integers(0, 11, (count, side, side, 1)),
        "num_actual_objects": rng.integers(3, 11, (count, 1)),
        "visibility": np.ones((count, 11), np.float32),
    }


def write(path: Path, arrays: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=True, compression="gzip", compression_opts=1)
    return path


def read(data: ObjectCentricHDF5, split: Any) -> dict[str, Any]:
    store = Store.open(data.plan(split).path)
    return store.read(list(range(len(store))))


def test_values_and_splits(tmp_path: Path) -> None:
    """Value for value, in file order; masks of int64 too."""
    truth = scenes()
    write(tmp_path / FILE, truth)
    data = ObjectCentricHDF5(root=str(tmp_path / "data"), raw=str(tmp_path), variant="clevrtex")
    assert (data.image_size, data.num_slots, data.num_background) == (128, 11, 1)
    data.prepare()
    first = 0
    for split, count in zip(SPLITS, (24, 3, 3), strict=True):
        found = read(data, split)
        here = slice(first, first + count)
        assert np.array_equal(found["images"], truth["image"][here])
        assert np.array_equal(found["segmentations"], truth["mask"][here, ..., 0])
        assert found["labels.num_objects"].tolist() == truth["num_actual_objects"][here, 0].tolist()
        first += count
    note = Store.open(data.plan("test").path).manifest["source"]["note"]
    assert note == "24 / 3 / 3 images for training, validation and test, a split of ours; say so with results"


def test_another_size(tmp_path: Path) -> None:
    truth = scenes(3)
    del truth["num_actual_objects"]
    write(tmp_path / FILE, truth)
    data = ObjectCentricHDF5(
        root=str(tmp_path / "data"), raw=str(tmp_path), variant="clevrtex", image_size=64
    )
    data.prepare()
    found = read(data, "train")
    picture = Image.fromarray(truth["image"][0]).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(found["images"][0], np.asarray(picture))
    ids = Image.fromarray(truth["mask"][0, ..., 0].astype(np.uint8)).resize(
        (64, 64), Image.Resampling.NEAREST
    )
    assert np.array_equal(found["segmentations"][0], np.asarray(ids))
    assert not any(name.startswith("labels.") for name in found)


def changed(**arrays: Any) -> dict[str, Any]:
    return {name: array for name, array in {**scenes(6, 16), **arrays}.items() if array is not None}


HIGH = np.zeros((6, 16, 16, 1), np.int64)
HIGH[4, 3, 2] = 255


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (changed(mask=None), "no `mask` in the file, expected an array there"),
        (changed(image=np.zeros((6, 16, 16, 3))), r"image: float64 [6, 16, 16, 3], expected uint8"),
        (changed(mask=np.zeros((6, 11, 16, 16))), "/mask: float64 [6, 11, 16, 16], expected whole numbers"),
        (changed(mask=np.zeros((5, 16, 16, 1), np.uint8)), "/mask: uint8 [5, 16, 16, 1], expected"),
        (changed(mask=HIGH), "mask 4: id 255, expected 0 to 254"),
        (changed(mask=-HIGH), "mask 4: id -255, expected 0 to 254"),
        (changed(num_actual_objects=np.zeros((6, 2))), "num_actual_objects: float64 [6, 2], expected one"),
    ],
)
def test_another_layout_is_named(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "raw" / FILE, arrays)
    data = ObjectCentricHDF5(root=str(tmp_path / "data"), raw=str(path.parent), variant="clevrtex")
    assert str(path) in assert_refused(data, message)


def test_links_and_rubbish(tmp_path: Path) -> None:
    """An array that lies elsewhere is not followed; bytes that are no HDF5 are one line."""
    elsewhere = write(tmp_path / "elsewhere.hdf5", scenes(6, 16))
    path = write(tmp_path / "raw" / FILE, changed(image=None))
    with h5py.File(path, "a") as file:
        file["image"] = h5py.ExternalLink(str(elsewhere), "image")
    data = ObjectCentricHDF5(root=str(tmp_path / "data"), raw=str(path.parent), variant="clevrtex")
    assert_refused(data, "no `image` in the file")
    for content in (b"", b"\x89HDF\r\n\x1a\n", b"hello" * 100, elsewhere.read_bytes()[:3000]):
        path.write_bytes(content)
        assert_refused(data, "not readable as HDF5")


@pytest.mark.parametrize("variant", ["objects_room", "tetrominoes"])
def test_stand_in(variant: Any, tmp_path: Path) -> None:
    data = ObjectCentricHDF5(root=str(tmp_path), synthetic=3, variant=variant)
    data.prepare()
    found = read(data, "train")
    background = {"objects_room": 4, "tetrominoes": 1}[variant]
    ids = found["segmentations"]
    assert set(np.unique(ids[(ids > 0) & (ids < background)])) == set()
    assert ids.max() < background + data.num_slots - 1
    assert found["images"].shape == (3, data.image_size, data.image_size, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "atari"}, "variant: 'atari', expected clevr, multi_dsprites"),
        ({"num_background": -1}, "num_background: -1, expected 0 to 254"),
    ],
)
def test_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ObjectCentricHDF5(**options)
