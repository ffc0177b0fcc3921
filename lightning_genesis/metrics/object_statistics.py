"""What can be counted without ground truth: blobs, and where, how large and of which colour slots are."""

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from lightning_genesis.scene import Scene

SMALLEST = 0.005
"""Share of the image that an object or a blob has at least."""
CONTRAST = 0.2
"""Of a pixel that belongs to a blob: largest difference of a channel from the border's median colour."""
BINS = 10
FACTORS = ("area", "row", "column", "hue")


class ObjectStatistics(NamedTuple):
    """The objects of a batch of scenes, slot by slot."""

    present: Tensor
    """Whether the slot shows an object, bool `[B, K]`."""
    factors: dict[str, Tensor]
    """`area` (share of the image), `row` and `column` of the centre, `hue`: each in [0, 1], `[B, K]`."""

    @property
    def num_objects(self) -> Tensor:
        """Objects of each scene, int64 `[B]`."""
        return self.present.sum(dim=1)


def object_statistics(scene: Scene) -> ObjectStatistics:
    """Objects by the segmentation of the decoded masks.

    An object is a slot with at least `SMALLEST` of the image, but for the background: the slot with most of
    the image's border, the first one on ties. Its hue is that of the mean colour of its component where it
    wins.
    """
    segmentation = scene.segmentation()
    num_slots, (height, width) = scene.num_slots, segmentation.shape[1:]
    owned = torch.nn.functional.one_hot(segmentation, num_slots).permute(0, 3, 1, 2).float()  # [B, K, H, W]
    area = owned.mean(dim=(2, 3))
    border = torch.zeros(height, width, device=owned.device)
    border[[0, -1]], border[:, [0, -1]] = 1.0, 1.0
    background = (owned * border).sum(dim=(2, 3)).argmax(dim=1)
    present = (area >= SMALLEST) & (torch.arange(num_slots, device=area.device) != background[:, None])
    weight = owned / owned.sum(dim=(2, 3), keepdim=True).clamp_min(1.0)
    rows = (torch.arange(height, device=owned.device) + 0.5) / height
    columns = (torch.arange(width, device=owned.device) + 0.5) / width
    colour = (weight.unsqueeze(2) * scene.components).sum(dim=(3, 4)).clamp(0.0, 1.0)  # [B, K, 3]
    factors = {
        "area": area,
        "row": (weight.sum(dim=3) * rows).sum(dim=2),
        "column": (weight.sum(dim=2) * columns).sum(dim=2),
        "hue": hue(colour),
    }
    return ObjectStatistics(present, factors)


def hue(colour: Tensor) -> Tensor:
    """Hue in [0, 1) of colours `[..., 3]`, as `colorsys` has it; 0 for greys."""
    largest, which = colour.max(dim=-1)
    spread = largest - colour.min(dim=-1).values
    red, green, blue = colour.unbind(dim=-1)
    sectors = (
        torch.stack([green - blue, blue - red, red - green], dim=-1) / spread.clamp_min(1e-12)[..., None]
    )
    sectors = sectors + torch.tensor([0.0, 2.0, 4.0], device=colour.device)
    chosen = sectors.gather(-1, which[..., None])[..., 0] / 6.0 % 1.0
    return torch.where(spread > 1e-6, chosen, torch.zeros_like(chosen))


def count_blobs(images: Tensor) -> Tensor:
    """Connected regions that stand out from the colour of the image's border, int64 `[B]`.

    For plain backgrounds. Neither masks nor a model are asked; objects that touch are one blob.

    Args:
        images: in [0, 1], `[B, 3, H, W]`.
    """
    counts = []
    for image in images.clamp(0.0, 1.0).cpu().numpy():
        edge = np.concatenate([image[:, 0], image[:, -1], image[:, 1:-1, 0], image[:, 1:-1, -1]], axis=1)
        away = np.abs(image - np.median(edge, axis=1)[:, None, None]).max(axis=0) > CONTRAST
        labels, _ = ndimage.label(away)
        sizes = np.bincount(labels.ravel())[1:]
        counts.append(int((sizes >= SMALLEST * away.size).sum()))
    return torch.tensor(counts)


def total_variation(first: Tensor, second: Tensor, bins: int | None = None) -> float:
    """Half the sum of differences between two histograms: 0 for the same one, 1 for disjoint ones.

    Args:
        first: integers from 0, or with `bins` numbers in [0, 1], `[N]`.
        second: likewise, `[M]`.
        bins: equal parts of [0, 1] that numbers are sorted into.

    Returns:
        the distance; 0 if both are empty, 1 if one is.
    """
    if not (len(first) and len(second)):
        return float(len(first) != len(second))
    if bins is not None:
        first, second = ((x * bins).long().clamp(0, bins - 1) for x in (first, second))
    size = int(max(first.max(), second.max())) + 1
    shares = [torch.bincount(x.cpu(), minlength=size).double() / len(x) for x in (first, second)]
    return float(0.5 * (shares[0] - shares[1]).abs().sum())
