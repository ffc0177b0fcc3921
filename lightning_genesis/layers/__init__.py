"""Blocks that several models share, or that stand alone."""

from lightning_genesis.layers.autoregressive_prior import AutoregressivePrior
from lightning_genesis.layers.broadcast import (
    BroadcastDecoder,
    TransposedConvDecoder,
    coordinate_grid,
    spatial_broadcast,
)
from lightning_genesis.layers.component_vae import ComponentVAE
from lightning_genesis.layers.gated_conv import GatedComponentVAE, GatedConv, GatedDecoder, GatedEncoder
from lightning_genesis.layers.ic_sbp import InstanceColouringSBP
from lightning_genesis.layers.matching import slot_order
from lightning_genesis.layers.scene_encoder import SequenceEncoder, SetAttention, SetEncoder
from lightning_genesis.layers.slot_attention import PositionEmbedding, SlotAttentionModule
from lightning_genesis.layers.slot_sequence import CorrelatedScale, ScenePrior
from lightning_genesis.layers.stick_breaking import stick_breaking
from lightning_genesis.layers.unet import UNet

__all__ = [
    "AutoregressivePrior",
    "BroadcastDecoder",
    "ComponentVAE",
    "CorrelatedScale",
    "GatedComponentVAE",
    "GatedConv",
    "GatedDecoder",
    "GatedEncoder",
    "InstanceColouringSBP",
    "PositionEmbedding",
    "ScenePrior",
    "SequenceEncoder",
    "SetAttention",
    "SetEncoder",
    "SlotAttentionModule",
    "TransposedConvDecoder",
    "UNet",
    "coordinate_grid",
    "slot_order",
    "spatial_broadcast",
    "stick_breaking",
]
