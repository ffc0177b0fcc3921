"""Likelihoods, divergences and the objectives that balance them."""

from lightning_genesis.objectives.base import Objective
from lightning_genesis.objectives.divergence import (
    gaussian_kl,
    mask_kl,
    sampled_gaussian_kl,
    sampled_kl_to_standard,
)
from lightning_genesis.objectives.fixed_beta import FixedBeta
from lightning_genesis.objectives.geco import GECO
from lightning_genesis.objectives.likelihood import (
    Likelihood,
    check_likelihood,
    gaussian_nll,
    mixture_nll,
    scene_nll,
)
from lightning_genesis.objectives.self_setting_geco import SelfSettingGECO
from lightning_genesis.objectives.softplus_geco import SoftplusGECO

__all__ = [
    "GECO",
    "FixedBeta",
    "Likelihood",
    "Objective",
    "SelfSettingGECO",
    "SoftplusGECO",
    "check_likelihood",
    "gaussian_kl",
    "gaussian_nll",
    "mask_kl",
    "mixture_nll",
    "sampled_gaussian_kl",
    "sampled_kl_to_standard",
    "scene_nll",
]
