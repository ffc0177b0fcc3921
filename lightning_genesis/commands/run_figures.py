"""The figures of one model, each by its name; `lightning-genesis figures` writes them."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from data_modules import SceneDataModule
from lightning_genesis.commands.sample import BATCH_SIZE, join, sample_batches, setting_name
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.figures.comparison import dataset_examples
from lightning_genesis.figures.drawing import (
    image_sheet,
    mask_grid,
    reconstruction_grid,
    resize_ids,
    sample_grid,
    stack,
    titled,
    write_picture,
)
from lightning_genesis.figures.generation import generation_order, generation_steps, sweep
from lightning_genesis.figures.inference import (
    decomposition_steps,
    example_scores,
    failure_cases,
    imagination_pairs,
    inference_seeds,
    latent_traversal,
    score_labels,
)
from lightning_genesis.figures.walk import random_walk, walk_frames, write_gif
from lightning_genesis.metrics import mean_squared_error
from lightning_genesis.metrics.structural_accuracy import judge_towers
from lightning_genesis.models import SceneModel
from lightning_genesis.scene import IndexedNoise, Scene

SHEET = 64
"""Samples on a sheet."""
ORDER = 32
"""Samples shown with the masks of their slots."""
STEPS_SHOWN = 3
"""Images, and samples, of which every step is shown."""
TEMPERATURES = (0.5, 0.75, 1.0, 1.25)
NUM_SEEDS = 3
INITIAL_SHOWN = 2
"""Images of which masks before training are shown."""
EXAMPLES = 32
"""Images of a dataset, about: whole scenes."""


class RunFigures:
    """Draws the figures of one model. Those that do not apply to it raise `ConfigurationError`.

    Args:
        model: in evaluation mode.
        data: the images of its test split are shown.
        num_images: rows of a figure.
        num_scored: test images, or samples, among which the worst are sought.
        seed: of the noise.
        temperatures: swept.
        slot_numbers: swept; two fewer to two more than the model's own if None.
        num_frames: of the random walk.
        structure_score: the structure of samples, `[B]`, higher is better; finds the worst of them. Without
            one, samples that are no tower are sought where the data show towers of blocks.
    """

    def __init__(
        self,
        model: SceneModel,
        data: SceneDataModule,
        *,
        num_images: int = 8,
        num_scored: int = 320,
        seed: int = 0,
        temperatures: Sequence[float] = TEMPERATURES,
        slot_numbers: Sequence[int] | None = None,
        num_frames: int = 120,
        structure_score: Callable[[Scene], Tensor] | None = None,
    ) -> None:
        self.model, self.data, self.seed, self.num_frames = model, data, seed, num_frames
        self.shows_towers = data.shows_towers
        self.temperatures, self.structure_score = temperatures, structure_score
        around = range(max(1, model.num_slots - 2), model.num_slots + 3)
        self.slot_numbers = around if slot_numbers is None else slot_numbers
        data.prepare_data()
        self.dataset = cast(Any, data.dataset("test"))
        self.num_scored = min(num_scored, len(self.dataset))
        self.num_images = min(num_images, self.num_scored)
        self.num_sampled = num_scored
        self.batch = self._seen(data.examples("test", self.num_images))

    def draw(self, names: Iterable[str], folder: Path) -> tuple[list[Path], dict[str, str]]:
        """Writes figures into a folder.

        Returns:
            the files, and of the figures that were not drawn why, by name.
        """
        written, reasons = [], {}
        for name in names:
            try:
                picture = FIGURES[name](self)
            except ConfigurationError as error:
                reasons[name] = str(error)
                continue
            if isinstance(picture, Tensor):
                path = folder / f"{name}.png"
                write_picture(path, picture)
            else:
                path = folder / f"{name}.gif"
                write_gif(path, picture)
            written.append(path)
        return written, reasons

    # ---------------------------------------------------------------- images and samples

    def _read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Test images, on the device, as every step sees them."""
        return self._seen(self.dataset.__getitems__(list(indices)))

    def _seen(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        names = [name for name in ("image", "index", "segmentation") if name in batch]
        batch = {name: batch[name].to(self.model.device) for name in names}
        return self.model.on_after_batch_transfer(batch, 0)

    @torch.no_grad()
    def _infer(self, batch: dict[str, Tensor], seed: int | None = None) -> Scene:
        """The scene that is scored, or another draw."""
        if seed is None:
            return self.model.predict_step(batch, 0)
        return self.model(batch["image"], IndexedNoise(seed, batch["index"]))

    @cached_property
    def scene(self) -> Scene:
        """Of the images that are shown."""
        return self._infer(self.batch)

    @cached_property
    def _scored(self) -> tuple[Tensor, Tensor | None, str]:
        """Value and latents of every scored image, and what the value is: high where the model fails."""
        values, latents, name = [], [], ""
        for start in range(0, self.num_scored, BATCH_SIZE):
            batch = self._read(range(start, min(start + BATCH_SIZE, self.num_scored)))
            scene = self._infer(batch)
            with torch.no_grad():
                elbo = self.model.elbo(scene, batch["image"])
                error = mean_squared_error(scene.reconstruction, batch["image"])
            values.append(error if elbo is None else elbo)
            name = "MSE" if elbo is None else "ELBO"
            found = [scene.latents[key] for key in ("mean", "slots") if key in scene.latents]
            latents += found[:1]
        return torch.cat(values), torch.cat(latents) if latents else None, name

    def sample(self, count: int, num_slots: int | None = None, temperature: float = 1.0) -> Scene:
        """The first samples of the seed."""
        options: dict[str, Any] = {"num_slots": num_slots, "temperature": temperature}
        return join(list(sample_batches(self.model, count, seed=self.seed, **options)))

    @cached_property
    def samples(self) -> Scene:
        """As many as a sheet takes."""
        return self.sample(SHEET)

    # ---------------------------------------------------------------- figures

    def reconstructions(self) -> Tensor:
        """Reconstructions, segmentations and slots, with scores where the data have masks."""
        images, truth = self.batch["image"], self.batch.get("segmentation")
        labels = score_labels(self.scores(self.scene))
        picture = reconstruction_grid(images, self.scene, truth, labels, self.model.hparams["num_background"])
        return (
            titled("scores are of the decoded masks, those of the column `masks`", picture)
            if labels
            else picture
        )

    def scores(self, scene: Scene) -> dict[str, Tensor]:
        """ARI, SC and mSC of the images that are shown; empty where the data have no masks."""
        if "segmentation" not in self.batch or scene.num_slots == 1:
            return {}
        options = self.model.hparams
        return example_scores(
            scene,
            self.batch["segmentation"],
            num_background=options["num_background"],
            convention=options["metric_convention"],
        )

    def decomposition(self) -> Tensor:
        """Step by step, with the remaining scope."""
        return decomposition_steps(self.batch["image"][:STEPS_SHOWN], self.scene[:STEPS_SHOWN])

    def initial_masks(self) -> Tensor:
        """Masks of the same images before any training, under several seeds of the noise."""
        if self.scene.attention_log_masks is None:
            raise ConfigurationError(f"a {type(self.model).__name__} has no attention masks")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            untrained = type(self.model)(**self.model.hparams).eval().to(self.model.device)
        shown = min(INITIAL_SHOWN, self.num_images)
        images, numbers = self.batch["image"][:shown], self.batch["index"][:shown]
        grids = []
        for seed in range(self.seed, self.seed + NUM_SEEDS):
            with torch.no_grad():
                scene = untrained(images, IndexedNoise(seed, numbers))
            grids.append(titled(f"seed {seed} of the noise, untrained weights", mask_grid(images, scene)))
        return stack(grids)

    def data_examples(self) -> Tensor:
        """Images of the test split, above their true segmentation; crops of one picture side by side."""
        return draw_examples(self.data)

    def inference_seeds(self) -> Tensor:
        """The same images under several seeds."""
        seeds = range(self.seed, self.seed + NUM_SEEDS)
        scenes = {f"seed {seed}": self._infer(self.batch, seed) for seed in seeds}
        scores = {
            f"{name}: {score}": values
            for name, scene in scenes.items()
            for score, values in self.scores(scene).items()
            if score.startswith("ARI")
        }
        return inference_seeds(self.batch["image"], scenes, score_labels(scores))

    def imagination(self) -> Tensor:
        """Reconstruction and imagination rollout."""
        if "imagination" not in self.scene.auxiliary:
            raise ConfigurationError(f"a {type(self.model).__name__} has no imagination rollout")
        return imagination_pairs(self.batch["image"], self.scene)

    @torch.no_grad()
    def latent_traversal(self) -> Tensor:
        """One dimension of one slot's latent at a time."""
        latents = self._scored[1]
        if latents is None:
            raise ConfigurationError(f"a {type(self.model).__name__} has no latents `mean` or `slots`")
        return latent_traversal(cast(Any, self.model).decode, latents)

    def failures(self) -> Tensor:
        """The test images of lowest ELBO; of largest squared error for a model without one."""
        values, _, name = self._scored
        worst = values.argsort(descending=name != "ELBO", stable=True)[: self.num_images]
        batch = self._read(worst.tolist())
        picture = failure_cases(self._infer(batch), values[worst], name, batch["image"])
        return titled(f"the worst of {self.num_scored} test images", picture)

    def samples_sheet(self) -> Tensor:
        """Samples alone."""
        return image_sheet(self.samples.reconstruction)

    def generation(self) -> Tensor:
        """Samples step by step."""
        return generation_steps(self.samples[:STEPS_SHOWN])

    def generation_order(self) -> Tensor:
        """Samples and their masks in the colours of the slots."""
        return generation_order(self.samples[:ORDER])

    def temperatures_sweep(self) -> Tensor:
        """The same noise at several temperatures."""
        values = self.temperatures
        return sweep({setting_name(value): self.sample(self.num_images, None, value) for value in values})

    def slots_sweep(self) -> Tensor:
        """The same noise with several numbers of slots."""
        return sweep(
            {f"{number} slots": self.sample(self.num_images, number) for number in self.slot_numbers}
        )

    def structure_failures(self) -> Tensor:
        """The samples of the worst structure; where the data show towers, the first that are none."""
        if self.structure_score is not None:
            values = self._of_samples(self.structure_score)
            worst = values.argsort(stable=True)[: self.num_images]
            picture = failure_cases(self._samples(worst), values[worst], "structure")
            return titled(f"the worst of {self.num_sampled} samples", picture)
        if not self.shows_towers:
            raise ConfigurationError("the data show no towers of blocks")
        wrong = (~self._of_samples(is_tower)).nonzero()[:, 0]
        if not len(wrong):
            raise ConfigurationError(f"all of {self.num_sampled} samples are towers")
        shown = wrong[: self.num_images]
        picture = sample_grid(self._samples(shown), [f"sample\n{number}" for number in shown.tolist()])
        return titled(f"samples that are no tower: {len(wrong)} of {self.num_sampled}", picture)

    def _of_samples(self, judge: Callable[[Scene], Tensor]) -> Tensor:
        """What is said of every sample, `[N]`, on the CPU."""
        batches = sample_batches(self.model, self.num_sampled, seed=self.seed)
        return torch.cat([judge(scene).cpu() for scene in batches])

    @torch.no_grad()
    def _samples(self, numbers: Tensor) -> Scene:
        """Samples by their numbers."""
        return self.model.sample(len(numbers), noise=IndexedNoise(self.seed, numbers))

    def random_walk(self) -> list[Tensor]:
        """Frames of a walk through the prior."""
        return walk_frames(random_walk(self.model, self.num_frames, seed=self.seed))


Drawing = Callable[[RunFigures], Tensor | list[Tensor]]
FIGURES: dict[str, Drawing] = {
    "reconstructions": RunFigures.reconstructions,
    "decomposition": RunFigures.decomposition,
    "initial_masks": RunFigures.initial_masks,
    "data_examples": RunFigures.data_examples,
    "inference_seeds": RunFigures.inference_seeds,
    "imagination": RunFigures.imagination,
    "latent_traversal": RunFigures.latent_traversal,
    "failures": RunFigures.failures,
    "samples": RunFigures.samples_sheet,
    "generation": RunFigures.generation,
    "generation_order": RunFigures.generation_order,
    "temperatures": RunFigures.temperatures_sweep,
    "slots": RunFigures.slots_sweep,
    "structure_failures": RunFigures.structure_failures,
    "random_walk": RunFigures.random_walk,
}
"""Every figure by the name of its file; a list of pictures is an animation."""


def draw_examples(data: SceneDataModule, count: int = EXAMPLES) -> Tensor:
    """Images of a test split and their true segmentation: whole scenes, where several images show one."""
    data.prepare_data()
    per_scene = int(getattr(data, "images_per_scene", 1))
    number = min(max(count // per_scene, 1) * per_scene, len(cast(Any, data.dataset("test"))))
    batch = data.examples("test", number)
    images = torch.as_tensor(batch["image"])
    images = images.float() / 255.0 if images.dtype == torch.uint8 else images
    truth = batch.get("segmentation")
    if truth is not None:
        truth = resize_ids(torch.as_tensor(truth), images)
    return dataset_examples(images, truth, data.num_background, per_scene)


def is_tower(scene: Scene) -> Tensor:
    """Whether a sample is a tower whose blocks all touch and none overlap, bool `[B]`.

    Raises:
        ConfigurationError: if there are no masks to judge by.
    """
    if scene.num_slots == 1:
        raise ConfigurationError("a model of one slot has no masks, by which towers are judged")
    return judge_towers(scene.segmentation(), scene.reconstruction).correct
