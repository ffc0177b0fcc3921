"""What published evaluations do with the images on which a score is 0 / 0: one table."""

from dataclasses import dataclass
from math import nan
from typing import Literal

Convention = Literal["genesis", "scikit-learn", "deepmind", "emorl", "skip"]


@dataclass(frozen=True)
class EdgeCases:
    """Values of the images whose score the formula leaves open. NaN: the image is not counted."""

    ari_no_pixels: float
    """Adjusted Rand index of an image without a pixel to score (ARI-FG: without foreground)."""
    ari_one_cluster: float
    """Prediction and target both put all pixels in one cluster (one object, found whole)."""
    ari_singletons: float
    """Prediction and target both put every pixel, two or more, in a cluster of its own."""
    covering_no_labels: float
    """Segmentation covering of an image without a label to cover."""


CONVENTIONS: dict[Convention, EdgeCases] = {
    # GENESIS and GENESIS-V2: scikit-learn's index; an image without labels has covering 0.
    "genesis": EdgeCases(1.0, 1.0, 1.0, 0.0),
    # scikit-learn itself, and SAVi, whose values agree. Neither defines coverings: GENESIS's rule.
    "scikit-learn": EdgeCases(1.0, 1.0, 1.0, 0.0),
    # DeepMind's multi_object_datasets evaluates the quotient as it stands: 0 / 0.
    "deepmind": EdgeCases(nan, nan, nan, 0.0),
    # EMORL and SRI turn NaN into 0, except where the contingency table has a single cell.
    "emorl": EdgeCases(0.0, 1.0, 0.0, 0.0),
    # GENESIS's rules over the images that have something to score.
    "skip": EdgeCases(nan, 1.0, 1.0, nan),
}


def edge_cases(convention: Convention) -> EdgeCases:
    """The row of `CONVENTIONS`.

    Raises:
        ValueError: if there is no convention of that name.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: expected one of {', '.join(CONVENTIONS)}, got {convention!r}")
    return CONVENTIONS[convention]
