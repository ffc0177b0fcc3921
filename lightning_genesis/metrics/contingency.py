"""Pixel counts of every pair of slot and object: all that the segmentation scores need to know."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = TypeVar("Ids", Tensor, NDArray[Any])
"""Integers that part an image's pixels: tensors, or NumPy arrays."""
NUM_IDS = 256
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Contingency:
    """Number of pixels in which slot and object meet, per image, without the ignored pixels."""

    background: Tensor
    """Pixels of slot `k` on the background, float64 `[B, K]`; zeros if no id is background."""
    foreground: Tensor
    """Pixels of slot `k` on object `n`, float64 `[B, K, N]`; columns of absent ids are zero."""

    @property
    def without_foreground(self) -> Tensor:
        """True for the images without a foreground pixel, bool `[B]`."""
        return self.foreground.sum(dim=(1, 2)) == 0

    def pairs(self, foreground: bool) -> Tensor:
        """The table of the pixels that are scored: foreground only or all, `[B, K, N]` or `[B, K, 1 + N]`."""
        if foreground:
            return self.foreground
        return torch.cat([self.background[..., None], self.foreground], dim=2)


def check_options(num_slots: int, num_background: int, ignore_index: int) -> None:
    """Stop with one line if the options of a segmentation score contradict each other.

    Raises:
        ValueError: if an option is out of range.
    """
    if num_slots < 1:
        raise ValueError(f"num_slots: expected at least 1, got {num_slots}")
    if not 0 <= num_background < NUM_IDS:
        raise ValueError(f"num_background: expected 0 to {NUM_IDS - 1}, got {num_background}")
    if not num_background <= ignore_index < NUM_IDS:
        raise ValueError(
            f"ignore_index: expected an id from num_background={num_background} to {NUM_IDS - 1}, "
            f"got {ignore_index}"
        )


def resize_prediction(prediction: Tensor, height: int, width: int) -> Tensor:
    """Slot ids enlarged to the size of the target, each pixel taking the nearest id.

    Pixel centres are compared, so enlarging by a whole factor repeats every id that many times.

    Args:
        prediction: slot ids, `[B, H, W]`.
        height: at least `H`.
        width: at least `W`.

    Returns:
        Slot ids, `[B, height, width]`; the prediction itself if it has that size already.

    Raises:
        ValueError: if the target is smaller than the prediction: pixels would go unscored.
    """
    own_height, own_width = prediction.shape[-2:]
    if (own_height, own_width) == (height, width):
        return prediction
    if height < own_height or width < own_width:
        raise ValueError(
            f"target: expected at least the {own_height}x{own_width} pixels of the prediction, "
            f"got {height}x{width}"
        )
    rows = (2 * torch.arange(height, device=prediction.device) + 1) * own_height // (2 * height)
    columns = (2 * torch.arange(width, device=prediction.device) + 1) * own_width // (2 * width)
    return prediction[:, rows[:, None], columns]


def as_tensor(values: Tensor | NDArray[Any]) -> Tensor:
    """A tensor of the values; NumPy's integers in a type that torch has."""
    if isinstance(values, Tensor):
        return values
    values = np.asarray(values)
    return torch.tensor(values.astype(np.int64) if values.dtype.kind in "iu" else values)


def like(values: Tensor, given: Ids) -> Ids:
    """The values in NumPy where an argument was given so."""
    return values if isinstance(given, Tensor) else values.cpu().numpy()


def count_pixels(
    prediction: Tensor | NDArray[Any],
    target: Tensor | NDArray[Any],
    *,
    num_slots: int | None = None,
    num_background: int = 1,
    ignore_index: int = 255,
) -> Contingency:
    """Count the pixels of every pair of slot and object, for the whole batch in one scatter.

    Runs on the device of its arguments and never waits for it. Ids out of range fail an assertion on
    the device: at once on the CPU, at the next synchronisation on a GPU.

    Args:
        prediction: slot ids in 0 to `num_slots - 1`, integers `[B, H, W]`.
        target: instance ids in 0 to 255, integers `[B, H', W']`, with `H' >= H` and `W' >= W`; the
            prediction is enlarged to that size (`resize_prediction`).
        num_slots: number of slots `K`; None counts those of the prediction, for which the host waits.
        num_background: ids below it are background and count as one.
        ignore_index: id of the pixels that are left out.

    Returns:
        The counts; ids of the foreground keep a column each.

    Raises:
        ValueError: if shapes or options do not fit.
        TypeError: if an argument is not a tensor of integers.
        RuntimeError: on the CPU, if an id is out of range.
    """
    prediction, target = as_tensor(prediction), as_tensor(target)
    for name, ids in (("prediction", prediction), ("target", target)):
        if ids.dtype not in INTEGERS:
            raise TypeError(f"{name}: expected integer ids, got {ids.dtype} (take the argmax of soft masks)")
        if ids.dim() != 3:
            raise ValueError(f"{name}: expected [B, H, W], got {list(ids.shape)}")
    if num_slots is None:
        num_slots = max(1, 1 + int(prediction.max())) if prediction.numel() else 1
    check_options(num_slots, num_background, ignore_index)
    if len(prediction) != len(target):
        raise ValueError(
            "prediction and target: expected the same number of images, "
            f"got {len(prediction)} and {len(target)}"
        )
    prediction = resize_prediction(prediction, *target.shape[-2:])
    _assert_ids("prediction", prediction, num_slots)
    if target.dtype != torch.uint8:
        _assert_ids("target", target, NUM_IDS)

    num_images = len(target)
    cells = num_slots * NUM_IDS
    first = cells * torch.arange(num_images, device=target.device)
    # One buffer, changed in place: at this size new memory costs more than the arithmetic.
    index = target.to(torch.int64, copy=True).add_(prediction, alpha=NUM_IDS).add_(first[:, None, None])
    counts = torch.zeros(num_images * cells, dtype=torch.float64, device=target.device)
    counts.scatter_add_(0, index.flatten(), counts.new_ones(()).expand(index.numel()))
    table = counts.view(num_images, num_slots, NUM_IDS)
    table[..., ignore_index] = 0
    return Contingency(table[..., :num_background].sum(dim=2), table[..., num_background:])


def _assert_ids(name: str, ids: Tensor, limit: int) -> None:
    if ids.numel() > 0:
        lowest, highest = ids.aminmax()
        # Unlike an `if`, which would make the host wait for the device.
        torch._assert_async((lowest >= 0) & (highest < limit), f"{name}: expected ids from 0 to {limit - 1}")
