"""Pictures as people have them, in and out of models."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import TrainerStatus
from torch import Tensor

from data_modules.folder import FolderDataset
from lightning_genesis import models
from lightning_genesis.errors import ConfigurationError, ImageError, UserError
from lightning_genesis.metrics import adjusted_rand_index
from lightning_genesis.models import SceneModel, SlotAttention
from lightning_genesis.models import pictures as module
from lightning_genesis.models.pictures import segmentation_at
from lightning_genesis.scene import IndexedNoise, Noise, Scene, Terms
from tests.models.test_genesis_v2 import small_model
from tests.models.test_representation import published

SIDE = 32
MODELS = (
    *("genesisv2_shapestacks", "bdvae_shapestacks"),  # with noise of masks, and without masks
    *(
        pytest.param(f"{name}_shapestacks", marks=pytest.mark.slow)
        for name in ("monetg", "slotattention", "genesis", "emorl", "srimog")
    ),
)


class Thirds(SceneModel):
    """Says that red, green and blue are a slot each, and paints what it saw."""

    branches = ("thirds",)

    def __init__(self, image_size: int = SIDE) -> None:
        super().__init__(num_slots=3, image_size=image_size)
        self.seen: list[Tensor] = []
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, noise: Noise | None = None) -> Scene:
        self.seen.append(images)
        components = images.unsqueeze(1).repeat(1, 3, 1, 1, 1)
        return Scene(components, (20.0 * images.unsqueeze(2)).log_softmax(dim=1))

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        return {"thirds": Terms(scene.components.sum(dim=(1, 2, 3, 4)) + self.shift, {})}


def stripes(height: int, width: int) -> np.ndarray:
    """Red, green and blue from left to right, bytes `[height, width, 3]`."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[np.arange(height)[:, None], np.arange(width), np.arange(width) * 3 // width] = 255
    return picture


def kinds(picture: np.ndarray) -> dict[str, Any]:
    """The same picture in every form."""
    first = np.moveaxis(picture, 2, 0)
    floats = picture.astype(np.float64) / 255.0
    return {
        "PIL": Image.fromarray(picture),
        "PIL with transparency": Image.fromarray(picture).convert("RGBA"),
        "bytes HWC": picture,
        "bytes CHW": first,
        "mirrored twice": picture[:, ::-1].copy()[:, ::-1],
        "float64 HWC": floats,
        "float32 CHW": np.moveaxis(floats, 2, 0).astype(np.float32),
        "other byte order": floats.astype(">f4"),
        "tensor of bytes": torch.from_numpy(first.copy()),
        "tensor of floats": torch.from_numpy(floats).float(),
        "half": torch.from_numpy(floats).half(),
    }


