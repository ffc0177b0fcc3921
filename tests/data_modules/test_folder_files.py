"""Files as people have them: turns, bit depths, ids, names, links, formats that run programs."""

import io
import os
import shlex
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_modules import DataError, ImageFolder
from data_modules.raw.pictures import open_picture
from tests.data_modules.damage import CASES

ORIENTATION = 0x0112
# what EXIF says of the stored rows and columns, written out with NumPy
UPRIGHT: dict[int, Any] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def images(folder: Path, size: int, **settings: Any) -> ImageFolder:
    defaults = {"folder": str(folder / "images"), "image_size": size, "num_slots": 3, "num_workers": 0}
    return ImageFolder(**(defaults | settings))


def masked(folder: Path, size: int, **settings: Any) -> ImageFolder:
    return images(folder, size, masks=str(folder / "masks"), **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    return tmp_path


def only(data: ImageFolder) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """The image `[H, W, 3]` and mask of a folder of one, after its check."""
    data.prepare()
    (batch,) = data.predict_dataloader()
    mask = batch.get("segmentation")
    return batch["image"][0].permute(1, 2, 0).numpy(), None if mask is None else mask[0].numpy()


def refused(data: ImageFolder, part: str) -> None:
    """Before anything starts, in one line that a terminal can take."""
    with pytest.raises(DataError) as caught:
        data.prepare_data()
    assert part in str(caught.value)
    assert str(caught.value).isprintable()


def middle(array: NDArray[Any], size: int) -> NDArray[Any]:
    top, left = ((length - size) // 2 for length in array.shape[:2])
    return array[top : top + size, left : left + size]


# --- turns -----------------------------------------------------------------------------------------------

STORED = np.array([[0, 1, 2], [0, 3, 2]], np.uint8).repeat(8, 0).repeat(8, 1)
"""Ids `[16, 24]` without any symmetry, also in the middle 16 x 16."""


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.filterwarnings("ignore:.*note a turn")
def test_mask_and_image_are_turned_alike(folder: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = Image.fromarray(np.repeat(STORED[..., None] * np.uint8(80), 3, 2))
    picture.save(folder / f"images/a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    Image.fromarray(STORED).save(folder / "masks/a.png")
    image, mask = only(masked(folder, 16))
    expected = middle(UPRIGHT[orientation](STORED), 16)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal((image[..., 0].astype(int) + 40) // 80, expected)
    if orientation < 5:
        return
    # one that was drawn over the turned picture has its sides
    Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](STORED))).save(folder / "masks/a.png")
    np.testing.assert_array_equal(only(masked(folder, 16))[1], expected)


@pytest.mark.parametrize("case", ["exif3", "exif6"])
def test_the_shared_turned_pictures(folder: Path, case: str) -> None:
    if not CASES.is_dir():
        pytest.skip("the shared cases are not here")
    shutil.copy(CASES / case / "0.jpg", folder / "images/0.jpg")
    shutil.copy(CASES / case / "0.mask.png", folder / "masks/0.png")
    with pytest.warns(UserWarning, match="1 images note a turn"):
        image, mask = only(masked(folder, 48))
    turn = UPRIGHT[int(case[-1])]
    with Image.open(folder / "images/0.jpg") as stored, Image.open(folder / "masks/0.png") as ids:
        np.testing.assert_array_equal(mask, middle(turn(np.asarray(ids)), 48))
        np.testing.assert_array_equal(image, middle(turn(np.asarray(stored)), 48))


def exif_bytes(kind: int, count: int, value: bytes) -> bytes:
    """A note of the orientation, of any type."""
    entry = struct.pack(">HHI", ORIENTATION, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)


@pytest.mark.parametrize(
    "exif",
    [
        exif_bytes(2, 2, b"6\0"),  # text
        exif_bytes(11, 1, struct.pack(">f", 6.0)),
        exif_bytes(3, 2, struct.pack(">HH", 6, 6)),  # two numbers
        exif_bytes(1, 1, b"\6"),  # a byte
        exif_bytes(8, 1, struct.pack(">h", -6)),
        exif_bytes(3, 1, struct.pack(">H", 9)),
        exif_bytes(5, 1, struct.pack(">I", 10**6)),  # a fraction that lies behind the end
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x05" * 40,
        b"Exif\0\0rubbish",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_turns_that_make_no_sense(folder: Path, exif: bytes) -> None:
    picture = Image.fromarray(np.repeat(STORED[..., None] * np.uint8(80), 3, 2))
    Image.fromarray(STORED).save(folder / "masks/a.png")
    for name in ("a.jpg", "a.webp"):
        for old in (folder / "images").iterdir():
            old.unlink()
        picture.save(folder / "images" / name, exif=exif)
        image, mask = only(masked(folder, 16))
        turn = UPRIGHT[6] if exif[18:24] == b"\0\3\0\0\0\2" else UPRIGHT[1]
        # of two numbers Pillow takes the first; mask and image agree in any case
        np.testing.assert_array_equal(mask, middle(turn(STORED), 16))
        assert np.abs(image[..., 0].astype(int) - 80 * middle(turn(STORED), 16)).mean() < 8


# --- bits and ids ----------------------------------------------------------------------------------------


def grey_png(values: NDArray[np.uint8], bits: int) -> bytes:
    """A grey PNG of few bits, written here."""
    per_byte = 8 // bits
    rows = values.reshape(len(values), -1, per_byte)
    packed = sum(rows[..., i].astype(int) << (8 - bits * (i + 1)) for i in range(per_byte))
    lines = b"".join(b"\0" + bytes(np.asarray(packed)[i].astype(np.uint8)) for i in range(len(values)))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], len(values), bits, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_ids_of_few_bits_are_as_stored(folder: Path, bits: int) -> None:
    ids = np.random.default_rng(bits).integers(min(2**bits, 200), size=(16, 16), dtype=np.uint8)
    Image.new("RGB", (16, 16)).save(folder / "images/a.png")
    (folder / "masks/a.png").write_bytes(grey_png(ids, bits))
    np.testing.assert_array_equal(only(masked(folder, 16))[1], ids)


def test_the_shared_mask_of_two_bits(folder: Path) -> None:
    if not CASES.is_dir():
        pytest.skip("the shared cases are not here")
    path = shutil.copy(CASES / "grey2bit/0.png", folder / "masks/0.png")
    with Image.open(path) as mask:
        size, stretched = mask.size, np.asarray(mask)
    Image.new("RGB", size).save(folder / "images/0.png")
    _, ids = only(masked(folder, min(size)))
    assert ids is not None
    assert set(np.unique(ids)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(ids * np.uint8(85), middle(stretched, min(size)))


def test_ids_of_16_bits_are_renumbered(folder: Path) -> None:
    Image.new("RGB", (16, 16)).save(folder / "images/a.png")
    values = np.array([0, 1, 255, 300, 26001, 65535], np.uint16)
    choice = np.random.default_rng(0).integers(6, size=(16, 16))
    Image.fromarray(values[choice]).save(folder / "masks/a.png")
    expected = np.array([0, 1, 2, 3, 4, 255])[choice]
    np.testing.assert_array_equal(only(masked(folder, 16))[1], expected)
    # the background's ids stay what they are
    expected = np.array([0, 1, 3, 4, 5, 255])[choice]
    np.testing.assert_array_equal(only(masked(folder, 16, num_background=3))[1], expected)
    # small ones mean what they mean with 8 bits
    values[3:] = 254, 7, 7
    Image.fromarray(values[choice]).save(folder / "masks/a.png")
    np.testing.assert_array_equal(only(masked(folder, 16))[1], values[choice])
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 2).save(folder / "masks/a.png")
    with pytest.raises(DataError, match=r"masks/a\.png: 255 ids, expected at most 254"):
        only(masked(folder, 16))


@pytest.mark.parametrize(
    ("pixels", "suffix", "mode"),
    [
        (np.full((16, 16), 1000, np.uint16), "png", "I;16"),
        (np.full((16, 16), 1000, np.uint16), "tif", "I;16"),
        (np.full((16, 16), 0.5, np.float32), "tif", "F"),
        (np.full((16, 16), -5, np.int32), "tif", "I"),
    ],
)
def test_deep_pictures_are_refused_before_training(
    folder: Path, pixels: NDArray[Any], suffix: str, mode: str
) -> None:
    Image.fromarray(pixels).save(folder / f"images/a.{suffix}")
    refused(images(folder, 16), f"images/a.{suffix}: mode {mode}, expected 8 bits per channel")
    # ids are not looked for in anything but PNG
    shutil.move(folder / f"images/a.{suffix}", folder / "masks/a.png")
    Image.new("RGB", (16, 16)).save(folder / "images/a.png")
    if suffix == "tif":
        refused(masked(folder, 16), "masks/a.png: not readable")


def test_the_shared_picture_of_16_bits(folder: Path) -> None:
    if not CASES.is_dir():
        pytest.skip("the shared cases are not here")
    shutil.copy(CASES / "grey16/grey16.png", folder / "images")
    refused(images(folder, 16), "images/grey16.png: mode I;16, expected 8 bits per channel; convert")


def test_transparency_is_dropped(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(16, 16, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images/a.png")
    np.testing.assert_array_equal(only(images(folder, 16))[0], pixels[..., :3])


# --- names, links, and what is left out -------------------------------------------------------------------


def test_what_is_left_out_is_counted_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder / "images"
    for name in ("a.png", "b.JPG", "c.jfif", "d.pgm"):
        Image.new("L", (16, 16)).save(place / name)
    for name in ("x.heic", "y.heic", "z.avif", "w.jp2", "v.tga", "README", ".hidden.png"):
        (place / name).write_bytes(b"x")
    os.mkfifo(place / "pipe.png")
    (place / "zero.png").symlink_to("/dev/zero")
    (place / "gone.png").symlink_to("nowhere")
    (place / "folder.png").mkdir()
    Image.new("L", (16, 16)).save(place / "folder.png/e.png")
    (place / "round").symlink_to(place)
    (place / "locked").mkdir()
    scandir = os.scandir

    def locked(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    data = images(folder, 16)
    with pytest.warns(UserWarning, match="left out 11 of 16 entries") as caught:
        data.prepare()
    line = str(caught[0].message)
    parts = ("2 *.heic", "1 *.avif", "1 *.jp2", "1 *.tga", "1 folder that is a link (round)")
    parts += tuple(f"1 not a regular file ({name}.png)" for name in ("gone", "pipe", "zero"))
    assert f"{', '.join(parts)} and 2 kinds more" in line
    assert data.predict_dataset().names == ["a.png", "b.JPG", "c.jfif", "d.pgm", "folder.png/e.png"]
    for path in list(place.iterdir()):
        if path.name not in ("locked", "round", "pipe.png"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    with pytest.raises(DataError, match="found no image") as failure:
        data.prepare()
    assert f"unreadable folder ({place / 'locked'})" in str(failure.value)
    assert "folder that is a link (round)" in str(failure.value)
    assert "not a regular file (pipe.png)" in str(failure.value)


@pytest.mark.parametrize("name", [b"\xff\xfe.png", "späße.png".encode("latin-1")])
def test_names_that_are_not_utf8(folder: Path, name: bytes) -> None:
    Image.new("L", (16, 16)).save(folder / "images/a.png")
    shutil.copy(folder / "images/a.png", os.fsencode(folder / "images") + b"/" + name)
    refused(images(folder, 16), "a name that is not UTF-8; rename it")


def test_names_of_several_lines_stay_one(folder: Path) -> None:
    (folder / "images/a\nb\x1b[31m.png").write_text("no picture")
    refused(images(folder, 16), r"a\nb\x1b[31m.png: not readable")


def test_masks_beside_and_within_the_images(folder: Path) -> None:
    Image.new("RGB", (16, 16)).save(folder / "images/0.jpg")
    (folder / "images/masks").mkdir()
    ids = np.eye(16, dtype=np.uint8)
    Image.fromarray(ids).save(folder / "images/masks/0.PNG", "PNG")
    data = images(folder, 16, masks=str(folder / "images/masks"))
    np.testing.assert_array_equal(only(data)[1], ids)
    assert data.predict_dataset().names == ["0.jpg"]
    refused(images(folder, 16, masks=str(folder / "images")), "masks: ")
    (folder / "coco.json").write_text("{}")
    refused(images(folder, 16, masks=str(folder / "coco.json")), "COCO's JSON, docs/data/folder.md says how")
    os.mkfifo(folder / "masks/0.png")
    refused(masked(folder, 16), "masks/0.png: not readable (")


# --- formats ---------------------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n0 0 16 16 rectfill\nshowpage\n"


@pytest.mark.parametrize("mask", [False, True])
def test_no_picture_starts_a_program(folder: Path, monkeypatch: pytest.MonkeyPatch, mask: bool) -> None:
    """An EPS under another name: Pillow alone would hand it to Ghostscript."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("gs", "gswin32c"):
        (tools / name).write_text(f"#!/bin/sh\ntouch {shlex.quote(str(folder))}/started\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    if mask:
        Image.new("RGB", (16, 16)).save(folder / "images/a.png")
    (folder / ("masks" if mask else "images") / "a.png").write_bytes(EPS)
    refused(masked(folder, 16) if mask else images(folder, 16), "a.png: not readable")
    assert not (folder / "started").exists()
    # the trap is one: without a list of formats it would have been started
    with Image.open(io.BytesIO(EPS)) as picture, pytest.raises(Exception):  # noqa: B017
        picture.load()
    assert (folder / "started").exists()


@pytest.mark.parametrize("error", [RuntimeError, IndexError, NotImplementedError, MemoryError, KeyError])
def test_whatever_a_parser_raises_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    Image.new("RGB", (16, 16)).save(folder / "images/a.png")

    def fails(self: object) -> None:
        raise error("a\nb")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fails)
    with pytest.raises(DataError, match=r"images/a\.png: not readable \(.*a.*b"):
        only(images(folder, 16))


def test_mutated_pictures_give_a_picture_or_a_line(folder: Path) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(256, size=(12, 12, 3), dtype=np.uint8))
    path = folder / "images/a.png"
    for kind in ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        for _ in range(25):
            content = bytearray(buffer.getvalue())
            for position in rng.integers(len(content), size=4):
                content[position] = rng.integers(256)
            path.write_bytes(content[: len(content) - int(rng.integers(2)) * 20])
            try:
                with open_picture(path) as picture:
                    if picture.width * picture.height < 10**6:
                        picture.convert("RGB")
            except DataError as error:
                assert str(error).isprintable()  # noqa: PT017  (either is right)
