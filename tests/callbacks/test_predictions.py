"""What `predict` writes: pictures of any shape, with the crop and the resize undone."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from data_modules import ImageFolder
from lightning_genesis.callbacks import coco, predictions
from lightning_genesis.callbacks.predictions import PredictionOptions, PredictionWriter, folder_names
from lightning_genesis.cli import main
from lightning_genesis.figures.drawing import SLOT_COLOURS
from lightning_genesis.models import GenesisV2, SceneModel
from lightning_genesis.scene import Noise, Scene, Terms

SIDE = 64
COLOURS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
"""Of the background and of three objects: a slot each."""
SIZES = {
    "wide photo.png": (200, 131),
    "sub/tall.jpg": (97, 160),
    "sub/tall.png": (64, 64),
    "small.png": (30, 41),
}
"""Width and height."""


class ByColour(SceneModel):
    """Knows the truth: the slot of a pixel is the nearest of `COLOURS`."""

    branches = ("by_colour",)

    def __init__(self, num_slots: int = 4, image_size: int = SIDE, **common: Any) -> None:
        super().__init__(num_slots=num_slots, image_size=image_size, **common)
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, noise: Noise | None = None) -> Scene:
        colours = torch.tensor(COLOURS, device=images.device).view(1, 4, 3, 1, 1) / 255.0
        distance = (images.unsqueeze(1) - colours).square().sum(dim=2, keepdim=True)
        masks = torch.nn.functional.one_hot(distance.argmin(dim=1).squeeze(1), 4).movedim(3, 1).unsqueeze(2)
        log_masks = masks.float().clamp(min=1e-6).log()
        components = colours.expand(len(images), -1, -1, *images.shape[2:]) + self.shift
        return Scene(
            components, log_masks, latents={"slots": images.mean(dim=(2, 3)).unsqueeze(1).expand(-1, 4, -1)}
        )

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        return {"by_colour": Terms((scene.reconstruction - images).square().sum(dim=(1, 2, 3)), {})}


def draw(width: int, height: int) -> tuple[Image.Image, np.ndarray]:
    """Three objects within the centre square of a picture, and the slot of every pixel, from 1."""
    picture, ids = Image.new("RGB", (width, height)), Image.new("L", (width, height), 1)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    shapes = (
        ("ellipse", 0.05, 0.1, 0.45, 0.5),
        ("rectangle", 0.55, 0.3, 0.9, 0.6),
        ("ellipse", 0.2, 0.6, 0.6, 0.95),
    )
    for slot, (kind, x, y, right, bottom) in enumerate(shapes, start=2):
        box = (left + x * side, top + y * side, left + right * side, top + bottom * side)
        getattr(ImageDraw.Draw(picture), kind)(box, fill=COLOURS[slot - 1])
        getattr(ImageDraw.Draw(ids), kind)(box, fill=slot)
    truth = np.asarray(ids).copy()
    seen = np.zeros_like(truth)
    seen[top : top + side, left : left + side] = 1
    return picture, truth * seen


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A run's folder after `predict`, by the command, and the truth of every picture."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "photos/sub").mkdir(parents=True)
    truths = {}
    for name, size in SIZES.items():
        picture, truths[name] = draw(*size)
        picture.save(folder / "photos" / name, quality=95)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = [
            *("predict", "--model", "tests.callbacks.test_predictions.ByColour", "--data", "ImageFolder"),
            *("--data.folder", "photos", "--data.image_size", str(SIDE), "--data.num_slots", "4"),
            *("--data.batch_size", "3", "--data.num_workers", "0", "--run.name", "x", "--run.wandb", "false"),
            *("--trainer.accelerator", "cpu", "--predictions.arrays", "true"),
        ]
        assert main(arguments) == 0
    return folder / "runs/x/predictions", truths


FOLDERS = {
    "wide photo.png": "wide photo",
    "sub/tall.jpg": "sub_tall_jpg",
    "sub/tall.png": "sub_tall_png",
    "small.png": "small",
}


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


@pytest.mark.parametrize("name", SIZES)
def test_masks_put_back_agree_with_the_truth(name: str, written: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, truths = written
    with Image.open(folder / FOLDERS[name] / "segmentation.png") as labels:
        assert labels.mode == "P"
        assert labels.size == SIZES[name]
        palette = np.array(labels.getpalette()).reshape(-1, 3)
        ids = np.asarray(labels)
    assert tuple(palette[0]) == (0, 0, 0)
    assert [tuple(colour) for colour in palette[1:5]] == [*SLOT_COLOURS[:4]]
    truth = truths[name]
    assert np.array_equal(ids == 0, truth == 0)
    # an edge is right to half a pixel of the model, which is side / 64 wide, or of the picture
    half = max(1.0, min(SIZES[name]) / SIDE) / 2
    for slot in (1, 2, 3, 4):
        area = (truth == slot).sum()
        edge = np.abs(np.diff((truth == slot).astype(int), axis=0)).sum()
        edge += np.abs(np.diff((truth == slot).astype(int), axis=1)).sum()
        lost = min(0.9, 2 * half * edge / area)
        assert intersection_over_union(ids == slot, truth == slot) > 1 - lost
        assert intersection_over_union(ids == slot, truth == slot) > 0.85
        with Image.open(folder / FOLDERS[name] / f"mask_{slot}.png") as mask:
            assert mask.size == SIZES[name]
            soft = np.asarray(mask.convert("L"))
        assert intersection_over_union(soft > 127, ids == slot) > 0.97
        assert not soft[truth == 0].any()


def test_what_is_written(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, _ = written
    assert {path.name for path in folder.iterdir()} == {*FOLDERS.values(), "overview.png", "coco.json"}
    files = {"reconstruction.png", "segmentation.png", "arrays.npz"}
    files |= {f"{kind}_{slot}.png" for kind in ("component", "mask") for slot in (1, 2, 3, 4)}
    assert {path.name for path in (folder / "small").iterdir()} == files
    with Image.open(folder / "overview.png") as sheet:
        assert sheet.height > 4 * SIDE
    with np.load(folder / "wide photo/arrays.npz") as arrays:
        assert arrays["masks"].shape == (4, SIDE, SIDE)
        np.testing.assert_allclose(arrays["masks"].sum(axis=0), 1.0, atol=1e-4)
        assert arrays["segmentation"].shape == (131, 200)
        assert arrays["latents_slots"].shape == (4, 3)
        assert arrays["square"].tolist() == [0, 34, 131]


# ---------------------------------------------------------------- COCO


def decode(segmentation: dict[str, Any]) -> np.ndarray:
    """A mask from COCO's compressed run lengths, written from the description of the format."""
    lengths: list[int] = []
    text, position = segmentation["counts"], 0
    while position < len(text):
        value, shift = 0, 0
        while True:
            code = ord(text[position]) - 48
            position += 1
            value |= (code & 0x1F) << shift
            shift += 5
            if not code & 0x20:
                if code & 0x10:
                    value -= 1 << shift
                break
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
    height, width = segmentation["size"]
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def test_coco_holds_the_same_masks(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, _ = written
    contents = json.loads((folder / "coco.json").read_text())
    assert [image["file_name"] for image in contents["images"]] == sorted(SIZES)
    assert [entry["id"] for entry in contents["annotations"]] == [*range(1, 17)]
    for image in contents["images"]:
        assert (image["width"], image["height"]) == SIZES[image["file_name"]]
        with Image.open(folder / FOLDERS[image["file_name"]] / "segmentation.png") as labels:
            ids = np.asarray(labels)
        found = [entry for entry in contents["annotations"] if entry["image_id"] == image["id"]]
        assert [entry["slot"] for entry in found] == [1, 2, 3, 4]
        for entry in found:
            mask = decode(entry["segmentation"])
            assert np.array_equal(mask, ids == entry["slot"])
            assert entry["area"] == mask.sum()
            rows, columns = mask.nonzero()
            left, top, width, height = entry["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_of_any_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 60, 2))
    coarse = rng.random((-(-shape[0] // 7), -(-shape[1] // 7))) < rng.random()
    mask = np.kron(coarse, np.ones((7, 7), bool))[: shape[0], : shape[1]] ^ (rng.random(shape) < 0.02)
    found = {"size": [*shape], "counts": coco.compressed(coco.run_lengths(mask))}
    assert np.array_equal(decode(found), mask)
    if find_spec("pycocotools"):
        from pycocotools import mask as tools  # type: ignore[import-not-found,unused-ignore]

        assert tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() == found["counts"]


def test_pictures_of_several_ranks_become_one_file() -> None:
    ids = np.array([[0, 1, 1], [0, 2, 2]])
    parts = [{"id": n, "file_name": f"{n}", "annotations": [*coco.annotations(ids, n)]} for n in (3, 1, 1)]
    contents = coco.whole(parts, "x")
    assert [image["id"] for image in contents["images"]] == [1, 3]  # one that two ranks have seen stands once
    assert [entry["image_id"] for entry in contents["annotations"]] == [1, 1, 3, 3]
    assert [entry["id"] for entry in contents["annotations"]] == [1, 2, 3, 4]
    assert all("annotations" not in image for image in contents["images"])


# ---------------------------------------------------------------- folders and sheets


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["a/1.jpg", "b/1.jpg", "2.png"], ["a_1", "b_1", "2"]),
        (["1.jpg", "1.png"], ["1_jpg", "1_png"]),
        (["a/1.png", "a_1.png"], ["a_1_png", "a_1_png_2"]),
        (["A.png", "a.png", "a_png.jpg"], ["A_png_2", "a_png_3", "a_png"]),
        (["x.y.png", "x.jpg"], ["x.y", "x"]),
    ],
)
def test_names_of_folders(names: list[str], folders: list[str]) -> None:
    found = folder_names(names)
    assert [*found.values()] == folders
    assert len({name.casefold() for name in found.values()}) == len(names)


def test_sheets_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predictions, "ROWS", 2)
    model = GenesisV2(num_slots=2, image_size=32, feature_dim=8, latent_dim=8).eval()
    batch = {"image": torch.rand(3, 3, 32, 32), "index": torch.arange(3)}
    with torch.no_grad():
        scene = model(batch["image"])
    trainer: Any = type("Trainer", (), {"global_rank": 0, "world_size": 1, "is_global_zero": True})()
    writer = PredictionWriter(tmp_path, PredictionOptions())
    writer.write_on_batch_end(trainer, model, scene, None, batch, 0, 0)
    writer.on_predict_end(trainer, model)
    folder = tmp_path / "predictions"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("000000", "000001", "000002", "coco.json", "overview-2.png", "overview.png")
    ]
    assert {path.name for path in (folder / "000000").iterdir()} == {
        *("reconstruction.png", "segmentation.png", "segmentation_attention.png"),
        *(f"{kind}_{slot}.png" for kind in ("component", "mask") for slot in (1, 2)),
    }
    assert f"3 pictures in {folder}" in capsys.readouterr().out


def test_a_folder_of_images_says_how_large_they_were(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    photos = written[0].parents[2] / "photos"
    data = ImageFolder(folder=str(photos), image_size=8, num_slots=2, num_workers=0)
    sizes = {
        name: data.predict_dataset()[n]["original_size"].tolist() for n, name in enumerate(sorted(SIZES))
    }
    assert sizes == {name: [[height, width]] for name, (width, height) in SIZES.items()}
