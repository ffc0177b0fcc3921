"""CLEVRTEX from its tree or archives to batches, a short training, and the benchmark's numbers."""

import io
import json
import tarfile
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import lightning_genesis
from data_modules import Clevrtex, DataError
from data_modules.base import SPLITS
from data_modules.store import Store
from data_modules.synthesis import clevrtex as synthesis
from lightning_genesis.cli import main
from lightning_genesis.runs.results import read_results
from lightning_genesis.scene import IndexedNoise
from tests.data_modules.damage import assert_refused, damaged

NAMES = ("shape", "size", "material")


def png(pixels: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels, mode)
    if mode == "P":
        image.putpalette([255 - value // 3 for value in range(768)])
    image.save(buffer, "PNG", compress_level=1, **options)
    return buffer.getvalue()


def scene(number: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """A picture, its ids and its description, by its number; RGBA in every other one."""
    rng = np.random.default_rng(number)
    count = 3 + number % 8
    ids = np.zeros((240, 320), np.uint8)
    for i in range(1, count + 1):
        top, left = rng.integers(0, 180), rng.integers(0, 260)
        ids[top : top + 60, left : left + 60] = i
    image = rng.integers(0, 256, (240, 320, 4 if number % 2 else 3), dtype=np.uint8)
    objects = [
        {
            "shape": ("sphere", "cube")[i % 2],
            "size": (0.5, 1.0, 0.75)[(number + i) % 3],
            "material": f"cloth_{(number + i) % 5}",
            "rotation": 10.0 * i,
            "pixel_coords": [1.0 * i, 2.0, 3.0],
            "color": None,
        }
        for i in range(count)
    ]
    return image, ids, {"ground_material": "sand", "objects": objects}


def add_scene(folder: Path, number: int, variant: str = "full") -> None:
    place = folder / f"clevrtex_{variant}" / str(number % 3)
    place.mkdir(parents=True, exist_ok=True)
    image, ids, description = scene(number)
    stem = place / f"CLEVRTEX_{variant}_{number:06d}"
    stem.with_name(f"{stem.name}.png").write_bytes(png(image))
    stem.with_name(f"{stem.name}_flat.png").write_bytes(png(ids, "P"))
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(description))


NUMBERS = [*range(0, 40, 2), 101]
"""Numbers have gaps: splits are by the place in their order."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for number in NUMBERS:
        add_scene(folder, number)
    add_scene(folder, 5, "camo")  # of another variant
    return folder


def arrays(data: Clevrtex, split: Any) -> dict[str, Any]:
    store = Store.open(data.plan(split).path)
    return store.read(list(range(len(store))))


def test_splits_crop_and_factors(raw: Path, tmp_path: Path) -> None:
    """Against the specification's rule, written out: every value of every image."""
    data = Clevrtex(root=str(tmp_path), raw=str(raw))
    data.prepare()
    parts = {"test": NUMBERS[:2], "val": NUMBERS[2:4], "train": NUMBERS[4:]}
    descriptions = [scene(number)[2]["objects"] for number in NUMBERS]
    names = {key: sorted({str(one[key]) for objects in descriptions for one in objects}) for key in NAMES}
    nearest = ((np.arange(128) + 0.5) * 192 / 128).astype(int)
    for split, numbers in parts.items():
        found = arrays(data, split)
        assert len(found["images"]) == len(numbers)
        for row, number in enumerate(numbers):
            image, ids, description = scene(number)
            middle = Image.fromarray(image[24:216, 64:256, :3])
            expected = np.asarray(middle.resize((128, 128), Image.Resampling.BILINEAR))
            assert np.array_equal(found["images"][row], expected)
            middle_ids = ids[24:216, 64:256]
            assert np.array_equal(found["segmentations"][row], middle_ids[np.ix_(nearest, nearest)])
            objects = description["objects"]
            assert found["objects.present"][row].tolist() == [i < len(objects) for i in range(10)]
            for i, one in enumerate(objects):
                assert found["objects.rotation"][row, i] == one["rotation"]
                assert found["objects.pixel_coords"][row, i].tolist() == one["pixel_coords"]
                for key in NAMES:
                    assert names[key][found[f"objects.{key}"][row, i] - 1] == str(one[key])
            assert not found["objects.material"][row, len(objects) :].any()
    manifest = Store.open(data.plan("test").path).manifest
    assert "17 / 2 / 2 images for training, validation and test" in manifest["source"]["note"]


def test_archives(raw: Path, tmp_path: Path) -> None:
    """The five parts together are the tree; one that is missing is named."""
    packed, root = tmp_path / "packed", tmp_path / "root"
    packed.mkdir()
    files = sorted(path for path in raw.rglob("CLEVRTEX_*") if path.is_file())
    for part in range(5):
        with tarfile.open(packed / f"clevrtex_full_part{part + 1}.tar.gz", "w:gz", compresslevel=1) as tar:
            for path in files[part::5]:  # also of other variants, which are not for here
                tar.add(path, path.relative_to(raw).as_posix())
    from_tree = Clevrtex(root=str(tmp_path / "tree"), raw=str(raw))
    from_archives = Clevrtex(root=str(root), raw=str(packed))
    from_tree.prepare()
    from_archives.prepare()
    for split in SPLITS:
        first, second = arrays(from_tree, split), arrays(from_archives, split)
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[name], second[name]) for name in first)
    (packed / "clevrtex_full_part3.tar.gz").unlink()
    data = Clevrtex(root=str(tmp_path / "other"), raw=str(packed))
    assert_refused(data, "clevrtex_full_part3.tar.gz: missing, expected the publisher's file")


