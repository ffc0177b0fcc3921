"""What `predict` writes."""

from pathlib import Path
from typing import Any

import torch

from lightning_genesis.callbacks.predictions import PredictionWriter
from lightning_genesis.models import GenesisV2


def test_images_that_differ_in_their_suffix_alone(tmp_path: Path) -> None:
    model = GenesisV2(num_slots=2, image_size=32, feature_dim=8, latent_dim=8).eval()
    batch = {"name": ["a/1.jpg", "a/1.png"], "image": torch.rand(2, 3, 32, 32)}
    with torch.no_grad():
        scene = model(batch["image"])
    trainer: Any = None
    PredictionWriter(tmp_path).write_on_batch_end(trainer, model, scene, None, batch, 0, 0)
    files = {"reconstruction", "segmentation", "segmentation_attention"}
    files |= {f"{kind}_{slot}" for kind in ("component", "mask") for slot in range(2)}
    for name in batch["name"]:
        assert {path.name for path in (tmp_path / "predictions" / name).iterdir()} == {
            f"{file}.png" for file in files
        }
