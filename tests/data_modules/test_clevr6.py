"""CLEVR6 from raw bytes to batches, in both protocols."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules import Clevr6, DataError
from data_modules.store import Store
from data_modules.synthesis import clevr as synthesis
from tests.data_modules.multi_object_files import CODES, clevr_record, ids_of, write_records

FILE = "clevr_with_masks_train.tfrecords"
OBJECTS = [3, 7, 6, 10, 4, 9, 5, 8, 6, 7, 3, 6, 10, 5, 8, 4]
RECORDS = [clevr_record(i, count) for i, count in enumerate(OBJECTS)]
FEW = [i for i, count in enumerate(OBJECTS) if count <= 6]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_records(folder / FILE, RECORDS)
    return folder


def arrays(data: Clevr6, split: str) -> dict[str, Any]:
    store = Store.open(data.plan(split).path)  # type: ignore[arg-type]
    return store.read(list(range(len(store))))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_emorl_protocol(raw: Path, tmp_path: Path, interpolation: Any) -> None:
    data = Clevr6(root=str(tmp_path), raw=str(raw), interpolation=interpolation)
    assert (data.image_size, data.num_slots, data.num_background) == (96, 7, 1)
    data.prepare()
    # 9 scenes of at most 6 objects: train 43,483 : 5,000 : 5,000
    position = 0
    for split, size in (("train", 7), ("val", 1), ("test", 1)):
        found = arrays(data, split)
        assert len(found["images"]) == size
        for i in range(size):
            record = RECORDS[FEW[position + i]]
            crop = Image.fromarray(record["image"]).crop((64, 29, 256, 221))
            resized = crop.resize((96, 96), getattr(Image.Resampling, interpolation.upper()))
            np.testing.assert_array_equal(found["images"][i], np.asarray(resized))
            np.testing.assert_array_equal(
                found["segmentations"][i], ids_of(record)[29:221, 64:256][1::2, 1::2]
            )
            for name in (*CODES, "x", "y", "z", "rotation", "pixel_coords"):
                np.testing.assert_array_equal(found[f"objects.{name}"][i], record[name][1:7])
            assert found["objects.present"][i].tolist() == [k < OBJECTS[FEW[position + i]] for k in range(6)]
        position += size
    settings = Store.open(data.plan("val").path).manifest["settings"]
    assert settings["interpolation"] == interpolation
    assert settings["differs_from_paper"] == ([] if interpolation == "bicubic" else ["bilinear"])


def test_masks_at_the_size_of_the_crop(raw: Path, tmp_path: Path) -> None:
    data = Clevr6(root=str(tmp_path), raw=str(raw), full_masks=True, batch_size=2)
    data.prepare()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 96, 96)
    assert batch["segmentation"].shape == (2, 192, 192)
    assert batch["objects"]["present"].dtype == torch.bool
    assert batch["objects"]["pixel_coords"].shape == (2, 6, 3)
    found = arrays(data, "test")["segmentations"][0]
    np.testing.assert_array_equal(found, ids_of(RECORDS[FEW[8]])[29:221, 64:256])


def test_genesis_protocol(raw: Path, tmp_path: Path) -> None:
    data = Clevr6(root=str(tmp_path), raw=str(raw), protocol="genesis")
    assert (data.image_size, data.num_slots) == (128, 11)
    data.prepare()
    # all 16 scenes, test first: 10,000 : 10,000 : 80,000
    position = 0
    for split, size in (("test", 2), ("val", 2), ("train", 12)):
        found = arrays(data, split)
        assert len(found["images"]) == size
        for i in range(size):
            record = RECORDS[position + i]
            crop = torch.from_numpy(record["image"][24:216, 64:256]).permute(2, 0, 1)[None].float()
            nearest = torch.nn.functional.interpolate(crop, size=128, mode="nearest")[0].byte()
            np.testing.assert_array_equal(found["images"][i], nearest.permute(1, 2, 0).numpy())
            ids = torch.from_numpy(ids_of(record)[24:216, 64:256])[None, None].float()
            nearest = torch.nn.functional.interpolate(ids, size=128, mode="nearest")[0, 0].byte()
            np.testing.assert_array_equal(found["segmentations"][i], nearest.numpy())
            assert found["objects.present"][i].sum() == OBJECTS[position + i]
        position += size
    assert data.plan("train").path == tmp_path / "clevr6-genesis" / "train"


def test_fewer_objects(raw: Path, tmp_path: Path) -> None:
    data = Clevr6(root=str(tmp_path), raw=str(raw), max_objects=4)
    data.prepare()
    present = np.concatenate([arrays(data, split)["objects.present"] for split in ("train", "val", "test")])
    assert present.sum(1).tolist() == [count for count in OBJECTS if count <= 4]
    assert present.shape[1] == 4


def test_drawn_scenes_round_trip(tmp_path: Path) -> None:
    truth = [synthesis.draw(0, i) for i in range(16)]
    write_records(tmp_path / "raw" / FILE, truth)
    few = [record for record in truth if record["visibility"].sum() <= 7]
    data = Clevr6(root=str(tmp_path), raw=str(tmp_path / "raw"), full_masks=True, image_size=192)
    data.prepare()
    found = [arrays(data, split) for split in ("train", "val", "test")]
    images = np.concatenate([part["images"] for part in found])
    segmentations = np.concatenate([part["segmentations"] for part in found])
    assert len(images) == len(few) >= 3
    for i, record in enumerate(few):
        # at the crop's size nothing is resized: exact
        np.testing.assert_array_equal(images[i], record["image"][29:221, 64:256])
        np.testing.assert_array_equal(segmentations[i], ids_of(record)[29:221, 64:256])


@pytest.mark.slow  # `tests/test_experiments.py` prepares both protocols
def test_synthetic_scenes_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The synthetic file is long enough for the scenes that are kept."""

    def write(folder: Path, sizes: Any, seed: int) -> None:
        counts = np.random.default_rng(seed).choice(
            np.arange(3, 11), sum(sizes.values()), p=[0.13375] * 4 + [0.11625] * 4
        )
        write_records(folder / FILE, [clevr_record(i, int(count)) for i, count in enumerate(counts)])

    monkeypatch.setattr(synthesis, "write", write)
    for settings in ({}, {"protocol": "genesis"}):
        data = Clevr6(root=str(tmp_path), synthetic=9, **settings)  # type: ignore[arg-type]
        data.prepare()
        assert [len(arrays(data, split)["images"]) for split in ("train", "val", "test")] == [9, 8, 8]
    assert len(list((tmp_path / "raw").iterdir())) == 1, "both protocols read the same file"


