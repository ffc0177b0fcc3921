"""`lightning-genesis probe RUN`: how well a trained model's latents tell what is in an image.

RUN is a run's folder, an exported .safetensors, or a .ckpt with --data. A small network is trained on the
frozen latents for every label of the data, as in Table 1 of the GENESIS paper, and for every property of its
objects, if it has any. What it gets right on the test images goes to RUN/metrics.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from data_modules import SceneDataModule
from data_modules.base import Split
from lightning_genesis.commands.arguments import (
    CommandParser,
    add_model_options,
    find_device,
    weights_path,
)
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.evaluation.probes import (
    NUM_TRAIN,
    Latents,
    Probe,
    Score,
    collect,
    metrics_of,
    run_probes,
)
from lightning_genesis.evaluation.protocols import general_deviations
from lightning_genesis.evaluation.split import EvaluatedSplit, choose_images
from lightning_genesis.models import SceneModel
from lightning_genesis.models.base import EVALUATION_SEED
from lightning_genesis.runs.loading import load_with_data
from lightning_genesis.runs.results import Result, about_run, write_result


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-genesis probe", description=__doc__)
    parser.add_argument("run", type=weights_path, help="a run's folder, .safetensors, .ckpt or zoo:NAME")
    add_model_options(parser)
    parser.add_argument("--output", type=Path, help="a folder for the result; RUN by default")
    parser.add_argument("--data", type=Path, help="a data section, such as experiments/data/shapestacks.yaml")
    parser.add_argument("--root", help="where the data are, if not where the run has them")
    parser.add_argument("--num_train", type=int, default=NUM_TRAIN, help="training images, or all there are")
    parser.add_argument("--num_test", type=int, help="test images; all by default")
    for name, value in asdict(Probe()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help="of a probe; the paper's")
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU if there is one")
    return parser


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        CheckpointError: if there is no readable checkpoint.
        ConfigurationError: if an option is wrong, or the data have nothing to probe for.
        DataError: if the data cannot be prepared.
    """
    options = _parser().parse_args(list(args))
    settings = _settings(options)
    device = find_device(options.device, "probe")
    model, data = load_with_data(
        "probe",
        options.run,
        checkpoint=options.checkpoint,
        model=options.model_class,
        data=options.data,
        root=options.root,
    )
    model = model.to(device)
    data.prepare_data()
    console = Console()
    latents: dict[str, Latents] = {}
    counts: dict[Split, int | None] = {"train": options.num_train, "test": options.num_test}
    datasets = {split: _open(data, split) for split in counts}
    for split, count in counts.items():
        dataset = datasets[split]
        chosen = choose_images(len(dataset), len(dataset) if count is None else count)
        console.print(f"latents of {len(chosen):,} {split} images", highlight=False)
        latents[split] = collect(model, dataset, chosen)
    console.print(f"training a network for each question: {settings.num_epochs} epochs", highlight=False)
    scores: dict[str, Score] = {}
    for name, score in run_probes(latents["train"], latents["test"], device, settings):
        console.print(f"{name}: {score.kind} {score.value:.3f}, chance {score.chance:.3f}", highlight=False)
        scores[name] = score
    if not scores:
        one_slot = data.has_objects and model.num_slots == 1
        raise ConfigurationError(
            f"probe: {data.name or type(data).__name__} has no labels that are classes"
            + (", and one slot tells no object from another" if one_slot else " and no objects")
        )
    if options.output is None and not options.run.is_dir():
        console.print("not written: give --output FOLDER for what belongs to no run")
        return
    result = _result(options, model, data, latents, scores)
    path = write_result(options.output or options.run, "probes", result)
    console.print(f"written to {path}", highlight=False, soft_wrap=True)


def _open(data: SceneDataModule, split: Split) -> Any:
    """A split, with its objects if the data have any."""
    dataset: Any = data.dataset(split)
    if data.has_objects and "objects.present" not in dataset.store.arrays:
        raise ConfigurationError(
            f"probe: {dataset.store.path}: made before factors of objects were kept; remove it and run "
            f"`{data.prepare_command()}`: the images stay the same"
        )
    return dataset


def _settings(options: Namespace) -> Probe:
    least = {"num_train": 1, "num_test": 1, "hidden_dim": 1, "num_epochs": 1, "batch_size": 1, "seed": 0}
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ConfigurationError(f"probe: --{name} {value}, expected {smallest} or more")
    if not 0 < options.learning_rate < float("inf"):
        raise ConfigurationError(f"probe: --learning_rate {options.learning_rate}, expected more than 0")
    return Probe(**{name: getattr(options, name) for name in asdict(Probe())})


def _result(
    options: Namespace,
    model: SceneModel,
    data: SceneDataModule,
    latents: Mapping[str, Latents],
    scores: Mapping[str, Score],
) -> Result:
    split = EvaluatedSplit.of_dataset(data.dataset("test"), data)
    num_train, num_test = (len(latents[name].features) for name in ("train", "test"))
    deviations = general_deviations(split, {})
    if num_train != NUM_TRAIN:
        deviations.append(f"probes trained on {num_train} images, {NUM_TRAIN} in the GENESIS paper")
    settings, paper = asdict(_settings(options)), asdict(Probe())
    deviations += [
        f"probes with {name} {value}, {paper[name]} in the GENESIS paper"
        for name, value in settings.items()
        if name != "seed" and value != paper[name]
    ]
    return Result(
        **about_run(options.run, options.checkpoint),
        model=type(model).__name__,
        dataset=split.name,
        synthetic=split.synthetic,
        split=split.split,
        num_images=num_test,
        metrics=metrics_of(scores, latents["test"].overlap),
        options={
            "probe": settings,
            "num_train": num_train,
            "features": latents["train"].features.shape[1],
            "noise_seed": EVALUATION_SEED,
            "data": split.settings,
            "data_sha256": split.manifest.get("sha256"),
        },
        deviations=deviations,
    )
