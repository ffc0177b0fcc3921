"""The options of `fit`, `validate`, `test` and `predict`: defaults, the parser, classes that they name."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pytorch_lightning.cli import LightningArgumentParser

from data_modules import SceneDataModule
from lightning_genesis.classes import constructor_parameters, import_class
from lightning_genesis.commands.messages import explain
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import SceneModel
from lightning_genesis.models.contract import LINKED
from lightning_genesis.runs.experiments import find_experiment
from lightning_genesis.runs.run import place_of
from lightning_genesis.storage.files import open_regular
from lightning_genesis.storage.yaml_file import read_mapping

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_steps": 500_000,
    "max_epochs": -1,
    "val_check_interval": 5000,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 100,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


def trainer_defaults() -> dict[str, Any]:
    """`TRAINER_DEFAULTS` and the number of devices: one, or what `torchrun` or SLURM has started here.

    Lightning would take all GPUs of a machine and split the batch among them.
    """
    for started, count in (
        ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_NTASKS_PER_NODE"),
    ):
        if started in os.environ and os.environ.get(count, "").isdecimal():
            return {**TRAINER_DEFAULTS, "devices": int(os.environ[count])}
    return {**TRAINER_DEFAULTS, "devices": 1}


@dataclass
class RunOptions:
    """Where a run writes.

    Args:
        name: of the run; by default the experiment's file name and the seed, with the run's id between them
            in a sweep of W&B.
        root: folder of all runs.
        wandb: log to W&B as well.
        artifacts: when training has ended, keep the best and the last checkpoint in W&B, as an artifact.
        group: of runs in W&B; a sweep groups its own.
        tags: of the run in W&B.
        notes: on the run in W&B; by default the comment at the head of the experiment's file.

    Raises:
        ConfigurationError: if the name is none of one folder.
    """

    name: str | None = None
    root: str = "runs"
    wandb: bool = True
    artifacts: bool = False
    group: str | None = None
    tags: list[str] | None = None
    notes: str | None = None

    def __post_init__(self) -> None:
        name = self.name
        if name is not None and (name in ("", ".", "..") or "/" in name or not name.isprintable()):
            raise ConfigurationError(
                f"run.name={name!r}: expected the name of one folder; --run.root says where it is made"
            )

    def about(self) -> dict[str, Any]:
        """What W&B is told of the run."""
        return {"group": self.group, "tags": self.tags, "notes": self.notes}

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.root) / (self.name or "unnamed")


def header_of(arguments: Sequence[str]) -> str | None:
    """The comment at the head of the first `--config`; None where there is none."""
    for _, name in _values(arguments, ("--config", "-c")):
        try:
            with open_regular(name) as file:
                lines = file.read(LONGEST_HEADER).decode("utf-8", errors="replace").splitlines()
        except OSError:
            return None
        head = [line.lstrip("#").strip() for line in itertools.takewhile(lambda line: line[:1] == "#", lines)]
        return "\n".join(head).strip() or None
    return None


LONGEST_HEADER = 4000
"""Bytes of a file in which its header is looked for."""
FILE_OPTIONS = ("--model", "--data", "--trainer")
"""Options that take the name of a class, or a file of such a section."""


def _file_or_class(value: str) -> str:
    return str(find_experiment(value)) if value.endswith((".yaml", ".yml")) else value


class Parser(LightningArgumentParser):
    """Lightning's parser with errors of one line, and without abbreviations: `--conf` is not `--config`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises what the command shows as one line.

        Raises:
            ConfigurationError: always.
        """
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        for action in parser._actions:
            if isinstance(action.choices, dict):
                parser = next(iter(action.choices.values()))  # all subcommands take the same options
                break
        options = [option for action in parser._actions for option in action.option_strings]
        told = explain(message, options)
        # of an option that is missing in a class: with its whole name, which the class's own line lacks
        raise ConfigurationError(told) from (None if told.startswith("--") else ex)


def place_given(arguments: Sequence[str]) -> Path | None:
    """The run's folder that the last `--config` of a run means: the one that the file lies in.

    None where the files are of no run, or where `--run.name` or `--run.root` choose a folder.
    """
    place: Path | None = None
    for _, value in _values(arguments, ("--config", "-c")):
        file = Path(value)
        run = read_mapping(file).get("run") if file.is_file() else None
        if isinstance(run, Mapping) and (run.get("name") is not None or run.get("root") is not None):
            name, root = run.get("name"), run.get("root") or RunOptions.root
            place = None if name is None else place_of(file, Path(str(root), str(name)))
    chosen = [*_values(arguments, ("--run.name", "--run.root"))]
    for _, value in _values(arguments, ("--run",)):
        with suppress(yaml.YAMLError):
            run = read_mapping(value) if Path(value).is_file() else yaml.safe_load(value)
            chosen += [("--run", key) for key in ("name", "root") if isinstance(run, Mapping) and key in run]
    return None if chosen else place


def name_of_run(config: Any) -> str:
    """What a run is called that was given no name: its experiment, or its model, and its seed."""
    given = config.get("config")
    stem = Path(str(given[0])).stem if given else config.model.class_path.split(".")[-1]
    # runs of a sweep of W&B may differ in more than the seed
    if {"WANDB_SWEEP_ID", "WANDB_RUN_ID"} <= os.environ.keys():
        stem = f"{stem}-{os.environ['WANDB_RUN_ID']}"
    return f"{stem}-seed{config.seed_everything}"


def files_first(arguments: Sequence[str]) -> list[str]:
    """A command line with its `--config` files before all options, which then count wherever they stand.

    A file that comes along, `experiments/quickstart.yaml` or `quickstart`, need not be in the folder.

    A run's `config.yaml` has every option: `test --ckpt_path best --config RUN/config.yaml` would otherwise
    test untrained weights, without a word.
    """
    command, *rest = arguments
    files: list[str] = []
    others: list[str] = []
    remaining = iter(rest)
    for argument in remaining:
        if argument in ("--config", "-c"):
            files += [argument, *(str(find_experiment(name)) for name in itertools.islice(remaining, 1))]
        elif argument.startswith("--config="):
            files += ["--config", str(find_experiment(argument.partition("=")[2]))]
        elif argument in FILE_OPTIONS:
            others += [argument, *(_file_or_class(value) for value in itertools.islice(remaining, 1))]
        else:
            option, is_pair, value = argument.partition("=")
            is_file = is_pair and option in FILE_OPTIONS
            others.append(f"{option}={_file_or_class(value)}" if is_file else argument)
    return [command, *files, *others]


# ---------------------------------------------------------------- classes


def check_classes(arguments: Sequence[str]) -> None:
    """Imports the model and the data module that a command line names by their dotted paths.

    The parser would answer a path that it cannot import with a tree of attempts. Short names are left to it.

    Raises:
        ConfigurationError: if a class cannot be imported, or is of another kind.
    """
    for option, value in _class_paths(arguments):
        section = option.split(":")[-1].strip().lstrip("-").partition(".")[0]
        base: type = SceneModel if section == "model" else SceneDataModule
        import_class(value, base, option)


def _class_paths(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Dotted paths of classes, with what names them: options, and the sections of `--config` files."""
    for option, value in _values(arguments, ("--model", "--data", "--model.class_path", "--data.class_path")):
        if _is_class_path(value):
            yield option, value
    for _, file in _values(arguments, ("--config", "-c")):
        if not Path(file).is_file():
            continue
        for key, section in read_mapping(file).items():
            if key in ("model", "data"):
                yield from _class_paths_of_section(Path(file), key, section)


