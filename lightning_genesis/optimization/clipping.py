"""Clipping gradients, also where Lightning refuses to."""

import pytorch_lightning as pl
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch.optim import Optimizer


def clip_gradients(
    module: pl.LightningModule, optimizer: Optimizer, value: int | float | None, algorithm: str | None
) -> None:
    """Clips as Lightning does, float16 included.

    There Lightning refuses fused optimisers, which unscale gradients after clipping. Ours are unscaled before
    it, by `FiniteGate`.

    Args:
        module: in training.
        optimizer: whose gradients are clipped.
        value: largest norm, or largest number; None or 0 clips nothing.
        algorithm: "norm" of the whole gradient, as by default, or "value".
    """
    plugin = module.trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
        kind = GradClipAlgorithmType(algorithm or "norm")
        Precision.clip_gradients(plugin, optimizer, value or 0.0, kind)
    else:
        module.clip_gradients(optimizer, value, algorithm)
