"""Picture files that nobody vouches for: opened by a list of formats, and what goes wrong is one line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.storage.files import open_regular

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""What is opened, by Pillow's names: of the rest some start other programs, as EPS does."""
MAX_FILE_BYTES = 2**28
"""A larger file is refused."""


@contextmanager
def open_picture(
    path: Path,
    formats: tuple[str, ...] = FORMATS,
    max_bytes: int = MAX_FILE_BYTES,
    error: Callable[[str], Exception] = ConfigurationError,
) -> Iterator[Image.Image]:
    """A picture file of which the head is read; its pixels come when the block asks for them.

    Args:
        path: a regular file, whatever its suffix.
        formats: Pillow's names of those it may have.
        max_bytes: a larger file is refused.
        error: what is raised; the block's own errors of this kind pass.

    Raises:
        ConfigurationError: or `error`, if it is missing, no regular file, too large, of another format, or
            not readable, also by what the block does with it; the message is one line that names it.
    """
    try:
        with open_regular(path) as file:
            if (size := path.stat().st_size) > max_bytes:
                raise ValueError(f"{size:,} bytes, more than {max_bytes:,}")
            with Image.open(file, formats=formats) as picture:
                yield picture
    except FileNotFoundError:
        raise error(f"{path}: missing, expected a file there; add it or remove its counterpart") from None
    except Exception as problem:  # for rubbish the parsers may raise anything
        if isinstance(error, type) and isinstance(problem, error):
            raise
        raise error(
            f"{path}: not readable ({reason(problem)}), expected an image ({', '.join(formats)}); repair or "
            "remove the file"
        ) from problem


def reason(error: Exception) -> str:
    """What an error says, in part of a line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
