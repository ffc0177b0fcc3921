"""What several tests of synthetic scenes use."""

import colorsys

import numpy as np


def hues(colours: np.ndarray) -> np.ndarray:
    """Places on the colour wheel of RGB bytes `[n, 3]`, 0 to 1."""
    return np.array([colorsys.rgb_to_hsv(*(colour / 255))[0] for colour in colours.astype(float)])


def around(one: np.ndarray, other: float) -> np.ndarray:
    """Distances on the wheel."""
    return np.abs((one - other + 0.5) % 1.0 - 0.5)


def labels(masks: np.ndarray) -> np.ndarray:
    """Binary masks `[E, H, W, 1]` of 0 and 255 as ids `[H, W]`; every pixel in exactly one."""
    assert set(np.unique(masks).tolist()) <= {0, 255}
    assert ((masks > 0).sum(axis=0) == 1).all()
    return (masks[..., 0] > 0).argmax(axis=0)