KINDS = tuple(kinds(stripes(4, 6)))
TOLERANCE = {"half": 1e-3}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(SIDE, SIDE), (48, 90), (90, 48), (20, 21)])
def test_every_kind_of_picture_is_segmented_at_its_size(kind: str, size: tuple[int, int]) -> None:
    height, width = size
    picture = stripes(height, width)
    found = Thirds().segment(kinds(picture)[kind])
    assert isinstance(found, Tensor) == kind.startswith(("tensor", "half"))
    assert found.shape == size
    ids = np.asarray(found)
    assert ids.dtype == np.int64
    side, left, top = min(size), (width - min(size)) // 2, (height - min(size)) // 2
    truth = np.zeros(size, int)
    inside = (slice(top, top + side), slice(left, left + side))
    truth[inside] = picture[inside].argmax(axis=2) + 1
    assert (ids == 0).sum() == height * width - side * side
    assert np.array_equal(ids == 0, truth == 0)
    # a border of two stripes may be off by half a pixel of the model's
    assert (ids != truth).sum() <= side * 2 * max(1, round(side / SIDE))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reconstruction_has_the_form_of_the_picture(kind: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    given = kinds(picture)[kind]
    found = Thirds().reconstruct(given)
    if isinstance(given, Image.Image):
        assert found.dtype == np.uint8
        assert np.array_equal(found, picture)
        return
    assert type(found) is type(given)
    assert found.shape == given.shape
    assert found.dtype == (given.dtype if isinstance(given, Tensor) else given.dtype.newbyteorder("="))
    difference = np.abs(np.asarray(found).astype(float) - np.asarray(given).astype(float))
    assert difference.max() <= TOLERANCE.get(kind, 1e-6)


def test_batches_and_lists_come_back_as_such() -> None:
    model = Thirds()
    batch = np.stack([stripes(48, 90)] * 5)
    ids = model.segment(batch, batch_size=2)
    assert ids.shape == (5, 48, 90)
    assert len(model.seen) == 3
    assert model.reconstruct(np.moveaxis(batch, 3, 1)).shape == (5, 3, SIDE, SIDE)
    mixed = [Image.fromarray(stripes(40, 30)), torch.zeros(3, 50, 60), stripes(SIDE, SIDE)]
    found = model.segment(mixed)
    assert [type(ids) for ids in found] == [np.ndarray, Tensor, np.ndarray]
    assert [tuple(ids.shape) for ids in found] == [(40, 30), (50, 60), (SIDE, SIDE)]
    assert [tuple(image.shape) for image in model.reconstruct(tuple(mixed))] == [
        (SIDE, SIDE, 3),
        (3, SIDE, SIDE),
        (SIDE, SIDE, 3),
    ]
    assert isinstance(model.segment([stripes(40, 30)]), list)


def test_pixels_are_those_of_a_folder_of_images(tmp_path: Path) -> None:
    """`predict` and `segment` show a model the same pixels, EXIF turns included."""
    noise = np.random.default_rng(1).integers(0, 256, (57, 91, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.fromarray(noise).save(tmp_path / "turned.png", exif=exif)
    names = ["a.png", "turned.png"]
    expected = FolderDataset(tmp_path, names, SIDE).__getitems__([0, 1])["image"]
    model = Thirds()
    with Image.open(tmp_path / names[0]) as first, Image.open(tmp_path / names[1]) as second:
        found = model.segment([first, second])
    assert torch.equal(model.seen[0], expected.float() / 255.0)
    assert [ids.shape for ids in found] == [(57, 91), (91, 57)]
    model.segment(np.stack([noise, noise]))
    assert torch.equal(model.seen[1][0], expected[0].float() / 255.0)
    model.segment(noise / 255.0)
    # Pillow rounds twice, and lets pixels beside the square into its left and right border
    assert (model.seen[2] - model.seen[1][:1])[..., 1:-1].abs().max() < 1.01 / 255.0


def test_resizing_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    module._say.cache_clear()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    model = Thirds()
    with caplog.at_level(logging.INFO, logger=logger.name):
        model.segment(stripes(SIDE, SIDE))
        assert not caplog.messages
        model.segment(stripes(40, 50))
        model.segment(stripes(60, 50))
    assert len(caplog.messages) == 1
    assert "segment: of pictures that are not 32 x 32 px the centre square" in caplog.messages[0]


@pytest.mark.parametrize("experiment", MODELS)
def test_every_model_says_the_same_twice(experiment: str) -> None:
    torch.manual_seed(0)
    model = published(experiment)
    model.train()
    rng = np.random.default_rng(2)
    pictures = [rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(2)]
    state = torch.get_rng_state()
    first = model.reconstruct(pictures)
    ids = model.segment(pictures[1])
    again = model.reconstruct(pictures[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert ids.shape == (64, 64)
    assert 1 <= ids.min() <= ids.max() <= model.num_slots
    assert np.abs(first[1].astype(int) - again.astype(int)).max() <= 1
    assert all(parameter.grad is None for parameter in model.parameters())
    image = torch.from_numpy(np.moveaxis(pictures[1], 2, 0)).float()[None] / 255.0
    with torch.no_grad():
        scene = model.eval()(image, IndexedNoise(0, [0]))
    assert np.array_equal(scene.segmentation()[0].numpy() + 1, ids)


def test_fresh_noise_and_another_seed_on_request() -> None:
    model, picture = small_model(), torch.rand(3, SIDE, SIDE)
    base = model.reconstruct(picture)
    assert torch.equal(model.reconstruct(picture), base)
    assert not torch.equal(model.reconstruct(picture, seed=1), base)
    fresh = [model.reconstruct(picture, seed=None) for _ in range(2)]
    assert not torch.equal(fresh[0], fresh[1])
    torch.manual_seed(3)
    once = model.reconstruct(picture, seed=None)
    torch.manual_seed(3)
    assert torch.equal(model.reconstruct(picture, seed=None), once)


def test_attention_masks() -> None:
    model, picture = small_model(), torch.rand(3, SIDE, SIDE)
    with torch.no_grad():
        scene = model(picture[None], IndexedNoise(0, [0]))
    assert torch.equal(model.segment(picture, kind="attention"), scene.segmentation("attention")[0] + 1)
    with pytest.raises(ConfigurationError, match="a Thirds has no attention masks"):
        Thirds().segment(picture, kind="attention")


BATCH = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "an empty list"),
        ("cat.png", r"a str, .*open it with PIL.Image.open"),
        (Path("cat.png"), r"open it with PIL.Image.open"),
        ([BATCH[0], None], "picture 1: a NoneType, expected a PIL image"),
        ([BATCH], "picture 0 is a batch"),
        (BATCH * 255, r"images from 0\.0\d+ to 25\d\.?\d*, expected 0 to 1; divide by 255"),
        (BATCH * 2 - 1, "expected 0 to 1; bring them there"),
        (BATCH.numpy() * np.nan, "holds NaN or infinite"),
        ((BATCH * 255).long(), "type int64, expected uint8, or floats"),
        (BATCH.numpy() > 0.5, "type bool, expected uint8"),
        (BATCH[0, 0], r"shape \[32, 32\], .*repeat the grey values"),
        (BATCH[:, :1], r"shape \[2, 1, 32, 32\], .*repeat the grey values"),
        (torch.rand(2, 4, SIDE, SIDE), r"shape \[2, 4, 32, 32\], expected \[H, W, 3\]"),
        (BATCH[None], r"shape \[1, 2, 3, 32, 32\], expected"),
        (torch.rand(3, 5, 3), "which axis holds the colours"),
        (BATCH[:0], r"shape \[0, 3, 32, 32\] holds no pixel"),
        (Image.new("F", (8, 8)), "mode F, expected 8 bits per channel"),
    ],
)
def test_what_is_no_picture_is_one_line(pictures: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as raised:
        Thirds().segment(pictures)
    assert str(raised.value).startswith("segment: ")
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, UserError)
    assert isinstance(raised.value, ValueError)
    with pytest.raises(ImageError, match=r"^reconstruct: "):
        Thirds().reconstruct(pictures)


def test_options_out_of_range_are_one_line() -> None:
    with pytest.raises(ConfigurationError, match="batch_size: 0"):
        Thirds().segment(BATCH, batch_size=0)
    with pytest.raises(ConfigurationError, match="seed: -1"):
        Thirds().reconstruct(BATCH, seed=-1)


@pytest.mark.parametrize("kind", [models.GenesisV2, SlotAttention])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((BATCH * 255).byte(), r"images of uint8, expected floats in \[0, 1\].*images / 255"),
        (BATCH * 255, "divide by 255"),
        (BATCH - 0.5, "bring them there"),
        (torch.rand(2, 3, 48, 48), r"images \[2, 3, 48, 48\], expected .*\[B, 3, 32, 32\]; model.segment"),
        (BATCH.movedim(1, 3), r"images \[2, 32, 32, 3\]"),
        (BATCH[0], r"images \[3, 32, 32\]"),
        (BATCH.numpy(), "a ndarray, expected floats"),
        ({"image": BATCH}, "a dict, expected floats"),
    ],
)
def test_forward_refuses_in_one_line(kind: type[SceneModel], images: Any, message: str) -> None:
    model = small_model() if kind is models.GenesisV2 else SlotAttention(3, SIDE)
    model.eval()
    with pytest.raises(ImageError, match=message):
        model(images)


