"""Likelihoods, divergences and the objectives that balance them."""

from lightning_genesis.objectives.base import Objective
from lightning_genesis.objectives.divergence import gaussian_kl, mask_kl, sampled_gaussian_kl
from lightning_genesis.objectives.fixed_beta import FixedBeta
from lightning_genesis.objectives.geco import GECO
from lightning_genesis.objectives.likelihood import gaussian_nll, mixture_nll

__all__ = [
    "GECO",
    "FixedBeta",
    "Objective",
    "gaussian_kl",
    "gaussian_nll",
    "mask_kl",
    "mixture_nll",
    "sampled_gaussian_kl",
]
