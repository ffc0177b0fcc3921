"""What commands of our own have in common: a parser with errors of one line, and options of several."""

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lightning_genesis.errors import ConfigurationError, UserError
from lightning_genesis.runs.zoo import find_weights

if TYPE_CHECKING:
    import torch


class CommandParser(argparse.ArgumentParser):
    """The parser of a command of our own, with errors of one line.

    Args:
        prog: as in "lightning-genesis sample".
        description: shown by `--help`.
    """

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises what the command shows as one line.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(f"{self.prog.split()[-1]}: {message}")


def weights_path(text: str) -> Path:
    """The type of an argument that names a run's folder, a file of weights, or `zoo:NAME`.

    Raises:
        ArgumentTypeError: if there is no such model in the zoo, or its file was changed.
    """
    try:
        return find_weights(text)
    except UserError as error:  # the parser tells the text of no other error
        raise argparse.ArgumentTypeError(str(error)) from error


def add_checkpoint_option(parser: ArgumentParser) -> None:
    """Gives a command that takes a run's folder `--checkpoint`, which `find_file` understands."""
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), help="of a run's folder; the best there is by default"
    )


def add_model_options(parser: ArgumentParser) -> None:
    """Gives a command that takes a model `--checkpoint`, and `--model` as `model_class`; see `load_model`."""
    add_checkpoint_option(parser)
    parser.add_argument(
        "--model",
        dest="model_class",
        metavar="CLASS",
        help="of a file of weights: dotted path of the model's class, if it is not one of ours",
    )


def add_prior_option(parser: ArgumentParser) -> None:
    """Gives a command that draws samples `--prior`, for `runs.priors.use_prior`."""
    parser.add_argument(
        "--prior", metavar="NAME", help="of a prior that fit-prior made for the run, or the folder of one"
    )


def check_numbers(command: str, options: Namespace, least: Mapping[str, int]) -> None:
    """Compares options, numbers or lists of them, with the least that they may be; None is left alone.

    Raises:
        ConfigurationError: if one is smaller, or not finite.
    """
    for name, smallest in least.items():
        given = getattr(options, name)
        for value in given if isinstance(given, list | tuple) else [given]:
            if value is not None and not smallest <= value < float("inf"):
                raise ConfigurationError(
                    f"{command}: --{name} {value}, expected a number of at least {smallest}"
                )


def find_device(name: str | None, command: str) -> "torch.device":
    """The device that is named; a GPU if there is one, where none is.

    Raises:
        ConfigurationError: if it is not there.
    """
    import torch  # takes seconds; not every command needs it

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split("\n")[0].split())[:160]
        raise ConfigurationError(f"{command}: --device {name}: {reason}") from error
