"""Datasets of scenes for Lightning: each prepares itself once and gives batches as plain dicts."""

from data_modules.apc import APC
from data_modules.base import SceneDataModule, StorePlan
from data_modules.clevr6 import Clevr6
from data_modules.clevrtex import Clevrtex
from data_modules.emorl_hdf5 import EmorlHDF5
from data_modules.folder import ImageFolder
from data_modules.gqn import GQN
from data_modules.multi_dsprites import MultiDSprites
from data_modules.multi_dsprites_tfrecords import MultiDSpritesTFRecords
from data_modules.object_centric_hdf5 import ObjectCentricHDF5
from data_modules.objects_room import ObjectsRoom
from data_modules.shapestacks import ShapeStacks
from data_modules.sketchy import Sketchy
from data_modules.store import DataError
from data_modules.tetrominoes import Tetrominoes

__all__ = [
    "APC",
    "GQN",
    "Clevr6",
    "Clevrtex",
    "DataError",
    "EmorlHDF5",
    "ImageFolder",
    "MultiDSprites",
    "MultiDSpritesTFRecords",
    "ObjectCentricHDF5",
    "ObjectsRoom",
    "SceneDataModule",
    "ShapeStacks",
    "Sketchy",
    "StorePlan",
    "Tetrominoes",
]
