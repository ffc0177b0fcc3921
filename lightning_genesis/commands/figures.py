"""`lightning-genesis figures RUN`: the papers' figures of a trained model, on images of its test split.

RUN is a run's folder or an exported .safetensors; any other checkpoint needs --data. With several runs, such
as the seeds of an experiment, there is one figure more, with samples of them all.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from data_modules import SceneDataModule
from lightning_genesis.commands.arguments import (
    CommandParser,
    add_model_options,
    add_prior_option,
    check_numbers,
    find_device,
    weights_path,
)
from lightning_genesis.commands.sample import BATCH_SIZE, join, sample_batches, setting_name
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.figures.drawing import (
    image_sheet,
    reconstruction_grid,
    sample_grid,
    titled,
    write_picture,
)
from lightning_genesis.figures.generation import generation_order, generation_steps, samples_by_run, sweep
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
from lightning_genesis.runs.loading import load_with_data
from lightning_genesis.runs.priors import use_prior
from lightning_genesis.runs.results import FOLDER, Checkpoint, read_result
from lightning_genesis.runs.run import find_file
from lightning_genesis.scene import IndexedNoise, Scene

SHEET = 64
"""Samples on a sheet."""
ORDER = 32
"""Samples shown with the masks of their slots."""
STEPS_SHOWN = 3
"""Images, and samples, of which every step is shown."""
TEMPERATURES = (0.5, 0.75, 1.0, 1.25)
NUM_SEEDS = 3


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
        self.model, self.seed, self.num_frames = model, seed, num_frames
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
        return reconstruction_grid(images, self.scene, truth, score_labels(self._scores(self.scene)))

    def _scores(self, scene: Scene) -> dict[str, Tensor]:
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

    def inference_seeds(self) -> Tensor:
        """The same images under several seeds."""
        seeds = range(self.seed, self.seed + NUM_SEEDS)
        scenes = {f"seed {seed}": self._infer(self.batch, seed) for seed in seeds}
        scores = {
            f"{name}: {score}": values
            for name, scene in scenes.items()
            for score, values in self._scores(scene).items()
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


def is_tower(scene: Scene) -> Tensor:
    """Whether a sample is a tower whose blocks all touch and none overlap, bool `[B]`.

    Raises:
        ConfigurationError: if there are no masks to judge by.
    """
    if scene.num_slots == 1:
        raise ConfigurationError("a model of one slot has no masks, by which towers are judged")
    return judge_towers(scene.segmentation(), scene.reconstruction).correct


def known_fid(run: Path, file: Path) -> float | None:
    """FID of some weights by the newest result in a run's folder; None if FID was never computed.

    Args:
        run: the folder.
        file: the weights.

    Raises:
        ConfigurationError: if it is known of other weights only, or a file is not a result.
    """
    others = set()
    paths = sorted((run / FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for result in map(read_result, paths):
        fid, about = result.metrics.get("fid"), result.checkpoint
        if fid is not None and about is not None:
            if about.sha256 == Checkpoint.of(file, run, about.step).sha256:
                return fid
            others.add(f"{about.path} of step {about.step}")
    if others:
        raise ConfigurationError(f"{run / FOLDER} has that of {', '.join(sorted(others))}, not of {file}")
    return None


# ---------------------------------------------------------------- command


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-genesis figures", description=__doc__)
    parser.add_argument(
        "run", type=weights_path, nargs="+", help="a run's folder, .safetensors, .ckpt or zoo:NAME"
    )
    add_model_options(parser)
    add_prior_option(parser)
    parser.add_argument("--output", type=Path, help="a folder; RUN/figures by default")
    parser.add_argument("--only", nargs="+", choices=FIGURES, help="these figures alone")
    parser.add_argument("--data", type=Path, help="a data section, such as experiments/data/quickstart.yaml")
    parser.add_argument("--root", help="where the data are, if not where the run has them")
    parser.add_argument("--num_images", type=int, default=8, help="rows of a figure")
    parser.add_argument(
        "--num_scored", type=int, default=320, help="test images among which the worst are sought"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--temperature", type=float, nargs="+", default=TEMPERATURES, help="swept")
    parser.add_argument("--num_slots", type=int, nargs="+", help="swept; K - 2 to K + 2 by default")
    parser.add_argument("--num_frames", type=int, default=120, help="of the random walk")
    parser.add_argument(
        "--fid", type=float, nargs="+", help="of each run, for the captions; by default what RUN/metrics has"
    )
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU if there is one")
    return parser


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        CheckpointError: if a run has no readable checkpoint.
        ConfigurationError: if an option is wrong, or it is not known where to write or which data to use.
        DataError: if the data are not there.
    """
    options = _parser().parse_args(list(args))
    _check(options)
    device = find_device(options.device, "figures")
    dreams: dict[str, Scene] = {}
    for number, run in enumerate(options.run):
        folder, file = _folder(run, options), find_file(run, options.checkpoint)
        model, data = load_with_data(
            "figures",
            run,
            checkpoint=options.checkpoint,
            model=options.model_class,
            data=options.data,
            root=options.root,
        )
        if options.prior is not None:
            use_prior(model, run, options.prior, file)
        figures = RunFigures(
            model.to(device),
            data,
            num_images=options.num_images,
            num_scored=options.num_scored,
            seed=options.seed,
            temperatures=options.temperature,
            slot_numbers=options.num_slots,
            num_frames=options.num_frames,
        )
        names = options.only or FIGURES
        written, reasons = figures.draw(names, folder)
        print(f"{file}: {type(model).__name__}", *written, sep="\n  ")
        for reason in dict.fromkeys(reasons.values()):
            which = ", ".join(name for name, other in reasons.items() if other == reason)
            print(f"  not drawn: {which}: {reason}")
        if len(options.run) > 1 and "samples" in set(names) - set(reasons):
            fid = f"{options.fid[number]:g}" if options.fid else _known_fid(run, file)
            dreams[f"{_name(run)}: FID {fid}" if fid else _name(run)] = figures.samples[:4]
    if dreams:
        path = options.output / "samples_by_run.png"
        write_picture(path, samples_by_run(dreams))
        print(path)


def _check(options: Namespace) -> None:
    counts = dict.fromkeys(("num_images", "num_scored", "num_frames", "num_slots"), 1)
    check_numbers("figures", options, {**counts, "seed": 0, "temperature": 0})
    if options.fid and len(options.fid) != len(options.run):
        raise ConfigurationError(
            f"figures: --fid has {len(options.fid)} numbers for {len(options.run)} runs; give one for each"
        )
    if len(options.run) > 1 and options.output is None:
        raise ConfigurationError("figures: several runs need --output, a folder for what shows them together")


def _known_fid(run: Path, file: Path) -> str:
    """FID with one decimal, as papers print it; empty, and a line where that may surprise, if not known."""
    try:
        fid = known_fid(run, file)
    except ConfigurationError as error:
        print(f"  no FID in the caption: {error}")
        return ""
    return "" if fid is None else f"{fid:.1f}"


def _name(run: Path) -> str:
    return run.resolve().name if run.is_dir() else run.stem


def _folder(run: Path, options: Namespace) -> Path:
    if options.output is not None:
        return options.output / _name(run) if len(options.run) > 1 else options.output
    if run.is_dir():
        return run / "figures" if options.prior is None else run / "figures" / Path(options.prior).name
    raise ConfigurationError(f"figures: {run} is no run's folder: give --output")
