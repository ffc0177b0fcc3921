"""What a training step costs in Python beside the model's own work: `python -m benchmarks.overhead`.

A trivial model takes steps in the bare loop of Lightning (its own loss and fused Adam, no callback), as a
`SceneModel` with gate and GECO, and as `fit` trains it, with the callbacks of every run. Printed are calls of
functions per step, which do not depend on the machine, and milliseconds of the processor, the least of
several rounds that take turns; on a machine with other work these can double. `--rounds 0` counts calls
alone, `--profile` lists the functions that took most time.
"""

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from benchmarks.all_models import Batches, trainer_on
from benchmarks.train_step import quiet
from lightning_genesis.callbacks.checkpoints import CheckpointOptions, RunCheckpoints
from lightning_genesis.callbacks.pictures import Pictures
from lightning_genesis.callbacks.predictions import PredictionWriter
from lightning_genesis.callbacks.progress import Throughput
from lightning_genesis.callbacks.rollback import Rollback, RollbackOptions
from lightning_genesis.callbacks.run_files import ContinueLog
from lightning_genesis.callbacks.run_identity import RunIdentity
from lightning_genesis.callbacks.stop import StopOnSignal
from lightning_genesis.commands.trainer_options import without_empty_hooks
from lightning_genesis.models import SceneModel
from lightning_genesis.scene import Noise, Scene, Terms
from lightning_genesis.storage.checkpoint import DurableCheckpointIO

LAYERS = 60
"""Of the network, each of one weight and one bias: as many parameters as a small GENESIS-V2 has."""
WARM, STEPS, COUNTED = 20, 200, 20
"""Steps before the clock starts, with it, and of which calls are counted."""


class Network(nn.Sequential):
    """Multiplies its input by a number and adds one, again and again."""

    def __init__(self) -> None:
        super().__init__(*(nn.Linear(1, 1) for _ in range(LAYERS)))


class Bare(pl.LightningModule):
    """The same work without anything of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The squared error of one pixel."""
        image = batch["image"][:, 0, 0, :1].float() / 255.0
        return (self.network(image) - image).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As `SceneModel`'s."""
        return torch.optim.Adam(self.parameters(), 1e-4, fused=True)


class Trivial(SceneModel):
    """The same work as a model of ours."""

    branches = ("trivial",)

    def __init__(self, num_slots: int = 1, image_size: int = 4, **common: Any) -> None:
        super().__init__(num_slots=num_slots, image_size=image_size, **common)
        self.network = Network()

    def forward(self, images: Tensor, noise: Noise | None = None) -> Scene:
        """One slot that shows one number everywhere."""
        shown = self.network(images[:, 0, 0, :1])[:, :, None, None, None]
        return Scene(shown.expand(-1, -1, *images.shape[1:]), torch.zeros_like(images[:, None, :1]))

    def loss_terms(self, scene: Scene, images: Tensor) -> dict[str, Terms]:
        """The squared error of one pixel, without a divergence."""
        return {"trivial": Terms((scene.components[:, 0, 0, 0, 0] - images[:, 0, 0, 0]).square(), {})}


def callbacks_of_fit(folder: Path) -> list[pl.Callback]:
    """As `commands/fit.py` adds them."""
    never = CheckpointOptions(last_every=10**9, keep_every=None)
    return [
        *(Pictures(num_images=0), PredictionWriter(folder), RunCheckpoints(folder, never), StopOnSignal()),
        *(Rollback(folder, RollbackOptions()), ContinueLog(), Throughput(), RunIdentity()),
    ]


class Meter(pl.Callback):
    """Takes the time of the processor from step `WARM` to the end.

    Args:
        steps: to the end.
        profile: that runs in between.
    """

    def __init__(self, steps: int, profile: cProfile.Profile | None = None) -> None:
        self.steps, self.profile, self.seconds = steps, profile, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begins and ends."""
        if trainer.global_step == WARM:
            if self.profile is not None:
                self.profile.enable()
            self.seconds = -time.process_time()
        if trainer.global_step == WARM + self.steps:
            self.seconds += time.process_time()
            if self.profile is not None:
                self.profile.disable()


def milliseconds(
    make: Callable[[], pl.LightningModule],
    callbacks: list[pl.Callback],
    steps: int = STEPS,
    profile: cProfile.Profile | None = None,
) -> float:
    """Of a step."""
    torch.manual_seed(0)
    meter, total = Meter(steps, profile), WARM + steps
    without_empty_hooks(callbacks)
    saves = {"enable_checkpointing": True, "plugins": [DurableCheckpointIO()]} if callbacks else {}
    trainer = trainer_on(torch.device("cpu"), max_steps=total, callbacks=[*callbacks, meter], **saves)
    trainer.fit(make(), Batches((2, 3, 4, 4), total).loader())
    return meter.seconds / steps * 1e3


def main(given: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="list functions, for fit's callbacks")
    arguments = parser.parse_args(given)
    quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, tuple[Callable[[], pl.LightningModule], Callable[[], list[pl.Callback]]]] = {
            "bare Lightning": (Bare, list),
            "gate and GECO": (Trivial, list),
            "as fit": (Trivial, lambda: callbacks_of_fit(Path(folder))),
        }
        for name, (make, callbacks) in ways.items():
            profile = cProfile.Profile()
            milliseconds(make, callbacks(), COUNTED, profile)
            print(f"{name}: {pstats.Stats(profile).total_calls / COUNTED:.0f} calls a step", flush=True)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, (make, callbacks) in ways.items():
                found[name].append(milliseconds(make, callbacks()))
        for name, values in found.items() if arguments.rounds else ():
            more = min(values) - min(found["bare Lightning"])
            print(f"{name}: {min(values):.2f} ms a step, {more:+.2f} ms")
        if arguments.profile:
            profile = cProfile.Profile()
            milliseconds(Trivial, callbacks_of_fit(Path(folder)), STEPS, profile)
            pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
