"""Scores a protocol's images, a part of those that a test goes through."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_genesis.evaluation.protocols import Protocol
from lightning_genesis.evaluation.split import EvaluatedSplit, choose_images
from lightning_genesis.metrics import PerImageMean, SegmentationMetrics, SummedSquaredError
from lightning_genesis.metrics.enlarged_segmentation import enlarged_segmentation
from lightning_genesis.metrics.used import used_on_any_rank
from lightning_genesis.scene import MaskKind, Scene

KINDS: dict[MaskKind, str | None] = {"decoded": None, "attention": "_attention"}
"""Masks that are scored, and what that adds to a score's name."""


class ProtocolScores(pl.Callback):
    """Logs every score of the protocol's images as `NAME/...`, beside `test/...` of the whole split.

    Args:
        name: the protocol's.
        protocol: what it says.
    """

    def __init__(self, name: str, protocol: Protocol) -> None:
        self.name, self.protocol = name, protocol
        self.values: dict[str, float] = {}
        """What was found, by name."""
        self.num_images = 0
        """Images behind it, on all ranks."""
        self.target_size: int | None = None
        """Side of the ground truth, if there is any."""

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Chooses the images."""
        split = EvaluatedSplit.of(trainer)
        chosen = choose_images(len(split), self.protocol.num_images, self.protocol.selection_seed)
        self._chosen = torch.zeros(len(split), dtype=torch.bool)
        self._chosen[chosen] = True
        self.num_images, self.target_size = 0, None
        self._means: dict[str, PerImageMean] = {
            name: PerImageMean().to(pl_module.device) for name in pl_module.scores["test"].means
        }
        self._summed = SummedSquaredError().to(pl_module.device) if self.protocol.matched else None
        arguments = (pl_module.num_slots, pl_module.hparams["num_background"], self.protocol.convention)
        self._scores: dict[MaskKind, SegmentationMetrics] = {
            kind: SegmentationMetrics(*arguments, postfix=postfix, matched=self.protocol.matched).to(
                pl_module.device
            )
            for kind, postfix in KINDS.items()
        }

    @torch.no_grad()
    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds what the model said about the chosen images of a batch."""
        rows = self._chosen[batch["index"].cpu()].nonzero().squeeze(1).to(pl_module.device)
        if not len(rows):
            return
        self.num_images += len(rows)
        scene: Scene = outputs["scene"]
        for name, values in outputs["values"].items():
            self._means[name].update(values[rows])
        if self._summed is not None:
            self._summed.update(scene.reconstruction[rows], batch["image"][rows])
        if "segmentation" not in batch or pl_module.num_slots == 1:
            return
        target: Tensor = batch["segmentation"]
        self.target_size = target.shape[-1]
        for kind, scores in self._scores.items():
            if kind == "decoded" or scene.attention_log_masks is not None:
                scores.update(self._segmentation(scene, kind, target)[rows], target[rows])

    def _segmentation(self, scene: Scene, kind: MaskKind, target: Tensor) -> Tensor:
        height, width = target.shape[-2:]
        log_masks = scene.log_masks_of(kind)
        if self.protocol.enlarge == "bicubic" and (height, width) != log_masks.shape[-2:]:
            return enlarged_segmentation(log_masks, height, width)
        return scene.segmentation(kind)

    @torch.no_grad()
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Logs the scores over all ranks."""
        metrics: dict[str, Metric] = dict(self._means)
        if self._summed is not None:
            metrics["mse_sum"] = self._summed
        for scores in self._scores.values():
            metrics.update(scores.items(keep_base=False, copy_state=False))
        used = used_on_any_rank(metrics, pl_module.device)
        self.values = {name: float(metrics[name].compute()) for name in used}
        counts = torch.tensor([self.num_images, self.target_size or 0], device=pl_module.device)
        everywhere = pl_module.all_gather(counts).reshape(-1, 2)
        self.num_images = int(everywhere[:, 0].sum())
        self.target_size = int(everywhere[:, 1].max()) or None
        for name, value in self.values.items():
            pl_module.log(f"{self.name}/{name}", value, sync_dist=True)
        del self._means, self._scores, self._summed
