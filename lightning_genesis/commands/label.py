"""`lightning-genesis label SAMPLES --output page.html`: a page on which a person labels samples, offline.

SAMPLES is a folder of PNGs, such as `sample --images` writes, or a run's folder, a .ckpt or a .safetensors.
Of a model, samples are drawn. If its data show towers of blocks and the question is the towers' own, what the
automatic judgement says of them is written beside the page, as page.automatic.json.

`lightning-genesis label --agreement A.json B.json` compares two files of answers to the same question.
"""

import hashlib
import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_modules import DataError, SceneDataModule
from lightning_genesis.commands.arguments import (
    CommandParser,
    add_model_options,
    add_prior_option,
    find_device,
    weights_path,
)
from lightning_genesis.commands.label_page import Images, make_page
from lightning_genesis.commands.sample import sample_batches
from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.metrics.structural_accuracy import judge_towers, wilson_interval
from lightning_genesis.models import SceneModel
from lightning_genesis.runs.loading import load, load_model, load_with_data
from lightning_genesis.runs.priors import use_prior
from lightning_genesis.runs.run import find_file
from lightning_genesis.storage.files import replacing
from lightning_genesis.storage.json_file import read_json
from lightning_genesis.storage.pictures import open_picture

FORMAT = 1
NUM_IMAGES = 100
"""As many as the SRI paper's authors labelled per model."""
QUESTION = "Do all blocks of the tower touch?"
"""As in the SRI paper, Section 5.3: "all blocks in the stack are touching each other"."""
PLAIN_QUESTION = "Could this be an image of the data?"
"""Of a model's samples, where they are not known to be towers."""
MAX_PNG_BYTES = 4_000_000
MAX_ANSWER_BYTES = 10_000_000


@dataclass(frozen=True)
class Answers:
    """What one labeller said about one set of images."""

    labeller: str
    question: str
    images: str
    """Digest of the images, see `digest`."""
    answers: dict[str, bool]
    """By the image's name."""


@dataclass(frozen=True)
class Agreement:
    """How far two labellers agree on the images that both have answered."""

    both_yes: int
    only_first: int
    only_second: int
    both_no: int

    @property
    def count(self) -> int:
        """Number of images."""
        return self.both_yes + self.only_first + self.only_second + self.both_no

    @property
    def share(self) -> float:
        """Share of the images with the same answer; NaN without images."""
        return (self.both_yes + self.both_no) / self.count if self.count else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of `share`, 95 %."""
        return wilson_interval(self.both_yes + self.both_no, self.count)

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond chance, at most 1; NaN where both give one and the same answer.

        Source: Cohen, "A coefficient of agreement for nominal scales", 1960.
        """
        first, second = self.both_yes + self.only_first, self.both_yes + self.only_second
        chance = first * second + (self.count - first) * (self.count - second)
        if chance == self.count**2:
            return float("nan")
        return (self.count * (self.both_yes + self.both_no) - chance) / (self.count**2 - chance)


def agreement(first: Answers, second: Answers) -> Agreement:
    """Counts the images that both have answered."""
    pairs = [(yes, second.answers[name]) for name, yes in first.answers.items() if name in second.answers]
    cells = ((True, True), (True, False), (False, True), (False, False))
    return Agreement(*(pairs.count(cell) for cell in cells))


def digest(images: Images) -> str:
    """SHA-256 of names and pixels: answers to other images are not compared."""
    found = hashlib.sha256()
    for name, image in sorted(images.items()):
        found.update(f"{name} {image.shape} {hashlib.sha256(image.tobytes()).hexdigest()}\n".encode())
    return found.hexdigest()


