"""What the look for numbers that are not finite adds to the saving of a checkpoint, as a ratio.

    python benchmarks/save.py
    python benchmarks/save.py --saves 100 --device cuda

A model takes one training step, so that its optimiser has moments, and is then saved again and again. In each
save the time of `check_state` is compared with that of all the rest, and the median of these ratios is taken:
of seconds of this process's CPU, which other programs hardly change, and of seconds that pass.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_genesis.callbacks.checkpoints import check_state
from lightning_genesis.models import Genesis, GenesisV2, SceneModel
from lightning_genesis.storage.checkpoint import DurableCheckpointIO

MODELS: dict[str, Callable[[], SceneModel]] = {
    "GENESIS, 64 px, as published": lambda: Genesis(num_slots=5, image_size=64),
    "GENESIS-V2, 64 px, as published": lambda: GenesisV2(num_slots=5, image_size=64),
    "GENESIS-V2, 32 px, small": lambda: GenesisV2(num_slots=5, image_size=32, feature_dim=8, latent_dim=8),
}
CHECK = "lightning_genesis.models.base.check_state"


def trained(model: SceneModel, device: str, folder: str) -> pl.Trainer:
    """A trainer whose model has taken a step."""
    batch = {
        "image": torch.randint(256, (2, 3, model.image_size, model.image_size), dtype=torch.uint8),
        "index": torch.arange(2),
    }
    trainer = pl.Trainer(
        accelerator=device,
        devices=1,
        max_steps=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[DurableCheckpointIO()],
    )
    trainer.fit(model, DataLoader([batch], batch_size=None))
    return trainer


def now() -> tuple[float, float]:
    """CPU and wall seconds."""
    return time.process_time(), time.perf_counter()


def shares(trainer: pl.Trainer, path: Path) -> tuple[float, float, float]:
    """A save: CPU seconds without the look, and what share of these, and of wall seconds, the look adds."""
    look: list[tuple[float, float]] = []

    def timed(*args: Any) -> None:
        look.append(now())
        check_state(*args)
        look.append(now())

    start = now()
    with patch(CHECK, timed):
        trainer.save_checkpoint(path)
    end = now()
    (cpu, added), (_, added_wall) = (
        (after - before - (done - begun), (done - begun) / (after - before - (done - begun)))
        for before, begun, done, after in zip(start, *look, end, strict=True)
    )
    return cpu, added, added_wall


def main() -> None:
    """Prints a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--saves", type=int, default=20, help="of each model")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| model | MB | save, ms of CPU | the look adds, CPU | the look adds, wall |")
    print("|---|---|---|---|---|")
    for name, make in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer, path = trained(make(), options.device, folder), Path(folder, "model.ckpt")
            rows = [shares(trainer, path) for _ in range(options.saves + 1)]
            size = path.stat().st_size / 1e6
        # without the first, which fills caches
        cpu, added, added_wall = (statistics.median(column) for column in zip(*rows[1:], strict=True))
        print(
            f"| {name} | {size:.1f} | {1e3 * cpu:.1f} | {100 * added:.1f} % | {100 * added_wall:.1f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
