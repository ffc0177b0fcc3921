"""Blocks that several models share, or that stand alone."""

from lightning_genesis.layers.autoregressive_prior import AutoregressivePrior
from lightning_genesis.layers.broadcast import TransposedConvDecoder, coordinate_grid, spatial_broadcast
from lightning_genesis.layers.ic_sbp import InstanceColouringSBP
from lightning_genesis.layers.unet import UNet

__all__ = [
    "AutoregressivePrior",
    "InstanceColouringSBP",
    "TransposedConvDecoder",
    "UNet",
    "coordinate_grid",
    "spatial_broadcast",
]
