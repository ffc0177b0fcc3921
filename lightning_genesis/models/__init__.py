"""The systems of the papers, one file each."""

from lightning_genesis.models.base import SceneModel
from lightning_genesis.models.genesis_v2 import GenesisV2

__all__ = ["GenesisV2", "SceneModel"]