def _class_paths_of_section(file: Path, key: str, section: Any) -> Iterator[tuple[str, str]]:
    if isinstance(section, str) and (nested := file.parent / section).is_file():
        file, section = nested, read_mapping(nested)
    named = section.get("class_path") if isinstance(section, Mapping) else section
    if isinstance(named, str) and _is_class_path(named):
        yield f"{file}: {key}.class_path" if isinstance(section, Mapping) else f"{file}: {key}", named


def _values(arguments: Sequence[str], options: Sequence[str]) -> Iterator[tuple[str, str]]:
    for argument, following in pairwise([*arguments, ""]):
        option, equals, value = argument.partition("=")
        if option in options:
            yield option, value if equals else following


def _is_class_path(value: str) -> bool:
    """Whether a value is dotted and no file of a section."""
    is_file = value.endswith((".yaml", ".yml"))
    return all(part.isidentifier() for part in value.split(".")) and "." in value and not is_file


def refuse_linked_values(model: Any) -> None:
    """Refuses values of the model that come from the data, and a model that does not take these.

    Args:
        model: `class_path` and `init_args` as parsed.

    Raises:
        ConfigurationError: naming the option or the argument.
    """
    kind = import_class(model.class_path, SceneModel, "--model")
    parameters = constructor_parameters(kind)
    for name in LINKED:
        if name not in parameters:
            raise ConfigurationError(
                f"{model.class_path}: its constructor does not take {name}, which comes from the data; "
                "list it and hand it on, or take **common and call super().__init__(..., **common)"
            )
        value = (model.get("init_args") or {}).get(name)
        if value is not None and value != parameters[name].default:
            raise ConfigurationError(
                f"model.init_args.{name}={value} would be ignored: the model takes it from the data; "
                f"use --data.{name} (or --data.init_args.{name}) where the data have that option"
            )
