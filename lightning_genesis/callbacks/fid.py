"""FID and KID of a model's samples at the end of a test."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from data_modules.base import Split
from lightning_genesis.bounds import check_number
from lightning_genesis.callbacks.pictures import SAMPLE_SEED
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.evaluation.inception import NAMES, Rounding, find_weights, load_inception, to_bytes
from lightning_genesis.evaluation.protocols import NUM_IMAGES
from lightning_genesis.evaluation.reference_features import read_features, write_features
from lightning_genesis.evaluation.split import EvaluatedSplit, choose_images
from lightning_genesis.metrics.fid import FrechetInceptionDistance
from lightning_genesis.metrics.kid import KernelInceptionDistance
from lightning_genesis.scene import IndexedNoise

SUFFIX: dict[Rounding, str] = {"truncate": "", "round": "_round"}


class FIDCallback(pl.Callback):
    """Compares samples with test images: `test/fid`, `test/kid`, and `..._round` with the other rounding.

    Defaults are the papers': 10 000 samples at temperature 1 against 10 000 test images, truncated to 8 bits.
    Where the split has fewer images, as many samples are taken, and the result says so: FID depends on the
    number. Sample `i` has noise of its own, whatever the batches and ranks; the first ones are those of the
    pictures. Features of the images are computed once and kept beside the data.

    Skipped, with one line that says why, where there are no Inception weights or the model cannot sample.

    Args:
        num_images: images, and samples; 0 computes nothing.
        weights: pytorch-fid's file of Inception weights; by default it is looked for in torch hub's folder.
        download: get the weights (96 MB) if they are not there.
        roundings: to 8 bits: `truncate` is the papers', `round` to the nearest level.
        temperature: of the samples.
        batch_size: samples at once, on each rank; changes nothing but speed and float error.
        cache: folder for the features of the images; by default beside the data's store.
        val_and_test: compare with validation and test images together, where the test split alone has fewer
            than the papers' 10 000 (CLEVR6); the result has `splits` in its options.
    """

    def __init__(
        self,
        num_images: int = NUM_IMAGES,
        weights: str | None = None,
        download: bool = False,
        roundings: Sequence[Rounding] = ("truncate", "round"),
        temperature: float = 1.0,
        batch_size: int = 50,
        cache: str | None = None,
        val_and_test: bool = False,
    ) -> None:
        if num_images < 0 or num_images == 1:
            raise ConfigurationError(f"fid.num_images: {num_images}, expected 2 or more, or 0 for no FID")
        if batch_size < 1:
            raise ConfigurationError(f"fid.batch_size: {batch_size}, expected 1 or more")
        check_number("fid.temperature", temperature, 0)
        self.num_images = num_images
        self.weights, self.download = weights, download
        self.roundings: tuple[Rounding, ...] = tuple(dict.fromkeys(roundings))
        self.temperature, self.batch_size = temperature, batch_size
        self.cache = None if cache is None else Path(cache)
        self.val_and_test = val_and_test
        self.values: dict[str, float] = {}
        """What was found, by name; empty where it was skipped."""
        self.options: dict[str, Any] = {}
        """What the values depend on, plain data."""
        self._extractor: nn.Module | None = None

    # ---------------------------------------------------------------- network

    def make_extractor(self, trainer: pl.Trainer) -> nn.Module | None:
        """The network that makes features `[B, D]` of images `[B, 3, H, W]` in [0, 1], or None.

        It has `num_features`, and `identity`, which tells its features from others'.
        """
        # one process asks and fetches; the others read what it has found
        path: Path | None = None
        error: Exception | None = None
        if trainer.is_global_zero:
            try:
                path = find_weights(self.weights, self.download)
            except Exception as problem:  # the other ranks wait for an answer
                error = problem
        path, error = trainer.strategy.broadcast((path, error))
        if error is not None:
            raise error
        if path is None:
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            rank_zero_info(
                f"FID is skipped: no Inception weights in {folder}; put pytorch-fid's {NAMES[0]} there, give "
                "it with --fid.weights FILE, or have it fetched with --fid.download true (96 MB)"
            )
            return None
        return load_inception(path)

    # ---------------------------------------------------------------- hooks

    @torch.no_grad()
    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Decides whether there is something to do, and reads the features of the images if they are kept."""
        self.values, self.options, self._extractor = {}, {}, None
        if trainer.fast_dev_run or not (self.num_images and self.roundings):
            return
        try:
            pl_module.sample(1, noise=IndexedNoise(SAMPLE_SEED, [0]))
        except ConfigurationError as error:
            rank_zero_info(f"FID is skipped: {error}")
            return
        self._split = EvaluatedSplit.of(trainer)
        self._other = self._split_beside(trainer) if self.val_and_test else None
        # images of the other split are numbered behind those that the test goes through
        length = len(self._split) + (0 if self._other is None else len(self._other))
        chosen = choose_images(length, self.num_images)
        if len(chosen) < 2:
            rank_zero_info(f"FID is skipped: {len(chosen)} test images, expected 2 or more")
            return
        extractor = self.make_extractor(trainer)
        if extractor is None:
            return
        self._extractor = extractor.to(pl_module.device)
        self._rows = torch.full((length,), -1)
        self._rows[chosen] = torch.arange(len(chosen))
        self._count = len(chosen)
        size = int(self._extractor.num_features)  # type: ignore[arg-type]
        self._fid = {name: FrechetInceptionDistance(size).to(pl_module.device) for name in self.roundings}
        self._kid = {
            name: KernelInceptionDistance(self._count, size).to(pl_module.device) for name in self.roundings
        }
        self._describe(pl_module)
        self._kept = {name: self._read(trainer, name) for name in self.roundings}
        rank_zero_info(
            f"FID: {self._count:,} images of {' and '.join(self._splits())}, as many samples; "
            "--fid.num_images 0 turns it off"
        )

    @torch.no_grad()
    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds the features of the images that belong to the reference and are not kept yet."""
        missing = [] if self._extractor is None else [name for name in self._kid if not self._kept[name]]
        if missing:
            rows = self._rows[batch["index"].cpu()]
            found = rows >= 0
            if found.any():
                self._add(batch["image"][found.to(pl_module.device)], rows[found], missing, real=True)

    @torch.no_grad()
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draws samples, compares, logs."""
        if self._extractor is None:
            return
        self._add_other(trainer, pl_module)
        counts = torch.stack([metric.num_real for metric in self._kid.values()])
        seen = int(pl_module.all_gather(counts).reshape(-1, len(counts)).sum(dim=0).min())
        if seen == self._count:
            self._sample_and_compare(trainer, pl_module)
        else:
            self.options = {}
            rank_zero_info(
                f"FID is skipped: {seen} of the {self._count} images of its reference were seen; "
                "leave out --trainer.limit_test_batches, or give a smaller --fid.num_images"
            )
        self._extractor = None
        del self._fid, self._kid, self._split, self._other

    # ---------------------------------------------------------------- parts

    def _sample_and_compare(self, trainer: pl.Trainer, pl_module: Any) -> None:
        mine = range(trainer.global_rank, self._count, trainer.world_size)
        for first in range(0, len(mine), self.batch_size):
            index = list(mine[first : first + self.batch_size])
            noise = IndexedNoise(SAMPLE_SEED, index)
            scene = pl_module.sample(len(index), temperature=self.temperature, noise=noise)
            self._add(scene.reconstruction, torch.tensor(index), self.roundings, real=False)
        for name in self.roundings:
            self._compare(trainer, name)
        for metric, value in self.values.items():
            pl_module.log(f"test/{metric}", value, sync_dist=True)

    def _split_beside(self, trainer: pl.Trainer) -> EvaluatedSplit:
        """The one of validation and test split that the test does not go through."""
        data: Any = getattr(trainer, "datamodule", None)
        if data is None:
            raise ConfigurationError("fid.val_and_test: true, expected false where there is no data module")
        name: Split = "val" if data.test_split == "test" else "test"
        return replace(EvaluatedSplit.of_dataset(data.dataset(name), data), split=name)

    def _add_other(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Adds the features of the other split's images, each on one rank."""
        missing = [name for name in self._kid if not self._kept[name]]
        if self._other is None or not missing:
            return
        first = len(self._split)
        chosen = (self._rows[first:] >= 0).nonzero().squeeze(1)[trainer.global_rank :: trainer.world_size]
        for index in chosen.split(self.batch_size):
            batch = self._other.dataset.__getitems__(index.tolist())
            batch = {**batch, "image": batch["image"].to(pl_module.device)}
            images = pl_module.on_after_batch_transfer(batch, 0)["image"]
            self._add(images, self._rows[first + index], missing, real=True)

    def _describe(self, pl_module: Any) -> None:
        assert self._extractor is not None
        splits, digest = self._splits(), self._split.sha256()
        if self._other is not None:
            digest = hashlib.sha256(f"{digest} {self._other.sha256()}".encode()).hexdigest()
        self._manifest = {
            "format": 1,
            "dataset": self._split.name,
            "split": "+".join(splits),
            "split_sha256": digest,
            "num_images": self._count,
            "image_size": pl_module.image_size,
            "weights_sha256": self._extractor.identity,
        }
        self.options = {
            "num_images": self._count,
            "num_samples": self._count,
            "temperature": self.temperature,
            "sample_seed": SAMPLE_SEED,
            "roundings": {f"fid{SUFFIX[name]}": name for name in self.roundings},
            "resize": "bilinear to 299, no antialias",
            "weights_sha256": self._extractor.identity,
            **({} if self._other is None else {"splits": splits}),
        }

    def _splits(self) -> list[str]:
        """Names of the splits whose images are the reference; the one under test comes first."""
        return [part.split for part in (self._split, self._other) if part is not None]

    def _add(self, images: Tensor, rows: Tensor, roundings: Sequence[Rounding], real: bool) -> None:
        """Features of images in [0, 1] `[B, 3, H, W]`, for every rounding."""
        assert self._extractor is not None
        done: list[tuple[Tensor, Tensor]] = []
        for name in roundings:
            pixels = to_bytes(images, name)
            features = next((known for other, known in done if torch.equal(other, pixels)), None)
            if features is None:  # images that come from bytes are the same under all
                features = self._extractor(pixels.float() / 255)
                done.append((pixels, features))
            self._fid[name].update(features, real=real)
            self._kid[name].update(features, rows.to(features.device), real=real)

    def _file(self, rounding: Rounding) -> Path | None:
        """Where the features of the images are kept; None for data without a place of their own."""
        store = self._split.folder
        folder = self.cache or (None if store is None else store.parent / "inception")
        names = self._splits()
        if store is not None:
            names[0] = store.name
        place = "+".join(names)
        return None if folder is None else folder / f"{place}-{self._count}-{rounding}.safetensors"

    def _read(self, trainer: pl.Trainer, rounding: Rounding) -> bool:
        """Takes over what is kept; rank 0 alone, since ranks are added up."""
        features: Tensor | None = None
        error: Exception | None = None
        path = self._file(rounding)
        if trainer.is_global_zero and path is not None and path.is_file():
            try:
                features = read_features(path, {**self._manifest, "rounding": rounding})
            except ConfigurationError as problem:  # the other ranks wait for an answer
                error = problem
        found, error = trainer.strategy.broadcast((features is not None, error))
        if error is not None:
            raise error
        if features is not None:
            fid, kid = self._fid[rounding], self._kid[rounding]
            for rows in torch.arange(len(features)).split(1024):
                some = features[rows].to(fid.device)
                fid.update(some, real=True)
                kid.update(some, rows.to(fid.device), real=True)
        return bool(found)

    def _compare(self, trainer: pl.Trainer, rounding: Rounding) -> None:
        """FID and KID over all ranks; keeps the features of the images."""
        kid = self._kid[rounding]
        if not self._kept[rounding]:
            with kid.sync_context():
                if trainer.is_global_zero:
                    self._keep(kid.real, rounding)
        self.values[f"fid{SUFFIX[rounding]}"] = float(self._fid[rounding].compute())
        self.values[f"kid{SUFFIX[rounding]}"] = float(kid.compute())

    def _keep(self, features: Tensor, rounding: Rounding) -> None:
        path = self._file(rounding)
        if path is None:
            return
        try:
            write_features(path, features, {**self._manifest, "rounding": rounding})
        except OSError as error:
            rank_zero_info(f"{path}: the images' features cannot be kept there ({error.strerror or error})")