def test_all_of_outd_is_for_testing(tmp_path: Path) -> None:
    for number in range(4):
        add_scene(tmp_path / "raw", number, "outd")
    data = Clevrtex(root=str(tmp_path), raw=str(tmp_path / "raw"), variant="outd")
    data.prepare()
    data.prepare()  # a second time it checks what is there
    assert len(arrays(data, "test")["images"]) == 4
    assert not data.plan("train").path.exists()
    data.setup("test")
    for stage in ("fit", "validate"):
        with pytest.raises(DataError, match="variant: outd has no images for") as caught:
            data.setup(stage)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_masks_have_the_ids_as_stored(bits: int, tmp_path: Path) -> None:
    """Pillow stretches grey of few bits; a mask of one says object or not."""
    ids = np.zeros((240, 320), np.uint8)
    ids[60:120, 100:200] = min(2**bits - 1, 10)
    ids[120:130, 100:200] = 1
    for number in range(3):
        add_scene(tmp_path / "raw", number)
    path = tmp_path / "raw/clevrtex_full/0/CLEVRTEX_full_000000_flat.png"
    path.write_bytes(grey_png(ids, bits))
    data = Clevrtex(root=str(tmp_path), raw=str(tmp_path / "raw"))
    data.prepare()
    found = arrays(data, "test")["segmentations"][0]
    assert set(np.unique(found)) == {0, 1, min(2**bits - 1, 10)}


