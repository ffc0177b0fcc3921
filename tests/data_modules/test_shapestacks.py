"""ShapeStacks from the publisher's layout to batches."""

import hashlib
import io
import json
import shutil
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules import DataError, ShapeStacks
from data_modules.base import SPLITS
from data_modules.shapestacks import read_map, read_name
from data_modules.store import Store
from data_modules.synthesis import shapestacks as synthesis
from tests.data_modules.damage import CASES, assert_refused, damaged

SIZES = {"train": 2, "val": 1, "test": 1}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    synthesis.write(folder, SIZES, seed=3)
    return folder


@pytest.fixture
def copy(raw: Path, tmp_path: Path) -> Path:
    return shutil.copytree(raw, tmp_path / "copy")


def arrays(data: ShapeStacks, split: Any) -> dict[str, Any]:
    store = Store.open(data.plan(split).path)
    return store.read(list(range(len(store))))


def first_scenario(folder: Path) -> Path:
    return folder / "recordings" / (folder / "splits/default/train.txt").read_text().split("\n")[0]


def bilinear(values: np.ndarray, size: int) -> np.ndarray:
    """Pillow's filter with antialiasing along the first axis: a triangle as wide as a step."""
    step = len(values) / size
    centres = (np.arange(size) + 0.5) * step
    distances = np.abs(np.arange(len(values)) + 0.5 - centres[:, None]) / step
    weights = np.maximum(0, 1 - distances)
    return np.tensordot(weights / weights.sum(1, keepdims=True), values, 1)


def test_round_trip(raw: Path, tmp_path: Path) -> None:
    """At the size of the crop nothing is resized: exactly what was drawn. At 64, the papers' filters."""
    whole = ShapeStacks(root=str(tmp_path), raw=str(raw), image_size=196)
    small = ShapeStacks(root=str(tmp_path), raw=str(raw))
    whole.prepare()
    small.prepare()
    index = 0
    for split in SPLITS:
        found, resized = arrays(whole, split), arrays(small, split)
        assert len(found["images"]) == len(resized["images"]) == 16 * SIZES[split]
        for scenario in range(SIZES[split]):
            tower = synthesis.tower(3, index)
            for view in range(16):
                truth, i = synthesis.draw(3, index, view + 1), 16 * scenario + view
                image, ids = truth.image[14:210, 14:210], truth.entities[14:210, 14:210]
                np.testing.assert_array_equal(found["images"][i], image)
                np.testing.assert_array_equal(found["segmentations"][i], ids)
                rows = bilinear(image.astype(float), 64)
                expected = bilinear(rows.transpose(1, 0, 2), 64).transpose(1, 0, 2)
                assert np.abs(resized["images"][i] - expected).max() < 1.6
                nearest = torch.nn.functional.interpolate(torch.tensor(ids)[None, None].float(), (64, 64))
                np.testing.assert_array_equal(resized["segmentations"][i], nearest[0, 0].numpy())
                assert found["labels.view"][i] == view + 1
                assert found["labels.height"][i] == len(tower.blocks)
                assert found["labels.stability"][i] == (0 if tower.stable else 1)
            index += 1
    assert found["segmentations"].max() >= 2
    note = json.loads((small.plan("val").path / "manifest.json").read_text())["source"]["note"]
    assert "32 / 16 / 16 images for training, validation and test of 311,200" in note


def test_batch(raw: Path, tmp_path: Path) -> None:
    data = ShapeStacks(root=str(tmp_path), raw=str(raw), batch_size=8)
    assert (data.image_size, data.num_slots, data.num_background) == (64, 9, 1)
    assert not list(tmp_path.iterdir())
    data.prepare()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    stored = Store.open(data.plan("train").path).read(batch["index"].tolist())
    np.testing.assert_array_equal(batch["image"].permute(0, 2, 3, 1), stored["images"])
    np.testing.assert_array_equal(batch["segmentation"], stored["segmentations"])
    assert {k: (v.dtype, v.shape) for k, v in batch["labels"].items()} == dict.fromkeys(
        ("stability", "height", "view"), (torch.int64, (8,))
    )


