"""The systems of the papers, one file each."""

from lightning_genesis.models.base import SceneModel
from lightning_genesis.models.emorl import EfficientMORL
from lightning_genesis.models.flow_prior import FlowGenesisV2
from lightning_genesis.models.genesis import Genesis
from lightning_genesis.models.genesis_v2 import GenesisV2
from lightning_genesis.models.monet import MONet
from lightning_genesis.models.scene_variable import SceneGenesis, SceneGenesisV2
from lightning_genesis.models.slot_attention import SlotAttention
from lightning_genesis.models.sri import SRI
from lightning_genesis.models.vae import VAE

__all__ = [
    "SRI",
    "VAE",
    "EfficientMORL",
    "FlowGenesisV2",
    "Genesis",
    "GenesisV2",
    "MONet",
    "SceneGenesis",
    "SceneGenesisV2",
    "SceneModel",
    "SlotAttention",
]