def grey_png(ids: np.ndarray, bits: int) -> bytes:
    """A grey PNG of few bits, which Pillow cannot write: chunk by chunk."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = ids.shape
    spread = np.unpackbits(ids[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
    rows = np.packbits(spread, axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


BROKEN: dict[str, tuple[str, bytes | str | None, str]] = {
    "no mask": ("_flat.png", None, "has no CLEVRTEX_full_000001_flat.png with it"),
    "no JSON": (".json", None, "has no CLEVRTEX_full_000001.json with it"),
    "mask in colour": ("_flat.png", png(np.zeros((240, 320, 3), np.uint8)), "a mask of mode RGB, expected a"),
    "eleventh id": ("_flat.png", png(np.full((240, 320), 11, np.uint8), "P"), "id 11, expected 0 to 10"),
    "size": (".png", png(np.zeros((192, 192, 3), np.uint8)), "a picture of 192 x 192, expected 320 x 240"),
    "no objects": (".json", "{}", "not readable as a scene"),
    "list": (".json", "[]", "not readable as a scene"),
    "many": (".json", json.dumps({"objects": [{}] * 11}), "11 objects, expected at most 10"),
    "no shape": (".json", json.dumps({"objects": [{"size": 1}]}), "object 0 has no `shape`"),
    "words": (
        ".json",
        json.dumps({"objects": [{**scene(0)[2]["objects"][0], "rotation": "left"}]}),
        "object 0: `rotation` is no number",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named(case: str, tmp_path: Path) -> None:
    end, content, message = BROKEN[case]
    for number in range(3):
        add_scene(tmp_path / "raw", number)
    path = tmp_path / f"raw/clevrtex_full/1/CLEVRTEX_full_000001{end}"
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    data = Clevrtex(root=str(tmp_path / "root"), raw=str(tmp_path / "raw"))
    assert "CLEVRTEX_full_000001" in assert_refused(data, message)


def test_damaged_files(tmp_path: Path) -> None:
    """Cut, flipped or rubbish anywhere: one line, or, for the JSON, a change of what it says."""
    for number in range(3):
        add_scene(tmp_path / "raw", number)
    for end in ("_flat.png", ".png"):
        path = tmp_path / f"raw/clevrtex_full/2/CLEVRTEX_full_000002{end}"
        whole = path.read_bytes()
        for case, content in damaged(whole, cuts=2, flips=3):
            path.write_bytes(content)
            data = Clevrtex(root=str(tmp_path / "root"), raw=str(tmp_path / "raw"))
            assert_refused(data, path.name, case)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "grass"}, "variant: 'grass', expected full, camo, outd"),
        ({"subset": 2}, "subset: 2, expected 3"),
        ({"subset": 9, "synthetic": 3}, "subset: 9"),
    ],
)
def test_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Clevrtex(**options)


def test_no_scenes(tmp_path: Path) -> None:
    data = Clevrtex(root=str(tmp_path), raw=str(tmp_path))
    assert_refused(data, "0 scenes of full, expected clevrtex_full_part1.tar.gz")


# ---------------------------------------------------------------- the stand-in


def test_stand_in_shows_every_object_it_lists() -> None:
    for variant in ("full", "camo", "outd"):
        drawn = synthesis.draw(3, variant, 1)
        objects = drawn.description["objects"]
        pixels = np.bincount(drawn.rendering.entities.ravel(), minlength=11)
        assert (pixels[1 : len(objects) + 1] >= synthesis.MIN_PIXELS).all()
        assert not pixels[len(objects) + 1 :].any()
        materials = {one["material"] for one in objects}
        if variant == "camo":
            assert materials == {drawn.description["ground_material"]}
        for one, number in zip(objects, range(1, 11), strict=False):
            rows, columns = np.nonzero(drawn.rendering.entities == number)
            column, row, _ = one["pixel_coords"]
            assert columns.min() - 8 <= column <= columns.max() + 8
            assert rows.min() - 8 <= row <= rows.max() + 8
    numbers = {variant: set(synthesis.MATERIALS[variant]) for variant in synthesis.MATERIALS}
    assert not numbers["outd"] & numbers["full"]
    assert not set(synthesis.SHAPES["outd"]) & set(synthesis.SHAPES["full"])


def test_from_the_stand_in_to_the_benchmarks_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """prepare, two steps, test with the protocol: its mIoU is that of all matchings tried, image by image."""
    monkeypatch.chdir(tmp_path)
    options = ["--root", "data", "--synthetic", "4", "--image_size", "32"]
    assert main(["prepare", "clevrtex", *options]) == 0
    model = {
        "class_path": "lightning_genesis.models.GenesisV2",
        "init_args": {"feature_dim": 8, "latent_dim": 8},
    }
    settings = {"root": "data", "synthetic": 4, "image_size": 32, "num_slots": 4, "batch_size": 4}
    data = {"class_path": "data_modules.Clevrtex", "init_args": settings}
    Path("config.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "protocol": "clevrtex"}))
    quiet = ["--run.wandb", "false", "--run.name", "run", "--pictures.num_images", "0"]
    quiet += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", "config.yaml", *quiet, "--trainer.max_steps", "2"]) == 0
    arguments = ["--config", "runs/run/config.yaml", "--ckpt_path", "last", "--fid.num_images", "0"]
    assert main(["test", *arguments]) == 0
    (result,) = [found for found in read_results("runs/run") if found.protocol == "clevrtex"]
    assert result.num_images == 8
    assert result.rules is not None
    assert (result.rules["image_size"], result.rules["num_seeds"]) == (128, 3)
    assert result.deviations[0] == "images of 32x32, 128x128 in the protocol"

    trained, module = lightning_genesis.load("runs/run", checkpoint="last")
    batch = module.dataset("test").__getitems__(list(range(8)))  # type: ignore[attr-defined]
    images = batch["image"].float() / 255
    with torch.no_grad():
        found = trained.eval()(images, IndexedNoise(0, batch["index"]))
    squared = (found.reconstruction.double() - images.double()).square().sum(dim=(1, 2, 3)).mean()
    assert result.metrics["mse_sum"] == pytest.approx(squared.item(), rel=1e-4)
    for kind, suffix in (("decoded", ""), ("attention", "_attention")):
        ids = found.segmentation(kind).numpy()  # type: ignore[arg-type]
        pairs = zip(ids, batch["segmentation"].numpy(), strict=True)
        expected = np.mean([matched(prediction, target) for prediction, target in pairs], axis=0)
        for name, value in zip(("miou", "miou_gt"), expected, strict=True):
            assert result.metrics[name + suffix] == pytest.approx(value, abs=1e-9)


def matched(prediction: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """mIoU and mIoU_gt of four slots and up to eleven masks, by trying every matching."""
    slots = [prediction == k for k in range(4) if (prediction == k).any()]
    objects = [target == i for i in np.unique(target)]
    iou = np.array([[(s & o).sum() / (s | o).sum() for o in objects] for s in slots])
    if iou.shape[0] > iou.shape[1]:
        iou = iou.T
    rows = range(iou.shape[0])
    best = max(iou[rows, chosen].sum() for chosen in map(list, permutations(range(iou.shape[1]), len(rows))))
    return best / max(len(slots), len(objects)), best / len(objects)
