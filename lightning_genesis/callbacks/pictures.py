"""Pictures of what a model sees and dreams, the same in every logger and as PNG files."""

from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from data_modules.base import Split
from lightning_genesis.bounds import check_number
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.figures import imagination_pairs, random_walk, walk_frames, write_gif
from lightning_genesis.figures.drawing import mask_grid, reconstruction_grid, sample_grid, write_picture
from lightning_genesis.models.pictures import evaluating
from lightning_genesis.runs.loggers import RunWandbLogger
from lightning_genesis.scene import IndexedNoise, Scene

SAMPLE_SEED = 1
"""Samples of different steps come from the same noise, so that they can be compared."""

SHOWS = {
    "initial_masks": "image, segmentation and every slot's attention mask",
    "reconstructions": "image, reconstruction, segmentation, slots",
    "imagination": "image, reconstruction and its masks, imagined scene and its masks",
    "samples": "sample from the prior, its masks, slots",
    "random_walk": "a walk through the prior",
}
"""What is seen in a row of each picture, or in the film, for its caption in W&B."""


class Pictures(pl.Callback):
    """Draws images from all over the evaluation split and samples from the prior.

    `reconstructions` has one row per image: input, reconstruction, segmentation by decoded and by attention
    masks, then every slot's masked component. `samples` likewise. `imagination`, for SRI, has the imagined
    scene beside the reconstruction. `initial_masks` shows the attention masks before the first step: blobs of
    similar size that tile the image (GENESIS-V2, Figure 9) say that an installation works. `random_walk`, at
    the end of training and in tests, is an animation: a walk through the prior. All go to `pictures/` in the
    run's folder, to W&B and, but for the animation, to TensorBoard.

    Args:
        num_images: rows of each picture; 0 draws none.
        every: steps between pictures; drawn with the first validation that falls due.
        temperature: of the samples.
        walk_frames: frames of the random walk; 0 for no walk.

    Raises:
        ConfigurationError: if a number is out of its range.
    """

    def __init__(
        self, num_images: int = 8, every: int = 25_000, temperature: float = 1.0, walk_frames: int = 60
    ) -> None:
        check_number("pictures.num_images", num_images, 0, whole=True)
        check_number("pictures.every", every, 1, whole=True)
        check_number("pictures.temperature", temperature, 0)
        check_number("pictures.walk_frames", walk_frames, 0, whole=True)
        self.num_images, self.every, self.temperature = num_images, every, temperature
        self.walk_frames = walk_frames
        self._drawn = -1

    def state_dict(self) -> dict[str, Any]:
        """Which pictures a resumed run has already."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self._drawn = state_dict["drawn"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the initial masks of a run that starts."""
        if trainer.global_step or not self._draws(trainer):
            return
        if not len(cast(Any, trainer).datamodule.dataset("val")):  # a folder may have no validation images
            return
        images, scene = self._scene(trainer, pl_module, "val")
        if scene.attention_log_masks is not None:
            self._write(trainer, "initial_masks", mask_grid(images, scene), 0)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws with the first batch, if pictures are due."""
        due = trainer.state.fn != "fit" or trainer.global_step // self.every > self._drawn
        if batch_idx == 0 and due and not trainer.sanity_checking:
            self._drawn = trainer.global_step // self.every
            self._draw(trainer, pl_module, trainer.global_step)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws with the first batch."""
        if batch_idx == 0:
            self._draw(trainer, pl_module, None)
            self._walk(trainer, pl_module, "test_random_walk")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the random walk of the trained model."""
        self._walk(trainer, pl_module, "random_walk")

    def _draws(self, trainer: pl.Trainer) -> bool:
        return bool(not trainer.fast_dev_run and trainer.is_global_zero and self.num_images)

    def _draw(self, trainer: pl.Trainer, pl_module: Any, step: int | None) -> None:
        if not self._draws(trainer):
            return
        data = cast(Any, trainer).datamodule
        images, scene = self._scene(trainer, pl_module, "val" if step is not None else data.test_split)
        stage = "" if step is not None else "test_"
        self._write(trainer, f"{stage}reconstructions", reconstruction_grid(images, scene), step)
        if "imagination" in scene.auxiliary:
            self._write(trainer, f"{stage}imagination", imagination_pairs(images, scene), step)
        rows = range(self.num_images)
        try:
            noise = IndexedNoise(SAMPLE_SEED, rows)
            samples = pl_module.sample(self.num_images, temperature=self.temperature, noise=noise)
        except ConfigurationError:  # a model without a prior over scenes
            return
        self._write(trainer, f"{stage}samples", sample_grid(samples), step)

    def _scene(self, trainer: pl.Trainer, pl_module: Any, split: Split) -> tuple[Tensor, Scene]:
        examples = cast(Any, trainer).datamodule.examples(split, self.num_images)
        batch = {name: examples[name].to(pl_module.device) for name in ("image", "index")}
        batch = pl_module.on_after_batch_transfer(batch, 0)
        with evaluating(pl_module):
            return batch["image"], pl_module.predict_step(batch, 0)

    def _walk(self, trainer: pl.Trainer, pl_module: Any, name: str) -> None:
        if not (self._draws(trainer) and self.walk_frames):
            return
        options: dict[str, Any] = {"seed": SAMPLE_SEED, "temperature": self.temperature}
        try:
            with evaluating(pl_module):
                frames = walk_frames(random_walk(pl_module, self.walk_frames, **options))
        except ConfigurationError:  # a model without a prior over scenes
            return
        path = Path(trainer.default_root_dir) / "pictures" / f"{name}.gif"
        write_gif(path, frames)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                step = _step_of(logger, trainer)
                logger.log_video(f"pictures/{name}", [path], step=step, caption=[_caption(name, step)])

    def _write(self, trainer: pl.Trainer, name: str, picture: Tensor, step: int | None) -> None:
        folder = Path(trainer.default_root_dir) / "pictures"
        file_name = f"{name}.png" if step is None or name == "initial_masks" else f"{name}-{step:06d}.png"
        write_picture(folder / file_name, picture)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                at = _step_of(logger, trainer) if step is None else step
                logger.log_image(f"pictures/{name}", [picture.cpu()], step=at, caption=[_caption(name, at)])
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"pictures/{name}", picture, step or 0)


def _step_of(logger: WandbLogger, trainer: pl.Trainer) -> int:
    """The step of the weights, which in a test is the checkpoint's."""
    at_step = logger.at_step if isinstance(logger, RunWandbLogger) else None
    return trainer.global_step if at_step is None else at_step


def _caption(name: str, step: int) -> str:
    kind = name.removeprefix("test_")
    return f"step {step:,}: {SHOWS[kind]}"
