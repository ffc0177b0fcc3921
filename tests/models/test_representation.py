"""Widths of what probes read, for the published models of ShapeStacks: the table in docs/probes.md."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_genesis import models
from lightning_genesis.scene import IndexedNoise

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NUM_SLOTS, SIDE = 9, 64
WIDTHS = {
    "genesis_shapestacks": 8 * 64 + 9 * 16,
    "genesiss_shapestacks": 9 * 64,
    "monet_multidsprites": 9 * 16,
    "monetg_shapestacks": 9 * 16,
    "genesisv2_shapestacks": 9 * 64,
    "genesisv2_shapestacks_flexible": 9 * 64,
    "emorl_shapestacks": 9 * 64,
    "slotattention_shapestacks": 9 * 64,
    "srimog_shapestacks": 9 * 64 + 128,
    "srig_shapestacks_noscene": 9 * 64,
    "srisa_shapestacks": 9 * 64 + 128,
    "scenegenesis_shapestacks": 8 * 64 + 9 * 16 + 128,
    "scenegenesisv2_shapestacks": 9 * 64 + 128,
    "bdvae_shapestacks": 64,
    "dcvae_shapestacks": 64,
}


@cache
def published(experiment: str) -> models.SceneModel:
    """The model of an experiment with its own options, untrained."""
    section = yaml.safe_load((EXPERIMENTS / f"{experiment}.yaml").read_text())["model"]
    options: dict[str, Any] = section.get("init_args", {})
    options.pop("objective", None)  # says nothing about latents
    kind = getattr(models, section["class_path"].rpartition(".")[2])
    return kind(num_slots=NUM_SLOTS, image_size=SIDE, **options).eval()


@pytest.mark.parametrize("experiment", WIDTHS)
def test_published_widths(experiment: str) -> None:
    torch.manual_seed(0)
    model = published(experiment)
    image = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        features = model.representation(model(image, IndexedNoise(0, [0])))
    assert features.shape == (1, WIDTHS[experiment])
    assert features.isfinite().all()
    assert features.std() > 0


def test_every_model_is_listed() -> None:
    listed = {type(published(experiment)).__name__ for experiment in WIDTHS}
    ours = {"FlowGenesisV2"}  # in no paper
    assert listed == {*models.__all__} - {"SceneModel"} - ours
