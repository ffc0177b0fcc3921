"""Publishers' picture files: what is not as expected is refused before it is decoded."""

import io
import zlib

from PIL import Image

from data_modules.store import DataError


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
        reason = " ".join(str(error or type(error).__name__).split())[:160]
        raise DataError(f"{where}: not readable as {kind} ({reason}); get it again") from error
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
