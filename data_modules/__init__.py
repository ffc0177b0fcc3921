"""Datasets of scenes for Lightning: each prepares itself once and gives batches as plain dicts."""

from data_modules.base import SceneDataModule
from data_modules.folder import ImageFolder
from data_modules.multi_dsprites import MultiDSprites
from data_modules.store import DataError

__all__ = ["DataError", "ImageFolder", "MultiDSprites", "SceneDataModule"]
