"""The Inception network of FID, with pytorch-fid's weights and the papers' rounding to 8 bits."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from pytorch_fid.inception import (
    FID_WEIGHTS_URL,
    FIDInceptionA,
    FIDInceptionC,
    FIDInceptionE_1,
    FIDInceptionE_2,
)
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import Inception3

from data_modules.raw.download import RawFile, download
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.precision import full_precision

Rounding = Literal["truncate", "round"]

WEIGHTS = RawFile(
    name=FID_WEIGHTS_URL.rpartition("/")[2],
    url=FID_WEIGHTS_URL,
    bytes=95_628_359,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
"""pytorch-fid's file: TensorFlow's network of 2015-12-05."""
NAMES = (WEIGHTS.name, WEIGHTS.name.replace("pt_", "weights-"))
"""What pytorch-fid calls it, and torch-fidelity."""
SIDE = 299
LEVELS: Mapping[Rounding, Callable[[Tensor], Tensor]] = {"truncate": torch.floor, "round": torch.round}


def to_bytes(images: Tensor, rounding: Rounding = "truncate") -> Tensor:
    """Images in [0, 1] as they come out of an 8-bit file, uint8 of the same shape.

    Args:
        images: any shape; values outside [0, 1] are clamped (the published code lets them wrap around).
        rounding: `truncate`, the GENESIS, GENESIS-V2 and SRI papers' floor of 255 x; or `round`, to the
            nearest level. Images that come from bytes are the same under both.
    """
    return LEVELS[rounding](images.float().clamp(0, 1) * 255).to(torch.uint8)


class InceptionFeatures(nn.Module):
    """Features of images as in pytorch-fid: the last average pool of its Inception network.

    Bilinear to 299 x 299 (pixel centres, no antialias), scaled to [-1, 1], float32 without TF32 whatever
    surrounds it. Frozen, always in evaluation mode, random before `load_inception` fills it.
    """

    num_features = 2048
    identity = WEIGHTS.sha256
    """What tells these features from another network's."""

    def __init__(self) -> None:
        super().__init__()
        network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        network.Mixed_5b = FIDInceptionA(192, pool_features=32)
        network.Mixed_5c = FIDInceptionA(256, pool_features=64)
        network.Mixed_5d = FIDInceptionA(288, pool_features=64)
        network.Mixed_6b = FIDInceptionC(768, channels_7x7=128)
        network.Mixed_6c = FIDInceptionC(768, channels_7x7=160)
        network.Mixed_6d = FIDInceptionC(768, channels_7x7=160)
        network.Mixed_6e = FIDInceptionC(768, channels_7x7=192)
        network.Mixed_7b = FIDInceptionE_1(1280)
        network.Mixed_7c = FIDInceptionE_2(2048)
        self.network = network
        self.requires_grad_(False)
        self.eval()

    def fill(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over weights in pytorch-fid's names and drops the classifier, which is not used.

        Raises:
            RuntimeError: if names or shapes differ.
        """
        self.network.load_state_dict(weights)
        self.network.fc = nn.Identity()

    def train(self, mode: bool = True) -> "InceptionFeatures":
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of images in [0, 1], float32 `[B, 3, H, W]` to `[B, 2048]`."""
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with full_precision(images), exact:
            enlarged = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            return self.network(2 * enlarged - 1)


def find_weights(path: str | Path | None = None, fetch: bool = False) -> Path | None:
    """The file of the Inception weights.

    Args:
        path: the file, if it is known; else torch hub's folder is searched for pytorch-fid's and
            torch-fidelity's copies.
        fetch: download it to there if it is nowhere.

    Returns:
        the file, or None if there is none.

    Raises:
        ConfigurationError: if `path` is no file.
        DataError: if the download fails.
    """
    if path is not None:
        if not Path(path).is_file():
            raise ConfigurationError(f"fid.weights: {path}: no such file, expected {WEIGHTS.name}")
        return Path(path)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    if not fetch:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns) as progress:
        return download(WEIGHTS, folder, progress, remedy="or give the file with --fid.weights")


def load_inception(path: str | Path) -> InceptionFeatures:
    """The network with the weights of a file, which has to be pytorch-fid's to the last bit.

    Raises:
        ConfigurationError: if it is another file.
    """
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != WEIGHTS.sha256:
            raise ConfigurationError(
                f"{path}: SHA-256 {found}, expected {WEIGHTS.sha256} of pytorch-fid's {WEIGHTS.name}: "
                "other weights give another number, which is not the papers' FID"
            )
        file.seek(0)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    features = InceptionFeatures()
    features.fill(weights)
    return features
