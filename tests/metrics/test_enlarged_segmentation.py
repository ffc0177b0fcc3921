"""Against Pillow, whose filter EMORL's published evaluation uses."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_genesis.metrics import resize_prediction
from lightning_genesis.metrics.enlarged_segmentation import enlarged_segmentation


@pytest.mark.parametrize(("side", "target"), [(12, 24), (13, 30), (16, 16)])
def test_equals_pillow(side: int, target: int) -> None:
    logits = torch.randn(3, 4, 1, side, side, generator=torch.Generator().manual_seed(0)) * 3
    found = enlarged_segmentation(logits.log_softmax(dim=1), target, target)
    masks = logits.softmax(dim=1).squeeze(2).numpy()
    resized = np.array(
        [
            [
                np.asarray(Image.fromarray(mask, mode="F").resize((target, target), Image.Resampling.BICUBIC))
                for mask in image
            ]
            for image in masks
        ]
    )
    assert (found.numpy() == resized.argmax(axis=1)).mean() > 0.9999


def test_differs_from_enlarging_the_ids() -> None:
    logits = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 3
    ids = resize_prediction(logits.squeeze(2).argmax(dim=1), 16, 16)
    assert (enlarged_segmentation(logits.log_softmax(dim=1), 16, 16) != ids).any()
