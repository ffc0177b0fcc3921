"""APC from its tree or zip file to batches."""

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_modules import APC, DataError
from data_modules.base import SPLITS
from data_modules.store import Store
from data_modules.synthesis import apc as synthesis
from tests.data_modules.damage import assert_refused, damaged


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def picture(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A plain picture with a square of another colour, and where it is."""
    mask = np.zeros((480, 640), np.uint8)
    top, left = 20 * (number % 15), 100 + 20 * (number % 17)
    mask[top : top + 90, left : left + 110] = 255
    image = np.where(mask[..., None] > 0, np.array([250, number % 256, 10]), np.array([number % 256, 90, 60]))
    return image.astype(np.uint8), mask


def add_scene(folder: Path, scene: str, numbers: list[int]) -> None:
    place = folder / "training" / scene
    empty = scene.endswith("scene-empty")
    (place if empty else place / "masks").mkdir(parents=True)
    for frame, number in enumerate(numbers):
        image, mask = picture(number)
        (place / f"frame-{frame:06d}.color.png").write_bytes(png(image))
        (place / f"frame-{frame:06d}.depth.png").write_bytes(b"depth")
        if not empty:
            (place / f"masks/frame-{frame:06d}.mask.png").write_bytes(png(mask))
    (place / "cam.info.txt").write_text("camera")


SCENES = [
    f"{place}/{name}/scene-{number}"
    for place in ("shelf", "tote")
    for name in ("book", "a_cup")
    for number in ("0000", "0001", "0002", "0003", "empty")
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty scenes of two frames; frame f of scene s shows picture 10 s + f."""
    folder = tmp_path_factory.mktemp("raw")
    for s, scene in enumerate(SCENES):
        add_scene(folder, scene, [10 * s, 10 * s + 1])
    return folder


@pytest.fixture
def little(tmp_path: Path) -> Path:
    """Three scenes of one frame."""
    for scene in ("shelf/book/scene-0000", "shelf/book/scene-0001", "tote/book/scene-0000"):
        add_scene(tmp_path / "raw", scene, [3])
    return tmp_path / "raw"


def arrays(data: APC, split: Any) -> dict[str, Any]:
    store = Store.open(data.plan(split).path)
    return store.read(list(range(len(store))))


def originals_split(scenes: list[str]) -> dict[str, list[str]]:
    """The rule as it is written down, with Python's own global generator."""
    paths = sorted(f"processed/{scene}" for scene in scenes)
    state = random.getstate()
    random.seed(0)
    random.shuffle(paths)
    random.setstate(state)
    n = len(paths) // 10
    parts = {"val": paths[:n], "test": paths[n : 2 * n], "train": paths[2 * n :]}
    return {split: sorted(path.removeprefix("processed/") for path in part) for split, part in parts.items()}


def test_splits_are_by_scene(raw: Path, tmp_path: Path) -> None:
    """At the height of the pictures nothing is resized: exactly the centre of what is in the files."""
    data = APC(root=str(tmp_path), raw=str(raw), image_size=480)
    before = random.getstate()
    data.prepare()
    assert random.getstate() == before, "the global generator is left alone"
    parts = originals_split(SCENES)
    assert [len(parts[split]) for split in SPLITS] == [16, 2, 2]
    for split in SPLITS:
        found = arrays(data, split)
        expected = [(scene, frame) for scene in parts[split] for frame in (0, 1)]
        assert len(found["images"]) == len(expected)
        for i, (scene, frame) in enumerate(expected):
            image, mask = picture(10 * SCENES.index(scene) + frame)
            np.testing.assert_array_equal(found["images"][i], image[:, 80:560])
            truth = np.zeros_like(mask) if scene.endswith("empty") else mask // 255
            np.testing.assert_array_equal(found["segmentations"][i], truth[:, 80:560])


def test_papers_size(raw: Path, tmp_path: Path) -> None:
    """Resized to 170 x 128 and columns 21 to 148 kept: images by Pillow, masks by the pixel at the centre."""
    data = APC(root=str(tmp_path), raw=str(raw), batch_size=4)
    assert (data.image_size, data.num_slots, data.num_background) == (128, 10, 1)
    data.prepare()
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    rows = np.floor((np.arange(128) + 0.5) * 480 / 128).astype(int)
    columns = np.floor((np.arange(170) + 0.5) * 640 / 170).astype(int)[21:149]
    scenes = originals_split(SCENES)["test"]
    for i, (scene, frame) in enumerate((scene, frame) for scene in scenes for frame in (0, 1)):
        image, mask = picture(10 * SCENES.index(scene) + frame)
        expected = np.asarray(Image.fromarray(image).resize((170, 128), Image.Resampling.BILINEAR))[:, 21:149]
        np.testing.assert_array_equal(batch["image"][i].permute(1, 2, 0), expected)
        truth = np.zeros_like(mask) if scene.endswith("empty") else mask
        np.testing.assert_array_equal(batch["segmentation"][i], truth[rows[:, None], columns] == 255)


def test_drawn_scenes_round_trip(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    synthesis.write(tmp_path / "raw", {"train": 4, "val": 1, "test": 1}, seed=1, views=1)
    data = APC(root=str(tmp_path), raw=str(tmp_path / "raw"), image_size=480)
    data.prepare()
    empty = 0
    for split in SPLITS:
        found = arrays(data, split)
        for i, scene in enumerate(sorted(data.scenes(tmp_path / "raw")[split])):
            truth = synthesis.draw(1, scene, 0)
            np.testing.assert_array_equal(found["images"][i], truth.image[:, 80:560])
            np.testing.assert_array_equal(found["segmentations"][i], truth.entities[:, 80:560])
            empty += not found["segmentations"][i].any()
    assert empty == 2, "one empty scene on the shelf and one in the tote"


def zip_tree(folder: Path, path: Path, **also: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
        for name, content in also.items():
            archive.writestr(name, content)


def test_zip_file(raw: Path, tmp_path: Path) -> None:
    zip_tree(raw, tmp_path / "zip/training.zip")
    one = APC(root=str(tmp_path / "0"), raw=str(raw))
    other = APC(root=str(tmp_path / "1"), raw=str(tmp_path / "zip"))
    one.prepare()
    other.prepare()
    for split in SPLITS:
        for name, array in arrays(one, split).items():
            np.testing.assert_array_equal(array, arrays(other, split)[name])
    assert [path.name for path in (tmp_path / "zip").iterdir()] == ["training.zip"]


def test_published_split() -> None:
    scenes = [f"shelf/{chr(97 + i // 100)}/scene-{i % 100:04d}" for i in range(1234)]
    data, few = APC(), APC(subset=100)
    for each in (data, few):
        each._known = (Path(), None, dict.fromkeys(scenes))  # type: ignore[assignment]
    parts, some = data.scenes(Path()), few.scenes(Path())
    assert {split: sorted(part) for split, part in parts.items()} == originals_split(scenes)
    assert [len(some[split]) for split in SPLITS] == [80, 10, 10]
    assert all(some[split] == parts[split][: len(some[split])] for split in SPLITS)
    assert sum(APC.published.values()) == 136_575
    settings: list[dict[str, Any]] = [{}, {"subset": 9}, {"image_size": 64}, {"synthetic": 9}]
    assert len({APC(**each).plan("val").path for each in settings}) == 4


def test_unreadable_pictures_are_left_out_and_named(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zip_tree(raw, tmp_path / "zip/training.zip")
    content = bytearray((tmp_path / "zip/training.zip").read_bytes())
    scene = originals_split(SCENES)["train"][3]
    where = content.index(b"IDAT", content.index(f"training/{scene}/frame-000001.color.png".encode()))
    content[where + 40] ^= 1
    (tmp_path / "zip/training.zip").write_bytes(content)
    data = APC(root=str(tmp_path), raw=str(tmp_path / "zip"))
    message = assert_refused(data, f"training.zip: training/{scene}/frame-000001.color.png")
    assert "1 of 32 images of train cannot be read" in message
    # among many it is left out
    monkeypatch.setattr(APC, "may_skip", 0.05)
    with pytest.warns(UserWarning, match=f"left out: .*{scene}/frame-000001.color.png: damaged"):
        data.prepare()
    assert len(arrays(data, "train")["images"]) == 31


# --- damage ----------------------------------------------------------------------------------------------


def test_damaged_pictures_and_masks(little: Path, tmp_path: Path) -> None:
    data = APC(root=str(tmp_path / "data"), raw=str(little))
    scene = little / "training" / data.scenes(little)["train"][0]
    for path in (scene / "frame-000000.color.png", scene / "masks/frame-000000.mask.png"):
        whole = path.read_bytes()
        for case, content in damaged(whole, cuts=5, flips=8):
            path.write_bytes(content)
            assert_refused(data, f"{path}", case)
        path.write_bytes(png(np.zeros((64, 64), np.uint8)))
        assert_refused(data, f"{path}: a picture of 64 x 64, expected 640 x 480")
        path.write_bytes(bytes(17_000_000))
        assert_refused(data, f"{path}: more than 16,000,000 bytes")
        path.write_bytes(whole)
    path.write_bytes(png(np.zeros((480, 640), np.uint16)))
    assert_refused(data, f"{path}: a mask of mode I;16")
    path.unlink()
    assert "has no mask, expected masks/frame-000000.mask.png" in assert_refused(
        data, f"{scene}/frame-000000"
    )


def test_only_full_masks_count(little: Path, tmp_path: Path) -> None:
    data = APC(root=str(tmp_path / "data"), raw=str(little))
    scene = little / "training" / data.scenes(little)["train"][0]
    mask = np.zeros((480, 640), np.uint8)
    mask[:, :320], mask[:, 320:] = 255, 254
    (scene / "masks/frame-000000.mask.png").write_bytes(png(mask))
    data.prepare()
    found = arrays(data, "train")["segmentations"][0]
    assert found[:, :64].all()
    assert not found[:, 64:].any()


def test_damaged_zip_files(little: Path, tmp_path: Path) -> None:
    path = tmp_path / "zip/training.zip"
    zip_tree(little, path)
    data = APC(root=str(tmp_path / "data"), raw=str(path.parent))
    whole = path.read_bytes()
    for case, content in damaged(whole, cuts=10, flips=0):
        path.write_bytes(content)
        assert_refused(data, str(path), case)
    for evil in ("/etc/passwd", "../../evil.png", "training/shelf/../../../x/frame-000000.color.png"):
        zip_tree(little, path, **{evil: b"1"})
        assert "leads elsewhere" in assert_refused(data, str(path), evil)
    path.write_bytes(whole)
    data.prepare()


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "raw/training/shelf/book").mkdir(parents=True)
    data = APC(root=str(tmp_path / "data"), raw=str(tmp_path / "raw"))
    assert_refused(data, f"{tmp_path}/raw: 0 scenes, expected training.zip or training/shelf/<object>")
    with pytest.raises(DataError, match=r"expected one with training\.zip"):
        APC(root=str(tmp_path), raw=f"{tmp_path}/nowhere").prepare()
    for scene in ("shelf/a/scene-0000", "shelf/b/scene-0000", "tote/a/scene-0000"):
        add_scene(tmp_path / "raw", scene, [1])
    add_scene(tmp_path / "raw/training/copy", "shelf/a/scene-0000", [1])
    assert_refused(APC(root=str(tmp_path / "data"), raw=str(tmp_path / "raw")), "expected once")
    for wrong in ({"subset": 2}, {"subset": 5, "synthetic": 5}):
        with pytest.raises(DataError, match=r"^subset: "):
            APC(**wrong)  # type: ignore[arg-type]
