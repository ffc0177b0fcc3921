"""A folder of images: order, geometry, masks, splits, and a line for whatever is wrong."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning import Trainer

from data_modules import DataError, ImageFolder
from data_modules.folder import split_names
from tests.data_modules.test_sampler import Recorder, flat


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures 24 x 16: red is the column, green the row, blue the number; masks of two halves."""
    for number in range(20):
        path = tmp_path / "images" / ("sub" if number % 2 else ".") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((16, 24, 3), np.uint8)
        pixels[..., 0] = np.arange(24) * 10
        pixels[..., 1] = np.arange(16)[:, None] * 10
        pixels[..., 2] = number
        Image.fromarray(pixels).save(path)
        mask = tmp_path / "masks" / path.relative_to(tmp_path / "images")
        mask.parent.mkdir(parents=True, exist_ok=True)
        ids = np.zeros((16, 24), np.uint8)
        ids[4:, :12], ids[4:, 12:] = 1, 2
        image = Image.fromarray(ids)
        if number % 3 == 0:
            image = image.convert("P")
            image.putdata(ids.ravel().tolist())
            image.putpalette([255, 0, 0, 0, 255, 0, 7, 7, 7])
        image.save(mask)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    (tmp_path / "images" / ".hidden.png").write_text("not an image")
    return tmp_path


def images(folder: Path, **settings: Any) -> ImageFolder:
    defaults = {"folder": str(folder / "images"), "image_size": 16, "num_slots": 3, "num_workers": 0}
    return ImageFolder(**(defaults | settings))


def test_predict_goes_over_all_images_in_order(folder: Path) -> None:
    data = images(folder, batch_size=8)
    data.prepare()
    data.setup("predict")
    batches = list(data.predict_dataloader())
    names = [name for batch in batches for name in batch["name"]]
    assert names == sorted(names)
    assert len(names) == 20
    assert names[0] == "00.png"
    assert names[-1] == "sub/19.png"
    assert flat(batch["index"].tolist() for batch in batches) == list(range(20))
    assert [len(batch["image"]) for batch in batches] == [8, 8, 4]
    assert "segmentation" not in batches[0]
    # the shorter side fits already: the centre square is cut out as it is
    image = batches[0]["image"][1].numpy()
    assert image.shape == (3, 16, 16)
    np.testing.assert_array_equal(image[0], np.broadcast_to(np.arange(4, 20) * 10, (16, 16)))
    np.testing.assert_array_equal(image[1], np.broadcast_to(np.arange(16)[:, None] * 10, (16, 16)))
    assert (image[2] == 2).all()


def test_masks_keep_their_ids(folder: Path) -> None:
    data = images(folder, masks=str(folder / "masks"))
    data.prepare()
    batch = next(iter(data.predict_dataloader()))
    expected = np.zeros((16, 16), np.uint8)
    expected[4:, :8], expected[4:, 8:] = 1, 2
    for segmentation in batch["segmentation"].numpy():
        np.testing.assert_array_equal(segmentation, expected)
    small = next(iter(images(folder, masks=str(folder / "masks"), image_size=8).predict_dataloader()))
    assert small["image"].shape[2:] == small["segmentation"].shape[1:] == (8, 8)
    np.testing.assert_array_equal(small["segmentation"][0].numpy(), expected[::2, ::2])


def test_portraits_are_cut_at_the_centre_and_turned_upright(folder: Path) -> None:
    pixels = np.zeros((30, 10, 3), np.uint8)
    pixels[10:20] = 200
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels).copy()).save(folder / "images" / "b.png", exif=exif)
    batch = next(iter(images(folder, image_size=10).predict_dataloader()))
    assert (batch["image"] == 200).all()


