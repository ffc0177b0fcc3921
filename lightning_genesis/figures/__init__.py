"""The papers' figures: one function each, from Scenes to a picture `[3, H, W]`."""

from lightning_genesis.figures.generation import (
    generation_order,
    generation_steps,
    samples_by_run,
    sweep,
)
from lightning_genesis.figures.inference import (
    decomposition_steps,
    example_scores,
    failure_cases,
    imagination_pairs,
    inference_seeds,
    latent_traversal,
    score_labels,
)
from lightning_genesis.figures.walk import WalkNoise, random_walk, walk_frames, write_gif

__all__ = [
    "WalkNoise",
    "decomposition_steps",
    "example_scores",
    "failure_cases",
    "generation_order",
    "generation_steps",
    "imagination_pairs",
    "inference_seeds",
    "latent_traversal",
    "random_walk",
    "samples_by_run",
    "score_labels",
    "sweep",
    "walk_frames",
    "write_gif",
]
