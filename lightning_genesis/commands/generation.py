"""`lightning-genesis generation RUN`: how good reconstructions, recombined slots and samples of priors are.

One table, the same images and the same measures for all rows. Nothing has to be downloaded, and nothing in it
is FID. The model's own prior is in it where it has one, and those that `--prior` names.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_genesis.commands.arguments import (
    CommandParser,
    add_model_options,
    check_numbers,
    find_device,
    weights_path,
)
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.evaluation.generation import (
    Gathered,
    compare,
    drawn,
    gather,
    read_images,
    recombined,
    reconstructions,
)
from lightning_genesis.evaluation.protocols import general_deviations
from lightning_genesis.evaluation.split import EvaluatedSplit, choose_images
from lightning_genesis.models import SceneModel
from lightning_genesis.priors.encoding import SAMPLE, encode_slots
from lightning_genesis.runs.loading import load_with_data
from lightning_genesis.runs.priors import use_prior
from lightning_genesis.runs.results import Result, about_run, write_result
from lightning_genesis.runs.run import find_file
from lightning_genesis.scene import Scene

NUM_IMAGES = 2000
FLOOR, RECOMBINED, OWN = "reconstructions", "recombined", "own"
SHOWN = (
    "two_sample_accuracy",
    "random_net_mmd",
    "component_frechet",
    "blob_count_tv",
    "object_count_tv",
    "s_acc",
)
"""Columns of the table; the result has all."""


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-genesis generation", description=__doc__)
    parser.add_argument("run", type=weights_path, help="a run's folder, .safetensors, .ckpt or zoo:NAME")
    add_model_options(parser)
    parser.add_argument(
        "--prior",
        nargs="+",
        default=[],
        help="names of priors that fit-prior made for the run, or their folders",
    )
    parser.add_argument(
        "--reference",
        choices=("reconstructions", "images"),
        default="reconstructions",
        help="what all are compared with: reconstructions leave the decoder out of the question",
    )
    parser.add_argument(
        "--num_images", type=int, default=NUM_IMAGES, help="of every row, and of the reference"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="of samples")
    parser.add_argument("--seed", type=int, default=0, help="of samples and of the recombination")
    parser.add_argument(
        "--classifier_seeds",
        type=int,
        nargs="*",
        default=[0, 1, 2],
        help="of the two-sample test; none: no test",
    )
    parser.add_argument("--data", type=Path, help="a data section, such as experiments/data/quickstart.yaml")
    parser.add_argument("--root", help="where the data are, if not where the run has them")
    parser.add_argument("--output", type=Path, help="a folder for the result; RUN by default")
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU if there is one")
    return parser


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        CheckpointError: if there is no readable checkpoint, or a prior is damaged.
        ConfigurationError: if an option is wrong, or a prior is not there.
        DataError: if the data cannot be prepared.
    """
    options = _parser().parse_args(list(args))
    check_numbers(
        "generation", options, {"num_images": 4, "seed": 0, "temperature": 0, "classifier_seeds": 0}
    )
    device = find_device(options.device, "generation")
    _check_rows(options.prior)
    load = partial(
        load_with_data,
        "generation",
        options.run,
        checkpoint=options.checkpoint,
        model=options.model_class,
        data=options.data,
        root=options.root,
    )
    model, data = load()
    model = model.to(device)
    attached: dict[str, SceneModel] = {}
    told: dict[str, Any] = {}
    for name in options.prior:
        attached[name] = load()[0].to(device)
        told[name] = use_prior(attached[name], options.run, name, find_file(options.run, options.checkpoint))
    data.prepare_data()
    dataset: Any = data.dataset("test")
    count = min(options.num_images, len(dataset) // 2)
    if count < 4:
        raise ConfigurationError(f"generation: {len(dataset)} test images, expected eight or more")
    chosen = choose_images(len(dataset), 2 * count)
    reference_images, others = chosen[::2], chosen[1::2]
    if options.reference == "images":
        reference = read_images(dataset, reference_images)
    else:
        reference = gather(reconstructions(model, dataset, reference_images))
    rows = _rows(options, model, attached, dataset, others)
    console = Console(soft_wrap=True, highlight=False)
    found: dict[str, dict[str, float]] = {}
    for row, scenes in rows.items():
        try:
            with console.status(f"{row}: {count:,} images"):
                gathered = gather(scenes(), towers=data.shows_towers)
        except ConfigurationError as error:
            if row != OWN:
                raise
            console.print(f"no row {OWN!r}: {error}")
            continue
        found[row] = compare(reference, gathered, tuple(options.classifier_seeds))
    console.print(_table(found, options.reference, count))
    _write(options, console, model, data, told, found, reference)


def _check_rows(priors: Sequence[str]) -> None:
    """Refuses priors that would take each other's row, or one of the model's own."""
    taken = {FLOOR, RECOMBINED, OWN}
    for name in priors:
        row = Path(name).name
        if row in taken:
            raise ConfigurationError(
                f"generation: --prior {name}: there is a row {row!r} already; rename the prior's folder"
            )
        taken.add(row)


def _rows(
    options: Namespace,
    model: SceneModel,
    attached: dict[str, SceneModel],
    dataset: Any,
    images: Sequence[int],
) -> dict[str, Callable[[], Iterator[Scene]]]:
    """Scenes of every row, by its name."""

    def shuffled() -> Iterator[Scene]:
        return recombined(model, encode_slots(model, dataset, images)[SAMPLE], options.seed)

    rows: dict[str, Callable[[], Iterator[Scene]]] = {FLOOR: lambda: reconstructions(model, dataset, images)}
    if model.num_slots > 1:
        rows[RECOMBINED] = shuffled
    for name, drawing in chain({OWN: model}.items(), attached.items()):
        rows[Path(name).name] = partial(drawn, drawing, len(images), options.seed, options.temperature)
    return rows


def _table(found: dict[str, dict[str, float]], reference: str, count: int) -> Table:
    columns = [name for name in SHOWN if any(name in values for values in found.values())]
    table = Table("", *columns, title=f"{count:,} images each, compared with {count:,} {reference}")
    for row, values in found.items():
        cells = [f"{values[name]:.3f}" if name in values else "" for name in columns]
        table.add_row(row, *cells)
    return table


def _write(
    options: Namespace,
    console: Console,
    model: SceneModel,
    data: Any,
    told: dict[str, Any],
    found: dict[str, dict[str, float]],
    reference: Gathered,
) -> None:
    if options.output is None and not options.run.is_dir():
        console.print("not written: give --output FOLDER for what belongs to no run")
        return
    split = EvaluatedSplit.of_dataset(data.dataset("test"), data)
    result = Result(
        **about_run(options.run, options.checkpoint),
        model=type(model).__name__,
        dataset=split.name,
        synthetic=split.synthetic,
        split=split.split,
        num_images=len(reference.images),
        metrics={f"{row}/{name}": value for row, values in found.items() for name, value in values.items()},
        options={
            "reference": options.reference,
            "priors": told,
            "temperature": options.temperature,
            "sample_seed": options.seed,
            "classifier_seeds": options.classifier_seeds,
            "data": split.settings,
            "data_sha256": split.manifest.get("sha256"),
        },
        deviations=general_deviations(split, {}),
    )
    path = write_result(options.output or options.run, "generation", result)
    console.print(f"written to {path}")
