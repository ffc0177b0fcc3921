"""The running scores of an evaluation."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_genesis.metrics import Convention, PerImageMean, segmentation_metrics
from lightning_genesis.metrics.used import used_on_any_rank
from lightning_genesis.scene import MaskKind, Scene, Terms

IMAGE_MEANS = (
    *("elbo", "bits_per_dim", "nll", "kl", "mse", "num_active", "num_active_mae"),
    *("importance_bound", "importance_bits_per_dim"),
)
"""What is averaged over the images of an evaluation, besides the scores of the segmentation."""
KINDS: tuple[MaskKind, ...] = ("decoded", "attention")


def means_of_terms(terms: Mapping[str, Terms], num_dimensions: int) -> dict[str, Tensor]:
    """What is logged of a training step's terms, by name: means over the batch, nats per image.

    Args:
        terms: of every branch; the name of a branch stands in the names only where there are several.
        num_dimensions: numbers in one image, 3 H W.
    """
    values: dict[str, Tensor] = {}
    for branch, term in terms.items():
        prefix = "train" if len(terms) == 1 else f"train/{branch}"
        values[f"{prefix}/nll"] = term.nll.mean()
        values[f"{prefix}/nll_per_dim"] = term.nll.mean() / num_dimensions
        values[f"{prefix}/kl"] = term.total_kl.mean()
        values.update({f"{prefix}/kl_{name}": kl.mean() for name, kl in term.kl.items()})
    return values


class RunningMeans:
    """Means by name over the micro-batches of a step, on the device."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Starts over."""
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds those of a micro-batch; the means so far."""
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
        self._count += 1
        return {name: value / self._count for name, value in self._sums.items()}


class Scores(nn.Module):
    """Means over images, and the segmentation's scores by decoded and by attention masks, for a stage.

    Args:
        stage: "val" or "test", the first part of every name.
        num_slots: number of slots K.
        num_background: ids below it are background.
        convention: edge cases, a name in `metrics.CONVENTIONS`.
        own: names of means that only this model has.
    """

    def __init__(
        self, stage: str, num_slots: int, num_background: int, convention: Convention, own: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.stage = stage
        self.means = nn.ModuleDict({name: PerImageMean() for name in (*IMAGE_MEANS, *own)})
        scores = segmentation_metrics(num_slots, num_background, convention)
        self.decoded = scores.clone(prefix=f"{stage}/")
        self.attention = scores.clone(prefix=f"{stage}/", postfix="_attention")

    def update(self, values: Mapping[str, Tensor], scene: Scene, segmentation: Tensor | None) -> None:
        """Adds a batch.

        Args:
            values: by name, each `[B]`.
            scene: of the batch.
            segmentation: true instance ids `[B, H', W']`, or None.
        """
        for name, value in values.items():
            cast(PerImageMean, self.means[name]).update(value)
        if segmentation is None:
            return
        for kind in KINDS if scene.attention_log_masks is not None else KINDS[:1]:
            scores = cast(MetricCollection, getattr(self, kind))
            scores.update(scene.segmentation(kind), segmentation)

    def used(self, device: torch.device) -> dict[str, Metric]:
        """By the names they are logged by, the metrics that any rank has updated; all ranks call this."""
        metrics = {f"{self.stage}/{name}": cast(Metric, metric) for name, metric in self.means.items()}
        for kind in KINDS:
            scores = cast(MetricCollection, getattr(self, kind))
            metrics.update(
                (str(name), metric) for name, metric in scores.items(keep_base=False, copy_state=False)
            )
        return {name: metrics[name] for name in used_on_any_rank(metrics, device)}
