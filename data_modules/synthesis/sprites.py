"""The sprites of dSprites: drawn by formula, or taken from the published file.

A sprite is one of 737,280 combinations of shape, scale, orientation and position, numbered as in
`dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz`. The formulas give the published frames but for a handful of
pixels whose centres lie on the outline, so scenes of drawn sprites are *equivalent in distribution* to scenes
of published ones, not identical to them.
"""

import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_modules.store import DataError
from lightning_genesis.storage.files import open_regular

SHAPES = ("square", "ellipse", "heart")
SCALES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LATENT_NAMES = ("shape", "scale", "orientation", "position_x", "position_y")
LATENT_SIZES = (len(SHAPES), len(SCALES), 40, 32, 32)
NUM_SPRITES = 737_280
FRAME = 64
# No sprite reaches further than 13.6 pixels from its centre (the corner of the largest square).
WINDOW = 29


class SpriteMasks(NamedTuple):
    """Binary masks of `N` sprites, each in a window of the 64 x 64 frame."""

    masks: NDArray[np.bool_]
    """`[N, h, w]`."""
    top: NDArray[np.int64]
    """First row of each window, `[N]`."""
    left: NDArray[np.int64]
    """First column of each window, `[N]`."""


class SpriteSource(Protocol):
    """Where sprites come from."""

    def masks(self, indices: NDArray[np.int64]) -> SpriteMasks:
        """Masks of the sprites with these flat dSprites indices, `[N]`."""
        ...


def latents_from_index(index: ArrayLike) -> NDArray[np.int64]:
    """Latent classes (shape, scale, orientation, x, y) of flat dSprites indices `[N]`, as `[N, 5]`."""
    return np.stack(np.unravel_index(np.asarray(index), LATENT_SIZES), axis=-1)


def index_from_latents(latents: ArrayLike) -> NDArray[np.int64]:
    """Flat dSprites indices `[N]` of latent classes `[N, 5]`; the inverse of `latents_from_index`."""
    return np.asarray(
        np.ravel_multi_index(tuple(np.moveaxis(np.asarray(latents), -1, 0)), LATENT_SIZES), np.int64
    )


