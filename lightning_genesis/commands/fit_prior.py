"""`lightning-genesis fit-prior RUN`: fits a prior to the slots of a trained model, and keeps it with the run.

The model stays as it is. RUN is a run's folder, a .safetensors or a .ckpt; `sample`, `figures`, `label`,
`test` and `generation` then take `--prior NAME`.
"""

import inspect
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, fields
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from lightning_genesis.commands.arguments import (
    CommandParser,
    add_model_options,
    check_numbers,
    find_device,
    weights_path,
)
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.evaluation.prior_scores import score_prior
from lightning_genesis.evaluation.split import EvaluatedSplit, choose_images
from lightning_genesis.models import SceneModel
from lightning_genesis.priors import PRIORS, FitOptions, SetPrior, fit_prior
from lightning_genesis.priors.attaching import check_decodes
from lightning_genesis.priors.encoding import encode_slots, to_fit
from lightning_genesis.runs.loading import load_with_data
from lightning_genesis.runs.priors import FOLDER, SLOTS, check_name, read_slots, write_prior, write_slots
from lightning_genesis.runs.results import Checkpoint, versions
from lightning_genesis.runs.run import find_file
from lightning_genesis.storage.checkpoint import read_checkpoint

NUM_IMAGES = 8000
NUM_SCORED = 320
SIZES = {"width", "num_layers", "num_heads", "scene_size", "num_components", "hidden_dim"}


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-genesis fit-prior", description=__doc__)
    parser.add_argument("run", type=weights_path, help="a run's folder, .safetensors, .ckpt or zoo:NAME")
    add_model_options(parser)
    parser.add_argument(
        "--kind", choices=PRIORS, default="set_flow", help="of the prior; set_flow by default"
    )
    parser.add_argument("--name", help="of the prior; its kind by default")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="train", help="whose slots it fits"
    )
    parser.add_argument("--num_images", type=int, default=NUM_IMAGES, help="of the split, or all there are")
    parser.add_argument(
        "--num_scored", type=int, default=NUM_SCORED, help="test images on which its likelihood is measured"
    )
    for option in fields(FitOptions):
        kind: Any = type(option.default)
        parser.add_argument(f"--{option.name}", type=kind, default=option.default, help="of the training")
    for name in sorted(SIZES):
        kinds = ", ".join(kind for kind, prior in PRIORS.items() if name in _sizes_of(prior))
        parser.add_argument(f"--{name}", type=int, help=f"of {kinds}")
    parser.add_argument("--data", type=Path, help="a data section, such as experiments/data/quickstart.yaml")
    parser.add_argument("--root", help="where the data are, if not where the run has them")
    parser.add_argument("--output", type=Path, help="the folder that gets priors/NAME; RUN by default")
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU if there is one")
    return parser