def test_a_running_trainer_looks_at_the_first_batch_alone() -> None:
    model = Thirds().eval()
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.state.status = TrainerStatus.RUNNING
    model.trainer = trainer
    too_bright = BATCH * 255
    scene = model(too_bright)  # no value is looked at
    with pytest.raises(ImageError, match=r"Thirds: images from .* divide by 255"):
        model._check_contract(scene, model.loss_terms(scene, too_bright), too_bright)
    trainer.state.status = TrainerStatus.FINISHED
    with pytest.raises(ImageError, match="divide by 255"):
        model(too_bright)
    model.train()(too_bright)


def test_segments_are_scored_in_numpy() -> None:
    picture = stripes(48, 48)
    truth = picture.argmax(axis=2)[None]
    ids = Thirds().segment(picture[None])
    score = adjusted_rand_index(ids, truth, num_background=0)
    assert isinstance(score, np.ndarray)
    assert score[0] > 0.9


def test_masks_are_put_back_one_by_one_as_all_at_once() -> None:
    log_masks = torch.randn(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(4)).log_softmax(dim=1)
    found = segmentation_at(log_masks, 21, 30)
    masks = torch.nn.functional.interpolate(log_masks.exp().squeeze(2), size=(21, 21), mode="bilinear")
    assert torch.equal(found[:, :, 4:25], masks.argmax(dim=1) + 1)
    assert not found[:, :, :4].any()
    assert not found[:, :, 25:].any()
    assert torch.equal(segmentation_at(log_masks, 8, 8), log_masks.squeeze(2).argmax(dim=1) + 1)
    small = segmentation_at(log_masks, 4, 4)
    assert small.shape == (2, 4, 4)
