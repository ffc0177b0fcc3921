"""The images that a test runs over: what they are, and which of them a protocol takes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from data_modules.store import Store

IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class EvaluatedSplit:
    """The split behind a test's loader."""

    dataset: Any
    name: str
    """Name of the data module, or its class's."""
    split: str
    manifest: dict[str, Any]
    """Of the store; empty where the dataset is none."""
    folder: Path | None
    """Of the store."""

    @classmethod
    def of(cls, trainer: pl.Trainer) -> "EvaluatedSplit":
        """That of a Trainer which is testing."""
        loaders: Any = trainer.test_dataloaders
        dataset = (loaders[0] if isinstance(loaders, list) else loaders).dataset
        return cls.of_dataset(dataset, getattr(trainer, "datamodule", None))

    @classmethod
    def of_dataset(cls, dataset: Any, data: Any) -> "EvaluatedSplit":
        """That of a dataset of a data module."""
        store = getattr(dataset, "store", None)
        manifest: dict[str, Any] = store.manifest if isinstance(store, Store) else {}
        return cls(
            dataset,
            name=manifest.get("name") or getattr(data, "name", None) or type(dataset).__name__,
            split=str(manifest.get("split") or getattr(data, "test_split", "test")),
            manifest=manifest,
            folder=store.path if isinstance(store, Store) else None,
        )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def settings(self) -> dict[str, Any]:
        """What the data depend on, as the store has it."""
        return self.manifest.get("settings", {})

    @property
    def synthetic(self) -> bool:
        """Whether the images are our own stand-in for a publisher's."""
        return bool(self.manifest.get("source", {}).get("synthetic", False))

    @property
    def remarks(self) -> list[str]:
        """In what the data differ from the paper's, a line each."""
        source = self.manifest.get("source", {})
        lines = [f"data: {tag}" for tag in self.settings.get("differs_from_paper", [])]
        lines += [f"data: {source['note']}"] if "note" in source else []
        if "drawn by formula" in str(source.get("sprites")):
            lines.append(f"data: sprites {source['sprites']}")
        return lines

    def sha256(self) -> str:
        """Digest of the images: the manifest's, which has checksums of them, else of every image's bytes."""
        if self.manifest:
            return str(self.dataset.store.digest)
        digest = hashlib.sha256()
        for first in range(0, len(self), IMAGES_AT_ONCE):
            batch = self.dataset.__getitems__(list(range(first, min(first + IMAGES_AT_ONCE, len(self)))))
            digest.update(batch["image"].numpy().tobytes())
        return digest.hexdigest()


def choose_images(length: int, count: int | None, seed: int = 0) -> list[int]:
    """Positions of `count` of `length` images, drawn once and for all, in order; all for None, or fewer.

    With the same seed, a smaller choice is part of a larger one.
    """
    return sorted(np.random.default_rng(seed).permutation(length)[:count].tolist())
