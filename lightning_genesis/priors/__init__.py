"""Priors over slots that are fitted to any trained model, and the model that samples from one."""

from lightning_genesis.priors.attaching import attach_prior
from lightning_genesis.priors.base import SetPrior
from lightning_genesis.priors.fitting import FitOptions, fit_prior
from lightning_genesis.priors.flow import SceneSetFlowPrior, SetFlowPrior
from lightning_genesis.priors.gaussian import (
    DiagonalGaussian,
    FullGaussian,
    GaussianMixture,
    StandardNormal,
)
from lightning_genesis.priors.sequence import SequencePrior

PRIORS: dict[str, type[SetPrior]] = {
    kind.kind: kind
    for kind in (
        StandardNormal,
        DiagonalGaussian,
        FullGaussian,
        GaussianMixture,
        SequencePrior,
        SetFlowPrior,
        SceneSetFlowPrior,
    )
}
"""Every kind of prior by its name."""

__all__ = [
    "PRIORS",
    "DiagonalGaussian",
    "FitOptions",
    "FullGaussian",
    "GaussianMixture",
    "SceneSetFlowPrior",
    "SequencePrior",
    "SetFlowPrior",
    "SetPrior",
    "StandardNormal",
    "attach_prior",
    "fit_prior",
]
