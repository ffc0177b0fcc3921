"""Tetrominoes and the published Multi-dSprites, as TFRecords and as EfficientMORL's HDF5 files."""

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_modules import DataError, EmorlHDF5, MultiDSpritesTFRecords, SceneDataModule, Tetrominoes
from data_modules.raw.tfrecord import TFRecordWriter
from data_modules.store import Store
from data_modules.synthesis import multi_dsprites_tfrecords, tetrominoes
from tests.data_modules.multi_object_files import ids_of


def arrays(data: SceneDataModule, split: str) -> dict[str, Any]:
    store = Store.open(data.plan(split).path)  # type: ignore[arg-type]
    return store.read(list(range(len(store))))


def test_tetrominoes(tmp_path: Path) -> None:
    data = Tetrominoes(root=str(tmp_path), synthetic=20)
    assert (data.image_size, data.num_slots, data.num_background) == (35, 4, 1)
    data.prepare()
    first = 0
    for split, size in (("train", 20), ("val", 8), ("test", 8)):
        found = arrays(data, split)
        assert len(found["images"]) == size
        for i in range(size):
            truth = tetrominoes.draw(0, first + i)
            np.testing.assert_array_equal(found["images"][i], truth["image"])
            np.testing.assert_array_equal(found["segmentations"][i], ids_of(truth))
            np.testing.assert_array_equal(found["objects.color"][i], truth["color"][1:])
            np.testing.assert_array_equal(found["objects.x"][i], truth["x"][1:])
        first += size
    # three whole pieces of four squares of 25 pixels each
    for segmentation in arrays(data, "train")["segmentations"]:
        assert np.bincount(segmentation.reshape(-1)).tolist() == [1225 - 300, 100, 100, 100]


@pytest.mark.parametrize("variant", ["colored_on_grayscale", "colored_on_colored", "binarized"])
def test_multi_dsprites(tmp_path: Path, variant: Any) -> None:
    data = MultiDSpritesTFRecords(root=str(tmp_path), synthetic=12, variant=variant)
    data.prepare()
    found = arrays(data, "train")
    sprites = {"colored_on_grayscale": (2, 5), "colored_on_colored": (1, 4), "binarized": (2, 3)}[variant]
    assert data.num_slots == sprites[1] + 1
    assert found["objects.present"].shape == (12, sprites[1])
    for i in range(12):
        truth = multi_dsprites_tfrecords.draw(0, i, variant)
        np.testing.assert_array_equal(found["images"][i], np.broadcast_to(truth["image"], (64, 64, 3)))
        ids = truth["mask"][..., 0].argmax(-1)
        np.testing.assert_array_equal(found["segmentations"][i], ids)
        np.testing.assert_array_equal(found["objects.scale"][i], truth["scale"][1:])
        count = found["objects.present"][i].sum()
        assert sprites[0] <= count <= sprites[1]
        assert ids.max() <= count
        if variant == "binarized":
            np.testing.assert_array_equal(found["images"][i][..., 0] == 255, ids > 0)


