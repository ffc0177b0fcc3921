"""A picture to look at after preparing data: images above, their masks below."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.store import Arrays

_BACKGROUND = (40, 40, 40)
_COLOURS = np.array(
    [
        (230, 60, 60),
        (60, 140, 230),
        (80, 190, 80),
        (240, 200, 60),
        (170, 90, 210),
        (250, 150, 60),
        (70, 210, 210),
        (240, 120, 190),
        (150, 190, 90),
        (200, 200, 230),
    ],
    np.uint8,
)
_GAP = 2


def colour_segmentation(segmentation: NDArray[np.uint8], num_background: int) -> NDArray[np.uint8]:
    """Ids `[..., H, W]` as colours `[..., H, W, 3]`; background dark grey, ignored pixels (255) white."""
    table = np.resize(_COLOURS, (256, 3))
    table = np.roll(table, num_background, axis=0)
    table[:num_background] = _BACKGROUND
    table[255] = 255
    return table[segmentation]


def scene_grid(arrays: Arrays, num_background: int) -> Image.Image:
    """A row of images and, where there are `segmentations`, a row of masks at the images' size."""
    images = arrays["images"]
    height, width = images.shape[1:3]
    rows = [images]
    if "segmentations" in arrays:
        colours = colour_segmentation(arrays["segmentations"], num_background)
        resized = [
            Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST) for mask in colours
        ]
        rows.append(np.stack([np.asarray(mask) for mask in resized]))
    canvas = np.full(
        (len(rows) * (height + _GAP) - _GAP, len(images) * (width + _GAP) - _GAP, 3), 255, np.uint8
    )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + _GAP), j * (width + _GAP)
            canvas[top : top + height, left : left + width] = picture
    return Image.fromarray(canvas)
