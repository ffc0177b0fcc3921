"""Import of the authors' released checkpoints."""

from lightning_genesis.interop.known_models import OFFICIAL
from lightning_genesis.interop.official import import_official, load_official

__all__ = ["OFFICIAL", "import_official", "load_official"]