def test_splits_are_disjoint_and_depend_on_names_only(folder: Path) -> None:
    data = images(folder, val_fraction=0.2, test_fraction=0.1, batch_size=2)
    sets = [set(data.open_dataset(split).names) for split in ("train", "val", "test")]
    assert [len(names) for names in sets] == [14, 4, 2]
    assert len(set.union(*sets)) == 20
    (folder / "elsewhere").mkdir()
    shutil.move(folder / "images", folder / "elsewhere" / "images")
    moved = images(folder / "elsewhere", val_fraction=0.2, test_fraction=0.1)
    assert [set(moved.open_dataset(split).names) for split in ("train", "val", "test")] == sets
    assert split_names(["a", "b", "c"], 0.01, 0.0)["test"] == []
    assert len(split_names(["a", "b", "c"], 0.01, 0.0)["val"]) == 1
    with pytest.raises(DataError, match="take 2 of 2 images"):
        split_names(["a", "b"], 0.1, 0.1)


def test_a_split_without_images_has_none_to_show(folder: Path) -> None:
    """`figures` looks at test images."""
    data = images(folder, test_fraction=0.0)
    assert len(data.examples("val", 1)["image"]) == 1
    with pytest.raises(DataError, match="there are no test images to look at"):
        data.examples("test", 8)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_fit_and_predict_with_the_trainer(folder: Path, num_workers: int) -> None:
    class Reader(Recorder):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
            self.seen.append(batch["index"].tolist())
            assert len(batch["name"]) == len(batch["image"]) == 4
            return self.weight * 1.0

    data, model = images(folder, batch_size=4, num_workers=num_workers), Reader()
    trainer = Trainer(
        max_steps=6, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.fit(model, data)
    assert len(model.seen) == 6
    assert sorted(set(model.scored)) == [0, 1]
    predicted = trainer.predict(model, data)
    assert predicted is not None
    assert flat(part.tolist() for part in predicted) == list(range(20))  # type: ignore[union-attr]


def broken(folder: Path, case: str) -> None:
    image, mask = folder / "images" / "sub" / "01.png", folder / "masks" / "sub" / "01.png"
    if case == "no folder":
        shutil.rmtree(folder / "images")
    elif case == "empty":
        shutil.rmtree(folder / "images")
        (folder / "images").mkdir()
    elif case == "unreadable":
        image.write_text("<html>404</html>")
    elif case == "no mask":
        mask.unlink()
    elif case == "unreadable mask":
        mask.write_bytes(b"")
    elif case == "other size":
        Image.new("L", (24, 24)).save(mask)
    elif case == "colours":
        Image.new("RGB", (24, 16)).save(mask)


@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("no folder", "images: no such folder"),
        ("empty", "images: found no image, expected"),
        ("unreadable", "images/sub/01.png: not readable"),
        ("no mask", "masks/sub/01.png: missing"),
        ("unreadable mask", "masks/sub/01.png: not readable"),
        ("other size", "masks/sub/01.png: 24x24 pixels, expected 24x16 as "),
        ("colours", "masks/sub/01.png: mode RGB, expected a palette or grey image"),
    ],
)
def test_what_is_wrong_is_said_before_training(folder: Path, case: str, part: str) -> None:
    broken(folder, case)
    with pytest.raises(DataError) as caught:
        images(folder, masks=str(folder / "masks")).prepare_data()
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("case", "part", "num_workers"),
    [
        ("truncated", "images/sub/01.png: not readable", 0),
        ("binary", "masks/sub/01.png: the only id besides 0 is 255", 0),
        # once: torch takes five seconds to end the process of a failed loader
        ("binary", "masks/sub/01.png: the only id besides 0 is 255", 1),
    ],
)
def test_what_only_decoding_shows(folder: Path, case: str, part: str, num_workers: int) -> None:
    image, mask = folder / "images" / "sub" / "01.png", folder / "masks" / "sub" / "01.png"
    if case == "truncated":
        noise = np.random.default_rng(0).integers(256, size=(16, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(image)
        image.write_bytes(image.read_bytes()[:300])
    else:
        Image.fromarray(np.eye(16, 24, dtype=np.uint8) * np.uint8(255)).save(mask)
    data = images(folder, masks=str(folder / "masks"), num_workers=num_workers)
    data.prepare_data()
    with pytest.raises(DataError) as caught:
        list(data.predict_dataloader())
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
