"""Structural accuracy of block towers, judged from the masks of a decomposition, without ground truth."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse.csgraph import connected_components
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics import Metric

Bools = NDArray[np.bool_]
_NEIGHBOURS = np.ones((3, 3), np.bool_)


@dataclass(frozen=True)
class TowerRules:
    """Thresholds of the judgement; the defaults are those that `benchmarks/structural_accuracy.py` found.

    Lengths are shares of the image's side, areas of the image.
    """

    border: float = 0.08
    """A slot that has at least this share of the image's border is background."""
    speck: float = 0.002
    """A connected piece of a slot that is smaller is not looked at."""
    gap: float = 1 / 64
    """Pieces with no more background than this between them touch."""
    same_hue: float = 0.3
    """Pieces that touch and whose median colours differ by a smaller angle, in radians, are one block."""
    place: float = 0.05
    """Two blocks are in each other's place if the score of `judge_towers` is smaller."""
    margin: float = -0.02
    """The centre of mass may be this far outside the support; negative: it has to be that far inside."""


class Towers(NamedTuple):
    """What was found in every image, each `[B]`."""

    connected: Tensor
    """Whether there are blocks, and all of them hang together; bool."""
    overlapping: Tensor
    """Whether two of them are in the place of one; bool."""
    supported: Tensor
    """Whether all that is above has its centre of mass over what carries it, at every height; bool."""
    num_blocks: Tensor
    """int64."""

    @property
    def correct(self) -> Tensor:
        """Whether two blocks or more all touch and none overlap: what S-Acc counts, bool `[B]`."""
        return self.connected & ~self.overlapping & (self.num_blocks > 1)

    @property
    def stable(self) -> Tensor:
        """Whether it is a correct tower that, as far as the picture tells, would stand, bool `[B]`."""
        return self.correct & self.supported


def judge_towers(segmentation: Tensor, images: Tensor, rules: TowerRules | None = None) -> Towers:
    """Looks for one tower of blocks in every image.

    Slots along the image's border are background. The others fall into connected pieces; specks are dropped,
    and pieces that touch and have the same hue are one block, since models split blocks. A tower is

    - connected, if its pieces form one group under "touch";
    - overlapping, if for some block and the next lower one `rise - beside / 2` is small: how far its middle
      is above the other's, in mean visible heights, and to its side, in mean visible widths (a block that
      stands nearer to a camera above rises less, but covers the other; one in its place stands beside it);
    - supported, if for every block the mean column of all pixels from it upwards lies between the outermost
      columns at which they rest on the blocks below.

    Rules are for ShapeStacks: a tower that is not cut off by the image's border. What lies in the line of
    sight, such as a block that floats in front of its support, is not seen. See docs/structural-accuracy.md.

    Args:
        segmentation: slot ids, integers `[B, H, W]`.
        images: their colours, `[B, 3, H, W]`.
        rules: thresholds; calibrated ones if None.

    Raises:
        ValueError: if shapes do not fit.

    Source: the SRI paper, Section 5.3, whose S-Acc ("all blocks in the stack are touching each other") people
    have labelled; this judgement is ours.
    """
    expected = (len(segmentation), 3, *segmentation.shape[1:])
    if segmentation.dim() != 3 or tuple(images.shape) != expected:
        raise ValueError(
            f"expected segmentation [B, H, W] and images [B, 3, H, W], got {list(segmentation.shape)} and "
            f"{list(images.shape)}"
        )
    rules = rules or TowerRules()
    pictures = images.detach().float().movedim(1, -1).cpu().numpy()
    found = [
        _judge(ids, picture, rules)
        for ids, picture in zip(segmentation.detach().cpu().numpy(), pictures, strict=True)
    ]
    table = torch.tensor(found, dtype=torch.int64).reshape(-1, 4)
    connected, overlapping, supported = table[:, :3].bool().unbind(dim=1)
    return Towers(connected, overlapping, supported, table[:, 3])


class StructuralAccuracy(Metric):
    """S-Acc over images, by `judge_towers`.

    `compute` gives shares of the images: `s_acc` of correct towers, with the ends of its Wilson interval
    (95 %), `s_acc_low` and `s_acc_high`; `s_acc_stable` of those that would stand as well; and `num_blocks`,
    the mean number of blocks.

    Args:
        rules: thresholds; calibrated ones if None.

    States:
        sums: of correct, stable and number of blocks, and the number of images, int64 `[4]`.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    sums: Tensor

    def __init__(self, rules: TowerRules | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rules = rules
        self.add_state("sums", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, segmentation: Tensor, images: Tensor) -> None:
        """Adds images; see `judge_towers`."""
        towers = judge_towers(segmentation, images, self.rules)
        columns = (towers.correct, towers.stable, towers.num_blocks, torch.ones_like(towers.correct))
        self.sums += torch.stack([column.sum() for column in columns]).to(self.sums.device)

    def compute(self) -> dict[str, float]:
        """The numbers by name; NaN without images."""
        correct, stable, blocks, count = self.sums.tolist()
        low, high = wilson_interval(correct, count)
        shares = {"s_acc": correct, "s_acc_stable": stable, "num_blocks": blocks}
        means = {name: total / count if count else float("nan") for name, total in shares.items()}
        return means | {"s_acc_low": low, "s_acc_high": high}


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share; NaN if `count` is 0."""
    if count == 0:
        return float("nan"), float("nan")
    interval = binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