def _in_square(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.maximum(np.abs(u), np.abs(v)) <= 9.6


def _in_ellipse(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (u / 12.8) ** 2 + (v / 7.2) ** 2 <= 1.0


def _in_heart(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Test points against the closed curve `x = 9.597 sin³t`, `y = 8.609 cos t - 3.314 cos 2t - ...`.

    A vertical line through `x` meets the curve at `t` and at `pi - t`, whose cosines are `c` and `-c`: the
    terms even in `c` give the middle of the chord, the odd ones half its length. This is the limit of a
    polygon of ever more vertices.
    """
    x = np.abs(u) / 9.597
    c_squared = 1.0 - np.cbrt(np.minimum(x, 1.0)) ** 2
    middle = 1.436 - 3.314 * (2.0 * c_squared - 1.0) - 0.663 * (8.0 * c_squared * (c_squared - 1.0) + 1.0)
    half_length = np.sqrt(c_squared) * (8.609 - 1.324 * (4.0 * c_squared - 3.0))
    # `v` points down, `y` up
    return (x <= 1.0) & (np.abs(-v - middle) <= half_length)


def render(
    shape: NDArray[np.int64],
    scale: NDArray[np.float64],
    angle: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
) -> SpriteMasks:
    """Draw sprites: a pixel is set if its centre lies inside the outline.

    Args:
        shape: position in `SHAPES`, `[N]`.
        scale: size relative to the largest sprite, `[N]`.
        angle: counter-clockwise turn in radians, `[N]`.
        x: column of the centre in pixels, to the right, `[N]`.
        y: row of the centre in pixels, downwards, `[N]`.
    """
    left = np.floor(x).astype(np.int64) - WINDOW // 2
    top = np.floor(y).astype(np.int64) - WINDOW // 2
    centres = np.arange(WINDOW) + 0.5
    dx = ((left - x)[:, None] + centres)[:, None, :] / scale[:, None, None]
    dy = ((top - y)[:, None] + centres)[:, :, None] / scale[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    u, v = cos * dx - sin * dy, sin * dx + cos * dy
    masks = np.empty(u.shape, np.bool_)
    for code, inside in enumerate((_in_square, _in_ellipse, _in_heart)):
        chosen = shape == code
        masks[chosen] = inside(u[chosen], v[chosen])
    return SpriteMasks(masks, top, left)


class RenderedSprites:
    """Sprites drawn by formula."""

    def masks(self, indices: NDArray[np.int64]) -> SpriteMasks:
        """Masks of the sprites with these flat dSprites indices, `[N]`."""
        shape, scale, orientation, x, y = np.moveaxis(latents_from_index(indices), -1, 0)
        # the published angles run from 0 to 2 pi with both ends, so the last orientation is the first again
        angle = 2.0 * np.pi * (orientation % 39) / 39.0
        return render(shape, np.asarray(SCALES)[scale], angle, 16.0 + 32.0 * x / 31.0, 16.0 + 32.0 * y / 31.0)


class NpzSprites:
    """Sprites of the published dSprites file.

    The 3 GB array is streamed once and only the sprites asked for are kept, as bits (512 bytes each).

    Args:
        path: the `.npz` file.
        indices: flat dSprites indices that will be needed, `[M]`.

    Raises:
        DataError: if the file is missing, damaged or not dSprites.
    """

    def __init__(self, path: Path, indices: NDArray[np.int64]) -> None:
        self._indices = np.unique(indices)
        try:
            with open_regular(path) as file, zipfile.ZipFile(file) as archive:
                _check_order(archive, path)
                self._bits = _read_frames(archive, path, self._indices)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file, expected the dSprites .npz; correct `sprites`") from None
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(
                f"{path}: damaged or no .npz file ({error}), expected dSprites; download it again"
            ) from error

    def masks(self, indices: NDArray[np.int64]) -> SpriteMasks:
        """Masks of the sprites with these flat dSprites indices, `[N]`; each window is the whole frame."""
        bits = self._bits[np.searchsorted(self._indices, indices)]
        masks = np.unpackbits(bits, axis=1).view(np.bool_).reshape(-1, FRAME, FRAME)
        zeros = np.zeros(len(indices), np.int64)
        return SpriteMasks(masks, zeros, zeros)


def npz_checksum(path: Path) -> int | None:
    """CRC-32 of the sprites in a dSprites file as its directory states it; None if it cannot be read."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return archive.getinfo("imgs.npy").CRC
    except (OSError, KeyError, zipfile.BadZipFile):
        return None


def _not_dsprites(path: Path, key: str, found: object, expected: object) -> DataError:
    return DataError(
        f"{path}: key `{key}`: found {found}, expected {expected}; "
        "give the file dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    )


def _open_array(
    archive: zipfile.ZipFile, path: Path, key: str, shape: tuple[int, ...], kinds: str
) -> tuple[IO[bytes], np.dtype]:
    """Open one array of an .npz as a stream behind its header, without unpickling anything."""
    if f"{key}.npy" not in archive.namelist():
        found = ", ".join(sorted(name.removesuffix(".npy") for name in archive.namelist())) or "nothing"
        raise _not_dsprites(path, key, f"only the keys {found}", "that key")
    stream = archive.open(f"{key}.npy")
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        found_shape, fortran_order, dtype = read_header(stream)
    except (ValueError, KeyError) as error:
        raise _not_dsprites(path, key, f"no readable header ({error})", "a NumPy array") from error
    if dtype.kind not in kinds or (key == "imgs" and dtype != np.uint8):
        raise _not_dsprites(path, key, f"dtype {dtype}", "uint8" if key == "imgs" else "whole numbers")
    if found_shape != shape or fortran_order:
        raise _not_dsprites(path, key, f"shape {list(found_shape)}", list(shape))
    return stream, dtype


def _check_order(archive: zipfile.ZipFile, path: Path) -> None:
    """Check that sprites are numbered as we number them, where the file says how."""
    if "latents_classes.npy" not in archive.namelist():
        return
    stream, dtype = _open_array(archive, path, "latents_classes", (NUM_SPRITES, 1 + len(LATENT_SIZES)), "iu")
    with stream:
        classes = np.frombuffer(stream.read(), dtype).reshape(NUM_SPRITES, -1)
    wrong = np.flatnonzero((classes[:, 1:] != latents_from_index(np.arange(NUM_SPRITES))).any(axis=1))
    if wrong.size:
        row = int(wrong[0])
        expected = latents_from_index(row).tolist()
        raise _not_dsprites(path, "latents_classes", f"{classes[row, 1:].tolist()} in row {row}", expected)


def _read_frames(archive: zipfile.ZipFile, path: Path, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Read the frames with sorted `indices` `[M]` as bits, `[M, 512]`; every value of the file is checked."""
    stream, _ = _open_array(archive, path, "imgs", (NUM_SPRITES, FRAME, FRAME), "u")
    bits = np.empty((len(indices), FRAME * FRAME // 8), np.uint8)
    rows_at_once = 4096
    with stream:
        for first in range(0, NUM_SPRITES, rows_at_once):
            rows = min(rows_at_once, NUM_SPRITES - first)
            data = stream.read(rows * FRAME * FRAME)
            if len(data) != rows * FRAME * FRAME:
                raise EOFError(f"it ends within frame {first + len(data) // FRAME**2} of {NUM_SPRITES}")
            frames = np.frombuffer(data, np.uint8).reshape(rows, -1)
            if frames.max() > 1:
                raise _not_dsprites(path, "imgs", f"the value {frames.max()}", "only 0 and 1")
            start, stop = np.searchsorted(indices, (first, first + rows))
            bits[start:stop] = np.packbits(frames[indices[start:stop] - first], axis=1)
        # reading past the end makes zipfile compare its checksum
        stream.read(1)
    return bits
