"""Pictures as people have them, in and out of a model: `model.segment(pictures)`, `model.reconstruct`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F

from data_modules.raw.pictures import centre_square, resized_square, upright
from lightning_genesis.errors import ConfigurationError, ImageError
from lightning_genesis.models.contract import check_range, check_scene
from lightning_genesis.scene import IndexedNoise, MaskKind, Scene

Picture = Image.Image | NDArray[Any] | Tensor
Array = NDArray[Any] | Tensor
"""What comes back: NumPy, or a tensor where a tensor was given."""


class PictureMethods:
    """What every model does with pictures of any size, outside of a Trainer.

    Pictures are

    - a PIL image with 8 bits per channel; turned as its EXIF orientation says, transparency dropped;
    - an array or a tensor of bytes, or of floats in [0, 1], `[H, W, 3]` or `[3, H, W]`;
    - a batch of those, `[B, H, W, 3]` or `[B, 3, H, W]`;
    - a list of pictures of any of these kinds, also of different sizes.

    The model sees the centre square of each, resized to its own side S as `ImageFolder` does it. A picture
    gets the same result whenever and with whatever others it is given, up to float error.
    """

    image_size: int

    def segment(
        self,
        pictures: Picture | Sequence[Picture],
        kind: MaskKind = "decoded",
        seed: int | None = 0,
        batch_size: int = 16,
    ) -> Array | list[Array]:
        """The slot of every pixel, at the size of the pictures.

        Args:
            pictures: see the class.
            kind: "decoded" masks, or those of the encoder's "attention" where the model has them.
            seed: of the noise, the same for every picture; None for fresh noise in every call.
            batch_size: pictures that the model sees at once.

        Returns:
            int64 `[H, W]` of a picture, `[B, H, W]` of a batch, and a list of a list; NumPy, or a tensor on
            the same device where a tensor was given. Slots are numbered from 1, as in the figures; 0 is what
            the model did not see, outside the centre square.

        Raises:
            ImageError: if these are no pictures that can be taken.
            ConfigurationError: if an option does not fit.
        """
        given = _read(pictures, self.image_size, "segment")

        def ids(scene: Scene) -> Tensor:
            if kind == "attention" and scene.attention_log_masks is None:
                raise ConfigurationError(f"segment: a {type(self).__name__} has no attention masks")
            return scene.log_masks_of(kind)

        found = self._see(given, ids, seed, batch_size)
        placed = [group.given_back(segmentation_at(part, group.height, group.width)) for group, part in found]
        return placed if isinstance(pictures, list | tuple) else placed[0]

    def reconstruct(
        self, pictures: Picture | Sequence[Picture], seed: int | None = 0, batch_size: int = 16
    ) -> Array | list[Array]:
        """The pictures as the model decodes them, at its own size.

        Args:
            pictures: see the class.
            seed: of the noise, the same for every picture; None for fresh noise in every call.
            batch_size: pictures that the model sees at once.

        Returns:
            In the layout, type and range of what was given, with S pixels a side: bytes for bytes, floats
            (not clamped) for floats; `[S, S, 3]` of bytes for a PIL image. A list of a list.

        Raises:
            ImageError: if these are no pictures that can be taken.
            ConfigurationError: if an option does not fit.
        """
        given = _read(pictures, self.image_size, "reconstruct")
        found = self._see(given, lambda scene: scene.reconstruction, seed, batch_size)
        pixels = [group.given_back(group.as_pixels(part)) for group, part in found]
        return pixels if isinstance(pictures, list | tuple) else pixels[0]

    def _see(
        self, given: list["_Group"], what: Callable[[Scene], Tensor], seed: int | None, batch_size: int
    ) -> Iterator[tuple["_Group", Tensor]]:
        """Every group with what the model says of it."""
        if batch_size < 1:
            raise ConfigurationError(f"batch_size: {batch_size}, expected 1 or more")
        if seed is not None and seed < 0:
            raise ConfigurationError(f"seed: {seed}, expected 0 or more, or None for fresh noise")
        model = cast(LightningModule, self)
        pixels = torch.cat([group.pixels.to(model.device) for group in given])
        parts = []
        with evaluating(model):
            for batch in pixels.split(batch_size):
                # one stream for every picture: what stands beside it must not matter
                noise = None if seed is None else IndexedNoise(seed, [0] * len(batch))
                scene = model(batch, noise)
                check_scene(scene, batch, model)
                parts.append(what(scene))
        sizes = [len(group.pixels) for group in given]
        return zip(given, torch.cat(parts).split(sizes), strict=True)


def segmentation_at(log_masks: Tensor, height: int, width: int) -> Tensor:
    """Slots of a picture's pixels, from masks of its centre square.

    Masks are enlarged (bilinear, pixel centres) before the largest is chosen, so that edges have no stairs.

    Args:
        log_masks: `[B, K, 1, S, S]`.
        height: of the pictures.
        width: of the pictures.

    Returns:
        int64 `[B, height, width]`: slots from 1, the first one on ties; 0 outside the centre square.
    """
    top, left, side = centre_square(height, width)
    best: Tensor | None = None
    ids = log_masks.new_ones((len(log_masks), side, side), dtype=torch.int64)
    for slot, masks in enumerate(log_masks.float().exp().unbind(dim=1), start=1):
        # one slot at a time: of a photograph, all at once take gigabytes
        masks = place_back(masks, side).squeeze(1)
        if best is None:
            best = masks
            continue
        ids[masks > best] = slot
        best = torch.maximum(best, masks)
    return F.pad(ids, (left, width - side - left, top, height - side - top))


def place_back(maps: Tensor, side: int) -> Tensor:
    """Maps `[B, C, S, S]` of a square, resized to its own side, `[B, C, side, side]`."""
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps, size=(side, side), mode="bilinear", antialias=side < maps.shape[-1])


@contextmanager
def evaluating(model: LightningModule) -> Iterator[None]:
    """Evaluation mode, without gradients; then the mode it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Group:
    """Pictures of one size that were given together, and how."""

    pixels: Tensor
    """What the model sees, `[B, 3, S, S]` in [0, 1]."""
    height: int
    width: int
    single: bool
    """One picture, not a batch."""
    channels_first: bool
    dtype: torch.dtype
    device: torch.device | None
    """Of a tensor; None for NumPy and PIL."""

    def as_pixels(self, images: Tensor) -> Tensor:
        """Images `[B, 3, S, S]` in the layout and type that was given."""
        if not self.dtype.is_floating_point:
            images = images.mul(255.0).round().clamp(0.0, 255.0)
        images = images.to(self.dtype)
        return images if self.channels_first else images.movedim(1, 3)

    def given_back(self, values: Tensor) -> Array:
        """Values `[B, ...]` as what was given."""
        values = values[0] if self.single else values
        return values.cpu().numpy() if self.device is None else values.to(self.device)


