"""Picture files, opened with care: by a list of formats, and what is not as expected is one line."""

import io
import zlib
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile

from data_modules.store import DataError
from lightning_genesis.storage import pictures

open_picture = partial(pictures.open_picture, error=DataError)
"""As there, with the errors of data."""

_GREY_STEPS = {"L;2": 85, "L;4": 17}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, which is none, where it is missing or makes no sense.

    To be asked for before the pixels: Pillow turns TIFF files when it reads them, and forgets it.
    """
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged notes do not make the picture unreadable
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """A picture of the pixels as stored, turned upright."""
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def upright(picture: Image.Image) -> tuple[Image.Image, int]:
    """The pixels in RGB, turned as the picture's EXIF orientation says, and that orientation."""
    turn = orientation(picture)
    pixels = picture.convert("RGB")
    return pixels if picture.format == "TIFF" else turned(pixels, turn), turn


def centre_square(height: int, width: int) -> tuple[int, int, int]:
    """What of a picture of these sides a model sees: top, left and side of the square, in pixels."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side


def resized_square(picture: Image.Image, size: int, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """The centre square of a picture with `size` pixels a side, `[size, size, 3]`; `[size, size]` of grey."""
    top, left, side = centre_square(picture.height, picture.width)
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), resampling, box=box))


def read_ids(picture: Image.Image) -> NDArray[np.integer[Any]]:
    """The values of a grey or palette PNG as stored, `[H, W]`; Pillow stretches grey of 2 and 4 bits."""
    assert isinstance(picture, PngImageFile)
    step = _GREY_STEPS.get(str(picture.tile[0][3]), 1) if picture.tile else 1
    return np.asarray(picture).astype(np.uint16) // step


def read_picture(content: bytes, where: str, kind: str, width: int, height: int) -> Image.Image:
    """Decode a PNG or JPEG file of a known size.

    Returns:
        The picture, loaded.

    Raises:
        DataError: if it is not readable, or of another format or size; `where` names the file.
    """
    if not content:
        raise DataError(f"{where}: empty, expected a {kind} picture")
    try:
        if kind == "PNG":
            _check_png(content)
        picture = Image.open(io.BytesIO(content), formats=[kind])
        size = picture.size
        # before anything is decoded: a few bytes may claim any size
        if size == (width, height):
            picture.load()
    except Exception as error:  # for rubbish its parsers may raise anything
        raise DataError(
            f"{where}: not readable as {kind} ({pictures.reason(error)}); get it again"
        ) from error
    if size != (width, height):
        raise DataError(f"{where}: a picture of {size[0]} x {size[1]}, expected {width} x {height}")
    return picture


def _check_png(content: bytes) -> None:
    """Compare the checksums of a PNG file, which Pillow leaves out for the pixels.

    Raises:
        ValueError: if one differs or the end is missing.
    """
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("no PNG signature")
    position, kind = 8, b""
    while kind != b"IEND":
        length = int.from_bytes(content[position : position + 4], "big")
        end = position + 8 + length
        if end + 4 > len(content):
            raise ValueError("the file ends early")
        kind = content[position + 4 : position + 8]
        if zlib.crc32(content[position + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise ValueError(f"wrong checksum at byte {position}")
        position = end + 4