def test_only_the_records_of_the_splits_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published files go on for a million records."""
    monkeypatch.setattr(Tetrominoes, "published", {"train": 6, "val": 2, "test": 2})
    path = tmp_path / "tetrominoes_train.tfrecords"
    with TFRecordWriter(path, compressed=False) as writer:
        for i in range(10):
            writer.write(tetrominoes.draw(1, i))
        writer.write_payload(b"not an example")
    data = Tetrominoes(root=str(tmp_path / "data"), raw=str(tmp_path))
    data.prepare()
    np.testing.assert_array_equal(arrays(data, "test")["images"][1], tetrominoes.draw(1, 9)["image"])
    assert "note" not in Store.open(data.plan("test").path).manifest["source"]


@pytest.mark.parametrize("variant", ["multi_dsprites", "tetrominoes"])
def test_hdf5_shows_the_scenes_of_the_tfrecords(tmp_path: Path, variant: Any) -> None:
    ready = EmorlHDF5(root=str(tmp_path), synthetic=10, variant=variant)
    records = (Tetrominoes if variant == "tetrominoes" else MultiDSpritesTFRecords)(
        root=str(tmp_path), synthetic=10
    )
    assert (ready.image_size, ready.num_slots) == (records.image_size, records.num_slots)
    for data in (ready, records):
        data.prepare()
    for split in ("train", "val", "test"):
        for name in ("images", "segmentations"):
            np.testing.assert_array_equal(arrays(ready, split)[name], arrays(records, split)[name])


def write_h5(path: Path, groups: dict[str, dict[str, Any]]) -> None:
    with h5py.File(path, "w") as file:
        for group, members in groups.items():
            for name, values in members.items():
                file[f"{group}/{name}"] = values


def tetromino_scenes(count: int) -> dict[str, Any]:
    scenes = [tetrominoes.draw(3, i) for i in range(count)]
    return {"imgs": np.stack([s["image"] for s in scenes]), "masks": np.stack([s["mask"] for s in scenes])}


def test_hdf5_without_a_validation_set(tmp_path: Path) -> None:
    scenes = tetromino_scenes(30)
    write_h5(tmp_path / "tetrominoes.h5", {"train": scenes, "test": {k: v[:3] for k, v in scenes.items()}})
    data = EmorlHDF5(root=str(tmp_path / "data"), raw=str(tmp_path), variant="tetrominoes")
    data.prepare()
    np.testing.assert_array_equal(arrays(data, "train")["images"], scenes["imgs"][:27])
    np.testing.assert_array_equal(arrays(data, "val")["images"], scenes["imgs"][27:])
    np.testing.assert_array_equal(arrays(data, "test")["images"], scenes["imgs"][:3])


def test_hdf5_clevr6_is_cropped_on_load(tmp_path: Path) -> None:
    from tests.data_modules.multi_object_files import clevr_record

    records = [clevr_record(i, 3 + i % 4) for i in range(6)]
    members = {
        "imgs": np.stack([r["image"] for r in records]),
        "masks": np.stack([r["mask"] for r in records]),
    }
    write_h5(tmp_path / "clevr6_with_masks_train.h5", {"train": members, "val": members})
    write_h5(tmp_path / "clevr6_with_masks_and_factors_test.h5", {"test": members})
    data = EmorlHDF5(root=str(tmp_path / "data"), raw=str(tmp_path), full_masks=True, image_size=192)
    data.prepare()
    for i, record in enumerate(records):
        np.testing.assert_array_equal(arrays(data, "test")["images"][i], record["image"][29:221, 64:256])
        np.testing.assert_array_equal(
            arrays(data, "test")["segmentations"][i], ids_of(record)[29:221, 64:256]
        )


def test_damaged_and_other_hdf5_files(tmp_path: Path) -> None:
    scenes = tetromino_scenes(20)
    good = {"train": scenes, "test": scenes}
    path = tmp_path / "raw" / "tetrominoes.h5"
    path.parent.mkdir()
    write_h5(path, good)
    whole = path.read_bytes()
    contents = [
        b"",
        b"text",
        bytes(5000),
        *(whole[:end] for end in np.linspace(1, len(whole) - 1, 25).astype(int)),
    ]
    files: list[Any] = [*contents]
    files += [
        {"train": scenes},
        {"training": scenes, "test": scenes},
        {"train": {"imgs": scenes["imgs"]}, "test": scenes},
        {"train": scenes | {"masks": scenes["masks"][:5]}, "test": scenes},
        {"train": scenes | {"imgs": scenes["imgs"] / 255}, "test": scenes},
        {"train": scenes | {"imgs": scenes["imgs"][:, :20]}, "test": scenes},
        {"train": scenes | {"masks": scenes["masks"] // 3}, "test": scenes},
        {"train": scenes | {"masks": scenes["masks"][:, ::-1] * 0}, "test": scenes},
        {"train": scenes | {"imgs": h5py.ExternalLink("/etc/passwd", "x")}, "test": scenes},
        {"train": scenes | {"imgs": h5py.SoftLink("/test/imgs")}, "test": scenes},
        {"train": {"imgs/x": [1], "masks/x": [1]}, "test": scenes},
    ]
    for content in files:
        path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            write_h5(path, content)
        data = EmorlHDF5(root=str(tmp_path / "data"), raw=str(path.parent), variant="tetrominoes")
        with pytest.raises(DataError) as caught:
            data.prepare()
        assert "tetrominoes.h5" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not data.plan("train").path.exists()


def test_hdf5_needs_its_folder_and_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"raw: not given, expected the folder of tetrominoes\.h5"):
        EmorlHDF5(root=str(tmp_path), variant="tetrominoes").prepare()
    with pytest.raises(DataError, match=r"found none of tetrominoes\.h5"):
        EmorlHDF5(root=str(tmp_path), variant="tetrominoes", raw=str(tmp_path)).prepare()
    write_h5(tmp_path / "tetrominoes.h5", {"train": tetromino_scenes(2)})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"h5py: not installed, .*pip install lightning-genesis\[hdf5\]"):
        EmorlHDF5(root=str(tmp_path), variant="tetrominoes", raw=str(tmp_path)).prepare()


@pytest.mark.parametrize(
    ("kind", "setting", "part"),
    [
        (MultiDSpritesTFRecords, {"variant": "free"}, "variant: 'free', expected colored_on_grayscale"),
        (EmorlHDF5, {"variant": "sprites"}, "variant: 'sprites', expected clevr6"),
        (EmorlHDF5, {"interpolation": "cubic"}, "interpolation: 'cubic'"),
        (Tetrominoes, {"subset": 1}, "subset: 1"),
    ],
)
def test_settings_out_of_range(kind: Any, setting: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError, match=part):
        kind(**setting)