def test_examples_are_of_different_towers(raw: Path, tmp_path: Path) -> None:
    """Not the first images, which are the 16 views of one tower."""
    data = ShapeStacks(root=str(tmp_path), raw=str(raw))
    data.prepare()
    assert data.examples("train", 4)["index"].tolist() == [0, 8, 16, 24]
    assert data.examples("val", 100)["index"].tolist() == list(range(16))


def test_maps_in_a_tree_of_their_own(copy: Path, raw: Path, tmp_path: Path) -> None:
    for path in list((copy / "recordings").glob("*/*.map")):
        target = copy / "iseg" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    datas = [
        ShapeStacks(root=str(tmp_path / f"{i}"), raw=str(folder)) for i, folder in enumerate((raw, copy))
    ]
    for data in datas:
        data.prepare()
    one, other = (arrays(data, "train") for data in datas)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def pack(raw: Path, folder: Path, prefix: str = "shapestacks/") -> None:
    """The publisher's three archives and their checksums."""
    folder.mkdir()
    parts = {
        "meta": ("splits/*/*.txt", "meta/*.txt"),
        "rgb": ("recordings/*/*.png",),
        "iseg": ("recordings/*/*.map",),
    }
    for kind, patterns in parts.items():
        path = folder / f"shapestacks-{kind}.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            for file in sorted(file for pattern in patterns for file in raw.glob(pattern)):
                archive.add(file, f"{prefix}{file.relative_to(raw)}")
            mean = tarfile.TarInfo(f"{prefix}splits/default/train_bgr_mean.npy")
            mean.size = 5
            archive.addfile(mean, io.BytesIO(b"12345"))
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        (folder / f"shapestacks-{kind}.md5").write_text(f"{digest}  {path.name}\n")


def test_archives(raw: Path, tmp_path: Path) -> None:
    pack(raw, tmp_path / "packed")
    plain = ShapeStacks(root=str(tmp_path / "0"), raw=str(raw))
    data = ShapeStacks(root=str(tmp_path / "1"), raw=str(tmp_path / "packed"))
    plain.prepare()
    data.prepare()
    for split in SPLITS:
        one, other = arrays(plain, split), arrays(data, split)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    files = json.loads((data.plan("val").path / "manifest.json").read_text())["source"]["files"]
    assert len(files) == 6
    assert not list((tmp_path / "1/raw").rglob("*mean*")), "only what is needed is unpacked"
    # another archive of the same name is not taken for the one that was unpacked
    shutil.rmtree(data.plan("train").path)
    (tmp_path / "packed/shapestacks-rgb.tar.gz").write_bytes(b"\x1f\x8b12345")
    (tmp_path / "packed/shapestacks-rgb.md5").unlink()
    assert_refused(data, "shapestacks-rgb.tar.gz")


def test_damaged_archives(raw: Path, tmp_path: Path) -> None:
    pack(raw, tmp_path / "packed")
    path = tmp_path / "packed/shapestacks-meta.tar.gz"
    data = ShapeStacks(root=str(tmp_path / "data"), raw=str(path.parent))
    for case, content in damaged(path.read_bytes(), cuts=3, flips=5):
        path.write_bytes(content)
        assert f"MD5 {hashlib.md5(content).hexdigest()}, expected" in assert_refused(data, path.name, case)
    sums = path.with_name("shapestacks-meta.md5")
    sums.write_text("nothing of the kind")
    assert "found b'nothing of the kind', expected an MD5" in assert_refused(data, sums.name)
    sums.unlink()
    path.unlink()
    assert "missing, expected the archive" in assert_refused(data, path.name)