# ---------------------------------------------------------------- command


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-genesis label", description=__doc__)
    parser.add_argument("samples", type=weights_path, nargs="?", help="a folder of PNGs, or a model")
    add_model_options(parser)
    add_prior_option(parser)
    parser.add_argument(
        "--data", type=Path, help="a data section: what a model's samples show, if it does not say"
    )
    parser.add_argument("--output", type=Path, help="a .html file")
    parser.add_argument("--agreement", type=Path, nargs=2, metavar="JSON", help="files of answers to compare")
    parser.add_argument("--num_images", type=int, default=NUM_IMAGES, help="the first this many")
    parser.add_argument("--question", help="what to answer with yes or no")
    parser.add_argument("--seed", type=int, default=0, help="of a model's samples")
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU if there is one")
    return parser


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        CheckpointError: if a model's file is not there or damaged, or a run has no checkpoint.
        ConfigurationError: if an option is wrong or missing, a file is not what it should be, or the model
            has no prior.
    """
    options = _parser().parse_args(list(args))
    if options.agreement is not None:
        others = (
            *(options.samples, options.output, options.checkpoint),
            *(options.model_class, options.prior, options.data),
        )
        if any(given is not None for given in others):
            raise ConfigurationError("label: --agreement takes two files of answers and nothing else")
        first, second = (read_answers(path) for path in options.agreement)
        if first.images != second.images:
            raise ConfigurationError(
                f"label: {options.agreement[0]} is about the images {first.images[:12]}, "
                f"{options.agreement[1]} about {second.images[:12]}: expected the same"
            )
        if first.question != second.question:
            raise ConfigurationError(
                f"label: {options.agreement[0]} answers {first.question!r}, {options.agreement[1]} "
                f"{second.question!r}: expected the same question"
            )
        print(_report(first, second))
        return
    if options.samples is None or options.output is None:
        raise ConfigurationError(
            "label: expected SAMPLES and --output page.html, or --agreement A.json B.json"
        )
    if options.output.suffix != ".html":
        raise ConfigurationError(f"label: --output {options.output} should end in .html")
    if options.num_images < 1:
        raise ConfigurationError(f"label: --num_images {options.num_images}, expected 1 or more")
    _write(options)


def _write(options: Namespace) -> None:
    source, output = options.samples, options.output
    is_run = any((source / name).exists() for name in ("config.yaml", "checkpoints"))
    is_model = is_run or not source.is_dir()
    reason = ""
    question = options.question or QUESTION
    if is_model:
        images, judged, question, reason = _draw(source, options)
        source = find_file(source, options.checkpoint)
    elif given := [
        option
        for option, value in {
            "--checkpoint": options.checkpoint,
            "--model": options.model_class,
            "--prior": options.prior,
            "--data": options.data,
        }.items()
        if value is not None
    ]:
        raise ConfigurationError(
            f"label: {given[0]}: {source} is no run's folder, it has pictures; leave it out"
        )
    else:
        images, judged = read_images(source, options.num_images), {}
    about = digest(images)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary:
        temporary.write_text(make_page(images, question, about, FORMAT), encoding="utf-8")
    print(f"{source} -> {output}: {len(images)} images; open it in a browser, offline if you like")
    print(f"  it asks: {question}" + ("" if options.question else " (--question asks another)"))
    if judged:
        path = output.with_suffix(".automatic.json")
        write_answers(path, Answers("automatic", QUESTION, about, judged))
        share = sum(judged.values()) / len(judged)
        low, high = wilson_interval(sum(judged.values()), len(judged))
        print(f"  {path}: automatic S-Acc {share:.1%} [{low:.1%}, {high:.1%}]")
        print(f"  compare: lightning-genesis label --agreement ANSWERS.json {path}")
    elif is_model:
        print(f"  no automatic judgement: {reason}")


@torch.no_grad()
def _draw(source: Path, options: Namespace) -> tuple[Images, dict[str, bool], str, str]:
    """Samples of a model, as `sample` draws them, the judgement, the question, and why none is judged."""
    model, data = _load(source, options)
    model = model.to(find_device(options.device, "label"))
    has_towers = data is not None and data.shows_towers
    question = options.question or (QUESTION if has_towers else PLAIN_QUESTION)
    reason = _why_not_judged(model, data, question)
    if options.prior is not None:
        use_prior(model, source, options.prior, find_file(source, options.checkpoint))
    images: Images = {}
    judged: dict[str, bool] = {}
    for scene in sample_batches(model, options.num_images, seed=options.seed):
        names = [f"{len(images) + number:06d}.png" for number in range(len(scene.components))]
        pixels = scene.reconstruction.clamp(0.0, 1.0).cpu()
        if not reason:
            towers = judge_towers(scene.segmentation(), pixels)
            judged |= zip(names, towers.correct.tolist(), strict=True)
        levels = (pixels * 255 + 0.5).byte().movedim(1, -1).numpy()  # rounded as `sample` does
        images |= zip(names, levels, strict=True)
    return images, judged, question, reason


def _load(source: Path, options: Namespace) -> tuple[SceneModel, SceneDataModule | None]:
    """A model, and the data that it was trained on, if it is known."""
    checkpoint, kind = options.checkpoint, options.model_class
    if options.data is not None:
        return load_with_data("label", source, checkpoint=checkpoint, model=kind, data=options.data)
    if source.is_dir() or source.suffix == ".safetensors":
        try:
            return load(source, checkpoint, kind)
        except (CheckpointError, ConfigurationError, DataError):
            pass  # of the data, which are of less account here; what is wrong with the model is raised below
    return load_model(source, checkpoint, kind), None


def _why_not_judged(model: SceneModel, data: SceneDataModule | None, question: str) -> str:
    """Why samples are not judged as towers, for the user; empty if they are."""
    if model.num_slots == 1:
        return "a model of one slot has no masks"
    if data is None:
        return "which data the model was trained on is not known; --data says it"
    if not data.shows_towers:
        return f"{type(data).__name__} shows no towers of blocks"
    return "" if question == QUESTION else f"it answers {QUESTION!r} alone"


def _report(first: Answers, second: Answers) -> str:
    found = agreement(first, second)
    if not found.count:
        raise ConfigurationError("label: no image has been answered by both")
    low, high = found.interval
    names = (first.labeller, second.labeller)
    width = max(map(len, names))
    yes = (found.both_yes + found.only_first, found.both_yes + found.only_second)
    lines = [f"{found.count} images answered by both: {first.question}"]
    for name, count in zip(names, yes, strict=True):
        ends = wilson_interval(count, found.count)
        lines.append(f"  {name:{width}}  yes {count / found.count:.1%} [{ends[0]:.1%}, {ends[1]:.1%}]")
    lines += [
        f"  both yes {found.both_yes}, only {names[0]} {found.only_first}, only {names[1]} "
        f"{found.only_second}, both no {found.both_no}",
        f"agreement {found.share:.1%} [{low:.1%}, {high:.1%}]",
        f"Cohen's kappa {found.kappa:.3f}"
        if found.kappa == found.kappa
        else "Cohen's kappa is not defined: both always give the same answer",
    ]
    return "\n".join(lines)


# ---------------------------------------------------------------- files


def read_images(folder: Path, count: int) -> Images:
    """The first PNGs by name in a folder's folder `images`, or in itself.

    Raises:
        ConfigurationError: if there is none, or one is no PNG.
    """
    places = (folder / "images", folder)
    paths = next((found for place in places if (found := sorted(place.glob("*.png")))), [])[:count]
    if not paths:
        raise ConfigurationError(f"label: {folder}: no PNGs there; `sample --images` writes some")
    images: Images = {}
    for path in paths:
        with open_picture(path, ("PNG",), MAX_PNG_BYTES) as picture:
            images[path.name] = np.asarray(picture.convert("RGB"))
    return images


def write_answers(path: Path, answers: Answers) -> None:
    """Writes answers as the page does."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **asdict(answers)}, indent=1) + "\n", "utf-8")


def read_answers(path: Path) -> Answers:
    """Answers that the page or `write_answers` has written.

    Raises:
        ConfigurationError: if the file is something else; names the key, what it is and what was expected.
    """
    contents = read_json(path, MAX_ANSWER_BYTES)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        found = contents.get("format") if isinstance(contents, dict) else type(contents).__name__
        raise ConfigurationError(f"{path}: `format` is {found!r}, expected {FORMAT}")
    for key in ("labeller", "question", "images"):
        if type(contents.get(key)) is not str:
            raise ConfigurationError(f"{path}: `{key}` is {contents.get(key)!r}, expected str")
    answers: Any = contents.get("answers")
    if not isinstance(answers, dict):
        raise ConfigurationError(f"{path}: `answers` is {answers!r}, expected images with true or false")
    for name, yes in answers.items():
        if type(yes) is not bool:
            raise ConfigurationError(f"{path}: `answers.{name}` is {yes!r}, expected true or false")
    return Answers(contents["labeller"], contents["question"], contents["images"], answers)