def _read(pictures: Any, size: int, method: str) -> list[_Group]:
    if isinstance(pictures, list | tuple):
        if not pictures:
            raise ImageError(f"{method}: an empty list, expected pictures")
        groups = []
        for number, picture in enumerate(pictures):
            groups.append(_read_one(picture, size, f"{method}: picture {number}"))
            if not groups[-1].single:
                raise ImageError(f"{method}: picture {number} is a batch; a list holds single pictures")
    else:
        groups = [_read_one(pictures, size, method)]
    if any((group.height, group.width) != (size, size) for group in groups):
        _say(f"{method}: of pictures that are not {size} x {size} px the centre square is taken and resized")
    return groups


@cache
def _say(line: str) -> None:
    """Once in a process."""
    rank_zero_info(line)


def _read_one(picture: Any, size: int, where: str) -> _Group:
    if isinstance(picture, Image.Image):
        if picture.mode[0] in "IF":
            raise ImageError(f"{where}: a PIL image of mode {picture.mode}, expected 8 bits per channel")
        pixels: NDArray[Any] | Tensor = np.asarray(upright(picture)[0])
    elif isinstance(picture, np.ndarray | Tensor):
        pixels = picture
    else:
        hint = "; open it with PIL.Image.open" if isinstance(picture, str | Path) else ""
        raise ImageError(
            f"{where}: a {type(picture).__name__}, expected a PIL image, a NumPy array, a tensor, or a list "
            f"of them{hint}"
        )
    device = pixels.device if isinstance(pixels, Tensor) else None
    values = _as_tensor(pixels, where)
    single = values.dim() == 3
    values, channels_first = _channels_first(values.unsqueeze(0) if single else values, pixels, where)
    height, width = values.shape[2:]
    squares = _squares(values, size)
    if squares.is_floating_point():
        if not bool(squares.isfinite().all()):
            raise ImageError(f"{where}: holds NaN or infinite values, expected floats in [0, 1]")
        check_range(squares, where)
    else:
        squares = squares.float() / 255.0
    return _Group(squares.float(), height, width, single, channels_first, values.dtype, device)


def _as_tensor(pixels: NDArray[Any] | Tensor, where: str) -> Tensor:
    kind = str(pixels.dtype).removeprefix("torch.")
    if isinstance(pixels, np.ndarray) and pixels.dtype.kind in "fu" and pixels.itemsize <= 8:
        # torch takes neither negative strides nor the other order of bytes
        pixels = torch.from_numpy(np.array(pixels, dtype=pixels.dtype.newbyteorder("="), order="C"))
    if not isinstance(pixels, Tensor) or not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
        raise ImageError(f"{where}: pixels of type {kind}, expected uint8, or floats in [0, 1]")
    return pixels.detach()


def _channels_first(values: Tensor, given: NDArray[Any] | Tensor, where: str) -> tuple[Tensor, bool]:
    """`[B, 3, H, W]`, and whether the channels stood there."""
    shape = list(given.shape)
    expected = "expected [H, W, 3] or [3, H, W], or a batch of them"
    if values.dim() != 4 or 3 not in (values.shape[1], values.shape[3]):
        hint = ": repeat the grey values three times" if 1 in shape[-3:] or len(shape) == 2 else ""
        raise ImageError(f"{where}: shape {shape}, {expected}{hint}")
    if values.shape[1] == values.shape[3] == 3:
        raise ImageError(f"{where}: shape {shape}: which axis holds the colours? {expected}")
    if not values.numel():
        raise ImageError(f"{where}: shape {shape} holds no pixel")
    first = values.shape[1] == 3
    return values if first else values.movedim(3, 1), first


def _squares(values: Tensor, size: int) -> Tensor:
    """The centre squares of `[B, 3, H, W]`, resized; bytes stay bytes, by Pillow as in `ImageFolder`."""
    height, width = values.shape[2:]
    if height == width == size:
        return values
    if values.dtype == torch.uint8:
        pictures = [Image.fromarray(image) for image in values.movedim(1, 3).contiguous().cpu().numpy()]
        squares = [resized_square(picture, size, Image.Resampling.BILINEAR) for picture in pictures]
        return torch.from_numpy(np.stack(squares)).movedim(3, 1)
    top, left, side = centre_square(height, width)
    square = values[:, :, top : top + side, left : left + side].float()
    return F.interpolate(square, size=(size, size), mode="bilinear", antialias=True)