def test_subset_and_blacklist(copy: Path, tmp_path: Path) -> None:
    lists = copy / "splits/default"
    names = (lists / "train.txt").read_text().split()
    # without a newline at the end, which the original reader needs
    (lists / "train.txt").write_text("\n".join(names))
    (copy / "meta/blacklist_stable.txt").write_text(f"{names[0]}\n")
    data = ShapeStacks(root=str(tmp_path), raw=str(copy))
    assert [s.name for s in data.scenarios(copy)["train"]] == names
    without = ShapeStacks(root=str(tmp_path), raw=str(copy), blacklist=True)
    assert [s.name for s in without.scenarios(copy)["train"]] == names[1:]
    few = ShapeStacks(root=str(tmp_path), raw=str(copy), subset=3)
    assert [s.name for s in few.scenarios(copy)["train"]] == names[:1]
    sets: list[dict[str, Any]] = [
        {},
        {"blacklist": True},
        {"subset": 3},
        {"split_set": "ccs_all"},
        {"image_size": 32},
        {"synthetic": 4},
    ]
    assert len({ShapeStacks(**settings).plan("val").path for settings in sets}) == len(sets)
    for wrong in ({"subset": 2}, {"split_set": "all"}, {"synthetic": 3, "subset": 5}, {"synthetic": 0}):
        with pytest.raises(DataError, match=f"^{next(iter(wrong)) if len(wrong) == 1 else 'subset'}: "):
            ShapeStacks(**wrong)  # type: ignore[arg-type]


def test_names() -> None:
    scenario = read_name("env_ccs-hard-h=6-vcom=0-vpsf=0-v=120", "x")
    assert (scenario.height, scenario.stable) == (6, True)
    assert not read_name("env_blocks-easy-h=2-vcom=1-vpsf=0-v=0", "x").stable
    assert not read_name("env_ccs-easy-h=3-vcom=0-vpsf=2-v=0", "x").stable
    for wrong in ("", "env_ccs-hard-h=7-vcom=0-vpsf=0-v=1", "../env_ccs-hard-h=6-vcom=0-vpsf=0-v=1", "a/b"):
        with pytest.raises(DataError, match=r"x: .*, expected a name such as"):
            read_name(wrong, "x")


def test_synthetic_sizes_count_views() -> None:
    assert [ShapeStacks(synthetic=100).plan(split).count for split in SPLITS] == [1600, 160, 160]


# --- damage ----------------------------------------------------------------------------------------------


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, "PNG")


