"""Folders of runs as `fit` and `test` leave them, made without training."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from lightning_genesis.runs.results import Checkpoint, Result, write_result

MODELS = {"genesisv2": "GenesisV2", "genesis": "Genesis", "monetg": "MONet", "slotattention": "SlotAttention"}


def make_run(
    root: Path,
    experiment: str,
    seed: int,
    metrics: Mapping[str, float | None] | None = None,
    *,
    steps: int = 0,
    pictures: bool = False,
    **result: Any,
) -> Path:
    """A run's folder.

    Args:
        root: of the runs.
        experiment: its name, `<model>_<dataset>`.
        seed: of the training.
        metrics: what `test` found; no result if None.
        steps: of the log; none if 0.
        pictures: draw some.
        result: other fields of the result.
    """
    folder = root / f"{experiment}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    config = {"seed_everything": seed, "model": {"class_path": "lightning_genesis.models.GenesisV2"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if metrics is not None:
        add_result(folder, experiment, seed, metrics, **result)
    if steps:
        write_log(folder / "metrics.csv", seed, steps)
    if pictures:
        draw(folder / "pictures", seed)
    return folder


def add_result(
    folder: Path, experiment: str, seed: int, metrics: Mapping[str, float | None], **other: Any
) -> Path:
    """Adds an evaluation to a run."""
    model, dataset = experiment.split("_")[:2]
    fields: dict[str, Any] = {
        "model": MODELS.get(model, model),
        "run": folder.name,
        "experiment": experiment,
        "dataset": {"objectsroom": "objects_room", "multidsprites": "multi_dsprites"}.get(dataset, dataset),
        "synthetic": False,
        "split": "test",
        "num_images": 320,
        "protocol": "genesisv2",
        "seed": seed,
        "checkpoint": Checkpoint("checkpoints/last.ckpt", f"{seed:064x}", 500_000),
        "options": {"seed_everything": seed, "num_slots": 7, "fid": None},
    }
    fields |= other
    result = Result(metrics=dict(metrics), **fields)
    return write_result(folder, f"test-{result.protocol}", result)


def write_log(path: Path, seed: int, steps: int) -> None:
    """A training log: losses that fall, β that rises, scores every 50 rows."""
    noise = np.random.default_rng(seed)
    with open(path, "w", newline="") as file:
        names = ["step", "train/loss", "geco/genesis_v2/beta", "val/ari_fg", "val/ari_fg_attention"]
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for step in range(0, steps, 100):
            part = step / steps
            row = {
                "step": step,
                "train/loss": 7000 + 2500 * np.exp(-8 * part) + noise.normal(0, 20),
                "geco/genesis_v2/beta": 10
                ** (-6 * np.exp(-((part - 0.4) ** 2) / 0.05) + noise.normal(0, 0.1)),
            }
            writer.writerow(row)
            if step % 5000 == 0:
                score = 0.3 + 0.5 * (1 - np.exp(-5 * part)) + noise.normal(0, 0.02)
                writer.writerow({"step": step, "val/ari_fg": score, "val/ari_fg_attention": score - 0.05})


def draw(folder: Path, seed: int) -> None:
    """Pictures of several steps."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    for name in ("initial_masks", "reconstructions-000100", "reconstructions-002000", "samples-002000"):
        pixels = noise.integers(0, 255, (8, 12, 3), dtype=np.uint8).repeat(64, 0).repeat(64, 1)
        Image.fromarray(pixels).save(folder / f"{name}.png")