def test_another_file_is_recognised_by_the_scenes_kept(tmp_path: Path) -> None:
    small = {"visibility": np.ones(11, np.float32)}
    write_records(tmp_path / FILE, [small] * 1000 + [{"visibility": np.zeros(11, np.float32)}] * 10)
    with pytest.raises(DataError, match=r"1.0% of 1,010 records have at most 6 objects, expected 53.5%"):
        Clevr6(raw=str(tmp_path), root=str(tmp_path / "data")).prepare()


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"protocol": "iodine"}, "protocol: 'iodine', expected emorl or genesis"),
        ({"interpolation": "cubic"}, "interpolation: 'cubic'"),
        ({"max_objects": 2}, "max_objects: 2, expected 3 to 10"),
        ({"protocol": "genesis", "full_masks": True}, "protocol: genesis resizes by nearest"),
    ],
)
def test_settings_out_of_range(setting: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError, match=part):
        Clevr6(**setting)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {k: v for k, v in r.items() if k != "visibility"}, "no feature 'visibility'"),
        (lambda r: r | {"visibility": r["visibility"][:7]}, "visibility: 7 values, expected 11"),
        (lambda r: r | {"color": r["color"].astype(np.int64)}, "color: found integers, expected floats"),
        (lambda r: r | {"size": r["size"][:4]}, "size: 4 strings"),
        (lambda r: r | {"image": r["image"][:64, :64]}, "image: 12,288 strings"),
        (lambda r: r | {"mask": r["mask"] | 1}, "other values than 0 and 255"),
    ],
)
def test_records_of_another_schema_are_named(tmp_path: Path, change: Any, message: str) -> None:
    write_records(tmp_path / FILE, [RECORDS[0], RECORDS[2], change(RECORDS[4]), RECORDS[6]])
    data = Clevr6(root=str(tmp_path / "data"), raw=str(tmp_path))
    with pytest.raises(DataError, match=message) as caught:
        data.prepare()
    assert str(caught.value).startswith(f"{tmp_path / FILE}: record 2: ")
    assert not (tmp_path / "data" / "clevr6" / "test").exists()
