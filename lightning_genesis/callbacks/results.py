"""Writes what a test has found into the run's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_genesis.callbacks.fid import FIDCallback
from lightning_genesis.callbacks.protocol import ProtocolScores
from lightning_genesis.callbacks.structure import StructureCallback
from lightning_genesis.evaluation.protocols import LIKELIHOOD, general_deviations
from lightning_genesis.evaluation.split import EvaluatedSplit
from lightning_genesis.runs.results import MAY_DIFFER, TRAINING_ONLY, Checkpoint, Result, write_result

STAGE = "test/"
OF_THEIR_OWN = ("num_slots", "image_size", "num_background", "std", "metric_convention")
"""Model values that a result's options have beside the others, the last as `convention`."""


class ResultWriter(pl.Callback):
    """One result for the whole split and one for the protocol's images; see `docs/metrics.md`.

    What is said of samples, such as FID, is in both.

    Args:
        folder: the run's.
        experiment: what runs of several seeds have in common.
        seed: of the training.
        checkpoint: the weights; None for untrained ones.
        options: what else the numbers depend on, plain data.
    """

    def __init__(
        self,
        folder: Path,
        experiment: str,
        seed: int | None,
        checkpoint: Checkpoint | None,
        options: Mapping[str, Any],
    ) -> None:
        self.folder, self.experiment = folder, experiment
        self.seed, self.checkpoint, self.options = seed, checkpoint, options
        self._num_images = 0
        self.written: list[tuple[Path, Result]] = []
        """Files and what is in them; that of a protocol comes last."""

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts anew."""
        self._num_images, self.written = 0, []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the images of a batch."""
        self._num_images += len(batch["index"])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Counts over all ranks."""
        here = torch.tensor(self._num_images, device=pl_module.device)
        self._num_images = int(pl_module.all_gather(here).sum())

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes, once everything is logged; on rank zero."""
        if not trainer.is_global_zero:
            return
        split = EvaluatedSplit.of(trainer)
        scored = [found for found in trainer.callbacks if isinstance(found, FIDCallback) and found.values]
        samples, about = (scored[0].values, scored[0].options) if scored else ({}, {})
        structures = [found for found in trainer.callbacks if isinstance(found, StructureCallback)]
        samples = {name: value for found in structures for name, value in found.values.items()} | samples
        hyperparameters = pl_module.hparams
        shared: dict[str, Any] = {
            "model": type(pl_module).__name__,
            "run": self.folder.name,
            "experiment": self.experiment,
            "dataset": split.name,
            "synthetic": split.synthetic,
            "split": split.split,
            "seed": self.seed,
            "checkpoint": self.checkpoint,
        }
        options: dict[str, Any] = {
            **self.options,
            "num_slots": pl_module.num_slots,
            "image_size": pl_module.image_size,
            "num_background": hyperparameters["num_background"],
            "std": hyperparameters.get("std"),
            # all, since any may be given anew for a test: the options tell such a result from the others
            "model": {
                name: value
                for name, value in hyperparameters.items()
                if name not in (*TRAINING_ONLY, *MAY_DIFFER, *OF_THEIR_OWN)
            },
            "precision": str(trainer.precision),
            "likelihood": LIKELIHOOD,
            "data": split.settings,
            "data_sha256": split.manifest.get("sha256"),
            "fid": about or None,
            "structure": next((found.options for found in structures if found.options), None),
        }
        deviations = general_deviations(split, about)
        logged: dict[str, float | None] = {
            name.removeprefix(STAGE): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(STAGE)
        }
        logged |= samples  # in double precision
        whole = Result(
            **shared,
            num_images=self._num_images,
            metrics=logged,
            options={**options, "convention": hyperparameters["metric_convention"]},
            deviations=deviations,
        )
        self._write(split.split, whole)
        for scores in trainer.callbacks:
            if isinstance(scores, ProtocolScores):
                rules = scores.protocol
                differing = rules.deviations(
                    split, scores.num_images, pl_module.image_size, scores.target_size
                )
                of_samples = {name: value for name, value in logged.items() if name not in scores.values}
                result = Result(
                    **shared,
                    protocol=scores.name,
                    num_images=scores.num_images,
                    metrics={**of_samples, **scores.values},
                    options={
                        **options,
                        "convention": rules.convention,
                        "enlarge": rules.enlarge,
                        "selection_seed": rules.selection_seed,
                    },
                    deviations=[*differing, *deviations],
                    rules=rules.rules(split),
                )
                self._write(f"{split.split}-{scores.name}", result)

    def _write(self, name: str, result: Result) -> None:
        self.written.append((write_result(self.folder, name, result), result))
