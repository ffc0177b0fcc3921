"""How many slots a scene needs, and how far a model is from it."""

import torch
from torch import Tensor

from lightning_genesis.metrics.contingency import NUM_IDS


def num_visible_objects(segmentation: Tensor, num_background: int = 1, ignore_index: int = 255) -> Tensor:
    """Number of objects with a pixel of their own in every image, int64 `[B]`.

    Args:
        segmentation: instance ids in 0 to 255, integers `[B, H, W]`.
        num_background: ids below it are background.
        ignore_index: id of the pixels that are left out.
    """
    ids = segmentation.flatten(1).long()
    present = torch.zeros(len(ids), NUM_IDS, dtype=torch.bool, device=ids.device).scatter_(1, ids, True)
    present[:, ignore_index] = False
    return present[:, num_background:].sum(dim=1)


def slot_count_error(
    num_active: Tensor, segmentation: Tensor, num_background: int = 1, ignore_index: int = 255
) -> Tensor:
    """Absolute difference between the slots in use and the ideal number, float64 `[B]`.

    The ideal is one slot for every visible object, and one for the background where there is one. Averaged
    over images: the MAE of the GENESIS-V2 paper, Table 2.

    Args:
        num_active: slots in use, `[B]`.
        segmentation: instance ids, integers `[B, H, W]`.
        num_background: ids below it are background.
        ignore_index: id of the pixels that are left out.
    """
    ideal = num_visible_objects(segmentation, num_background, ignore_index) + int(num_background > 0)
    return (num_active.double() - ideal).abs()