# ---------------------------------------------------------------- one image


def _judge(ids: NDArray[Any], picture: NDArray[np.float32], rules: TowerRules) -> tuple[int, int, int, int]:
    """Connected, overlapping, supported, number of blocks."""
    side = max(ids.shape)
    pieces = _pieces(ids, rules)
    if not len(pieces):
        return 0, 0, 0, 0
    touching = _touching(pieces, 1 + round(rules.gap * side))
    connected = connected_components(touching, directed=False, return_labels=False) == 1
    num_blocks, owner = connected_components(
        touching & (_angles(pieces, picture) < rules.same_hue), directed=False
    )
    blocks = np.stack([pieces[owner == block].any(axis=0) for block in range(num_blocks)])
    blocks = blocks[np.argsort(-_spans(blocks.sum(axis=2))[0], kind="stable")]
    overlapping = bool((_places(blocks) < rules.place).any())
    return connected, overlapping, _supported(blocks, rules, side), num_blocks


def _pieces(ids: NDArray[Any], rules: TowerRules) -> Bools:
    """Connected pieces of the slots that are not background, `[P, H, W]`."""
    edge = np.concatenate([ids[0], ids[-1], ids[1:-1, 0], ids[1:-1, -1]])
    pieces = [np.zeros((0, *ids.shape), np.bool_)]
    for slot in np.unique(ids):
        mask = ids == slot
        if (edge == slot).mean() < rules.border:
            labels, count = ndimage.label(mask, _NEIGHBOURS)
            pieces.append(labels == np.arange(1, count + 1)[:, None, None])
    found = np.concatenate(pieces)
    return found[found.sum(axis=(1, 2)) >= rules.speck * ids.size]


def _touching(pieces: Bools, reach: int) -> Bools:
    """Which pieces have pixels at most `reach` apart in rows and columns, symmetric `[P, P]`."""
    size = (1, 2 * reach + 1, 2 * reach + 1)
    near = ndimage.maximum_filter(pieces, size, mode="constant")
    flat = (len(pieces), -1)
    # float32: integers have no fast product
    return near.reshape(flat).astype(np.float32) @ pieces.reshape(flat).T.astype(np.float32) > 0


def _angles(pieces: Bools, picture: NDArray[np.float32]) -> NDArray[np.float64]:
    """Angles between the pieces' colours, `[P, P]`: hue and saturation, but not the light on a face.

    Medians: much of a small piece is its edge, which has something of its neighbours' colours.
    """
    colours = np.stack([np.median(picture[piece], axis=0) for piece in pieces]).astype(np.float64)
    colours /= np.maximum(np.linalg.norm(colours, axis=1, keepdims=True), 1e-6)
    return np.arccos(np.clip(colours @ colours.T, -1.0, 1.0))


def _places(blocks: Bools) -> NDArray[np.float64]:
    """`rise - beside / 2` of every block and the next lower one, `[N - 1]`; see `judge_towers`."""
    rows, heights = _spans(blocks.sum(axis=2))
    columns, widths = _spans(blocks.sum(axis=1))
    rise = (rows[:-1] - rows[1:]) / (0.5 * (heights[:-1] + heights[1:]))
    beside = np.abs(columns[:-1] - columns[1:]) / (0.5 * (widths[:-1] + widths[1:]))
    return np.asarray(rise - 0.5 * beside)


def _spans(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean line and length of blocks by their pixels on every line `[N, L]`, as `[2, N]`.

    The length leaves out the outermost twentieths: a few stray pixels make no block longer.
    """
    total = counts.sum(axis=1)
    mean = counts @ np.arange(counts.shape[1]) / total
    below = counts.cumsum(axis=1) / total[:, None]
    return np.stack([mean, (below >= 0.95).argmax(axis=1) - (below >= 0.05).argmax(axis=1) + 1])


def _supported(blocks: Bools, rules: TowerRules, side: int) -> bool:
    """Whether every block and what is above it rests on the blocks below, from the lowest up."""
    size, margin = 2 + round(rules.gap * side), rules.margin * side
    for number in range(1, len(blocks)):
        below, above = blocks[:number].any(axis=0), blocks[number:].any(axis=0)
        # the origin makes the filter look downwards alone
        carried = ndimage.maximum_filter1d(below, size, axis=0, origin=-(size // 2), mode="constant")
        columns = np.flatnonzero((carried & above).any(axis=0))
        mass = np.nonzero(above)[1].mean()
        if not (len(columns) and columns[0] - margin <= mass <= columns[-1] + margin):
            return False
    return True