def _sizes_of(prior: type[SetPrior]) -> dict[str, int]:
    """Sizes that a prior's constructor takes, with their defaults."""
    parameters = inspect.signature(prior.__init__).parameters
    return {name: parameters[name].default for name in SIZES if name in parameters}


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        CheckpointError: if there is no readable checkpoint.
        ConfigurationError: if an option is wrong, the model has no slots, or the prior is there already.
        DataError: if the data cannot be prepared.
        NonFiniteError: if what was fitted is not finite.
    """
    options = _parser().parse_args(list(args))
    name = options.name or options.kind
    sizes = _check(options, name)
    device = find_device(options.device, "fit-prior")
    place = _place(options)
    target = place / FOLDER / name
    if target.exists():
        raise ConfigurationError(f"{target} is there already: give the prior another --name, or remove it")
    model, data = load_with_data(
        "fit-prior",
        options.run,
        checkpoint=options.checkpoint,
        model=options.model_class,
        data=options.data,
        root=options.root,
    )
    check_decodes(model)
    if getattr(model, "flexible_slots", False):
        model.flexible_slots = False  # type: ignore[assignment]  # a slot that is not in use means nothing
    file = find_file(options.run, options.checkpoint)
    weights = Checkpoint.of(file, place, read_checkpoint(file).get("global_step", 0))
    model = model.to(device)
    data.prepare_data()
    console = Console(soft_wrap=True, highlight=False)
    slots, about = _slots(options, model, data, weights, place, console)
    dim, num_slots = slots["sample"].shape[2], slots["sample"].shape[1]

    def make() -> SetPrior:
        return PRIORS[options.kind](dim=dim, num_slots=num_slots, ordered=model.slots_in_order, **sizes)

    fit = FitOptions(**{option.name: getattr(options, option.name) for option in fields(FitOptions)})
    prior, losses = _fit(make, slots, fit, device, console)
    scored: dict[str, float] = {}
    if options.num_scored:
        test: Any = data.dataset("test")
        chosen = choose_images(len(test), options.num_scored)
        scored = score_prior(model, prior, test, chosen)
    scores = {**losses, **scored}
    write_prior(
        target,
        prior,
        {
            "model": {"class": type(model).__name__, **asdict(weights)},
            "slots": about,
            "fit": {**asdict(fit), "num_scored": options.num_scored} if prior.learned else {},
            "scores": {key: value if isfinite(value) else None for key, value in scores.items()},
            "versions": versions(),
        },
    )
    for key, value in scores.items():
        console.print(f"  {key}: {value:.4g}")
    console.print(f"{target}: use it with --prior {name if options.output is None else target}")


def _check(options: Namespace, name: str) -> dict[str, int]:
    """Refuses what does not fit; returns the sizes that were given."""
    check_name("--name", name)
    check_numbers("fit-prior", options, {"num_images": 2, "num_scored": 0})
    known = _sizes_of(PRIORS[options.kind])
    given = {size: getattr(options, size) for size in SIZES if getattr(options, size) is not None}
    for size in given:
        if size not in known:
            takes = f"takes {', '.join('--' + each for each in sorted(known))}" if known else "has no sizes"
            raise ConfigurationError(f"fit-prior: --{size} {given[size]}: a {options.kind} {takes}")
    return given


def _place(options: Namespace) -> Path:
    """The folder that gets `priors/NAME`."""
    if options.output is not None:
        return options.output
    if options.run.is_dir():
        return options.run
    raise ConfigurationError(f"fit-prior: {options.run} is no run's folder: give --output")


def _slots(
    options: Namespace, model: SceneModel, data: Any, weights: Checkpoint, place: Path, console: Console
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The split's slots: those that are kept, or encoded now and kept; and what they are of."""
    dataset: Any = data.dataset(options.split)
    chosen = choose_images(len(dataset), options.num_images)
    split = EvaluatedSplit.of_dataset(dataset, data)
    about = {
        "dataset": split.name,
        "split": options.split,
        "num_images": len(chosen),
        "data_sha256": split.sha256(),
        "model_sha256": weights.sha256,
    }
    path = place / FOLDER / SLOTS / f"{options.split}-{len(chosen)}.safetensors"
    found = read_slots(path, about)
    if found is not None:
        console.print(f"slots of {len(chosen):,} images: {path}")
        return found, about
    first = encode_slots(model, dataset, chosen[:1])
    size = len(chosen) * sum(value.numel() * 4 for value in first.values())
    shape = " x ".join(map(str, first["sample"].shape[1:]))
    console.print(
        f"encoding {len(chosen):,} {options.split} images into {shape} slots: {size / 1e6:.1f} MB in {path}"
    )
    with _progress(console) as bar:
        task = bar.add_task("encode", total=len(chosen), told="")
        found = encode_slots(model, dataset, chosen, lambda count: bar.advance(task, count))
    write_slots(path, found, about)
    return found, about


def _fit(
    make: Any, slots: dict[str, Tensor], fit: FitOptions, device: torch.device, console: Console
) -> tuple[SetPrior, dict[str, float]]:
    with _progress(console) as bar:
        task = bar.add_task("fit", total=fit.steps, told="")

        def told(step: int, loss: float, held_out: float) -> None:
            bar.update(task, completed=step, told=f"loss {loss:.4f}, held out {held_out:.4f}")

        prior, losses = fit_prior(make, options=fit, device=device, progress=told, **to_fit(slots))  # type: ignore[arg-type]
        bar.update(task, completed=fit.steps)
    return prior, losses


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[told]}"), console=console)
