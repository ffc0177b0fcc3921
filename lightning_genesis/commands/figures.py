"""`lightning-genesis figures RUN`: the papers' figures of a trained model, on images of its test split.

RUN is a run's folder or an exported .safetensors; any other checkpoint needs --data. With several runs, such
as the seeds of an experiment, there are two figures more: samples of them all, and all of them on the same
test images. Without a RUN, images of the data that --data names.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_genesis.commands.arguments import (
    CommandParser,
    add_model_options,
    add_prior_option,
    check_numbers,
    find_device,
    weights_path,
)
from lightning_genesis.commands.run_figures import FIGURES, TEMPERATURES, RunFigures, draw_examples
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.figures.comparison import model_comparison
from lightning_genesis.figures.drawing import resize_ids, titled, write_picture
from lightning_genesis.figures.generation import samples_by_run
from lightning_genesis.figures.inference import score_labels
from lightning_genesis.runs.experiments import find_experiment
from lightning_genesis.runs.loading import build_data, load_with_data
from lightning_genesis.runs.priors import use_prior
from lightning_genesis.runs.results import FOLDER, Checkpoint, read_result
from lightning_genesis.runs.run import find_file
from lightning_genesis.scene import Scene
from lightning_genesis.storage.yaml_file import read_mapping

__all__ = ["FIGURES", "RunFigures", "known_fid", "main"]


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
        "run", type=weights_path, nargs="*", help="a run's folder, .safetensors, .ckpt or zoo:NAME"
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
    if not options.run:
        _draw_data(options)
        return
    dreams: dict[str, Scene] = {}
    seen: dict[str, _Seen] = {}
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
        if len(options.run) > 1 and "reconstructions" in names:
            seen[_name(run)] = _look(figures)
    if dreams:
        path = options.output / "samples_by_run.png"
        write_picture(path, samples_by_run(dreams))
        print(path)
    if seen:
        _compare(seen, options.output / "comparison.png")


@dataclass(frozen=True)
class _Seen:
    """What a model makes of the test images, on the CPU."""

    images: Tensor
    truth: Tensor | None
    scene: Scene
    scores: list[str]
    num_background: int


def _look(figures: RunFigures) -> _Seen:
    images, truth = figures.batch["image"], figures.batch.get("segmentation")
    scores = {name: value for name, value in figures.scores(figures.scene).items() if name == "ARI-FG"}
    return _Seen(
        images.cpu(),
        None if truth is None else resize_ids(truth, images).cpu(),
        figures.scene.to("cpu"),
        score_labels(scores) if scores else [],
        figures.model.hparams["num_background"],
    )


def _compare(seen: Mapping[str, _Seen], path: Path) -> None:
    """Draws the models on the same images, or says why not."""
    first, *others = seen.values()
    if any(not torch.equal(first.images, other.images) for other in others):
        print("not drawn: comparison: the runs were shown different test images, or such of another size")
        return
    scores = {name: one.scores for name, one in seen.items() if one.scores}
    scenes = {name: one.scene for name, one in seen.items()}
    picture = model_comparison(first.images, scenes, first.truth, first.num_background, scores)
    said = "ARI-FG is of the decoded masks, those of the column `masks`"
    write_picture(path, titled(said, picture) if scores else picture)
    print(path)


def _draw_data(options: Namespace) -> None:
    """Images of a dataset, without a model.

    Raises:
        ConfigurationError: if it is not said which, or where to write, or another figure is asked for.
    """
    if options.data is None or options.output is None:
        raise ConfigurationError("figures: expected a RUN, or --data FILE and --output FOLDER for data alone")
    if options.only not in (None, ["data_examples"]):
        raise ConfigurationError(f"figures: --only {' '.join(options.only)}: needs a RUN")
    file = find_experiment(options.data, "figures: --data ")
    data = build_data(read_mapping(file, "a data section, class_path and init_args"), str(file))
    data.root = options.root or data.root
    path = options.output / "data_examples.png"
    write_picture(path, draw_examples(data))
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