def grey(value: int, mode: str = "RGBA", size: int = 224) -> np.ndarray:
    rows = {"RGBA": (value, value, value, 255), "RGB": (value,) * 3, "L": value}[mode]
    return (
        np.full((size, size, 4)[: 3 if mode != "L" else 2], rows, np.uint8)
        if mode == "RGBA"
        else np.full((size, size) if mode == "L" else (size, size, 3), value, np.uint8)
    )


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "L"])
def test_maps_in_any_grey(tmp_path: Path, mode: str) -> None:
    for value, label in ((0, 0), (32, 1), (192, 6), (161, 5), (95, 3)):
        save(tmp_path / "a.map", grey(value, mode))
        assert (read_map(tmp_path / "a.map") == label).all()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (grey(224), "value 224, expected multiples of 32 up to 192"),
        (grey(255), "value 255"),
        (grey(16), "value 16"),
        (grey(1) * np.uint8(5), "value 5"),
        (np.stack([grey(32, "L"), grey(0, "L"), grey(0, "L")], -1), "has colours"),
        (grey(32, "RGBA", 64), "a picture of 64 x 64, expected 224 x 224"),
        (np.full((224, 224), 1000, np.uint16), "of mode I;16"),
    ],
)
def test_maps_of_another_kind(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    save(tmp_path / "a.map", pixels)
    with pytest.raises(DataError, match=message):
        read_map(tmp_path / "a.map")


def test_a_map_as_the_publisher_writes_them() -> None:
    """Against another decoder of PNG than ours."""
    path = CASES / "shapestacks_publisher_way.map"
    if not path.is_file():
        pytest.skip("the shared cases are not here")
    pixels = decode_rgba(path.read_bytes())
    assert (pixels[..., :3] == pixels[..., :1]).all()
    found = read_map(path)
    assert len(np.unique(found)) > 2
    np.testing.assert_array_equal(found * np.uint8(32), pixels[..., 0])


def decode_rgba(content: bytes) -> np.ndarray:
    """A PNG of four channels of 8 bits, `[H, W, 4]`, by the words of its specification."""
    position, chunks = 8, []
    while position < len(content):
        (length,) = struct.unpack(">I", content[position : position + 4])
        chunks.append((content[position + 4 : position + 8], content[position + 8 : position + 8 + length]))
        position += 12 + length
    width, height, bits, colours, _, _, interlaced = struct.unpack(">IIBBBBB", dict(chunks)[b"IHDR"])
    assert (bits, colours, interlaced) == (8, 6, 0)
    data = zlib.decompress(b"".join(part for kind, part in chunks if kind == b"IDAT"))
    above, image = [0] * (4 * width + 4), []
    for start in range(0, len(data), 1 + 4 * width):
        row = [0] * 4
        for x, value in enumerate(data[start + 1 : start + 1 + 4 * width], 4):
            left, up, corner = row[x - 4], above[x], above[x - 4]
            nearest = min((left, up, corner), key=lambda v, s=left + up - corner: abs(s - v))
            row.append((value + (0, left, up, (left + up) // 2, nearest)[data[start]]) % 256)
        above = row
        image.append(row[4:])
    return np.array(image, np.uint8).reshape(height, width, 4)


def test_maps_without_blocks_are_noticed(copy: Path, tmp_path: Path) -> None:
    """The trap of dividing 0..1 by 32: every label is 0, and all else looks right."""
    for path in first_scenario(copy).glob("*.map"):
        save(path, grey(0))
    data = ShapeStacks(root=str(tmp_path / "data"), raw=str(copy))
    assert_refused(data, f"{first_scenario(copy)}: no map shows a block")
    # some blocks somewhere, but far too few
    save(next(first_scenario(copy).glob("*.map")), grey(64))
    assert_refused(data, "15 of 32 maps of train show no block")


def test_damaged_pictures_and_maps(copy: Path, tmp_path: Path) -> None:
    data = ShapeStacks(root=str(tmp_path / "data"), raw=str(copy))
    for pattern in ("*cam_7-*.png", "*cam_7-*.map"):
        path = next(first_scenario(copy).glob(pattern))
        whole = path.read_bytes()
        for case, content in damaged(whole, cuts=4, flips=9):
            path.write_bytes(content)
            assert_refused(data, str(path), case)
        jpeg = io.BytesIO()
        Image.open(io.BytesIO(whole)).convert("RGB").save(jpeg, "JPEG")
        path.write_bytes(jpeg.getvalue())
        assert_refused(data, str(path), "JPEG")
        # a few bytes that claim to be 100,000 x 100,000
        path.write_bytes(huge_png(whole))
        assert_refused(data, str(path), "huge")
        path.write_bytes(bytes(3_000_000))
        assert_refused(data, "more than 2,000,000 bytes", "large")
        path.unlink()
        assert_refused(data, str(path.parent), "missing")
        path.mkdir()
        assert_refused(data, str(path), "folder")
        path.rmdir()
        path.write_bytes(whole)
    data.prepare()


def huge_png(whole: bytes) -> bytes:
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


def test_wrong_folders_and_lists(copy: Path, tmp_path: Path) -> None:
    data = ShapeStacks(root=str(tmp_path / "data"), raw=str(copy))
    folder, lists = first_scenario(copy), copy / "splits/default"
    extra = folder / "rgb-w=9-f=0-l=0-c=original-cam_3-mono-0.png"
    shutil.copy(next(folder.glob("rgb*cam_3-*")), extra)
    assert_refused(data, f"{folder}: 17 pictures of 16 cameras, expected one of each of 16")
    # names that are not pictures of the first moment do not count
    extra.rename(folder / "rgb-w=9-f=0-l=0-c=original-cam_3-mono-1.png")
    data.split_sizes(copy)
    whole = (lists / "eval.txt").read_bytes()
    for case, content in damaged(whole[:-1], cuts=3, flips=6):
        (lists / "eval.txt").write_bytes(content)
        with pytest.raises(DataError) as caught:
            data.prepare()
        assert "\n" not in str(caught.value), case
        assert not data.plan("val").path.exists()
        shutil.rmtree(data.plan("train").path, ignore_errors=True)
    (lists / "eval.txt").write_bytes((lists / "train.txt").read_bytes())
    assert "is also in train, expected once" in assert_refused(data, f"{lists}/eval.txt: line 1")
    (lists / "eval.txt").unlink()
    assert_refused(data, f"{lists}/eval.txt: missing")
    shutil.rmtree(copy / "splits")
    assert_refused(data, "or the folders splits and recordings")
