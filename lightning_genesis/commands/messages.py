"""Turns the argument parser's explanations into one line that names what would have worked."""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import yaml

from lightning_genesis.errors import ConfigurationError


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


def check_config_files(arguments: Sequence[str]) -> None:
    """Looks at the files that `--config` names before the parser does, which answers some with a traceback.

    Raises:
        ConfigurationError: for a file that is no YAML mapping; one that is not there is left to the parser.
    """
    pairs = [argument.split("=", 1) for argument in arguments if argument.startswith("--config=")]
    pairs += [list(pair) for pair in pairwise(arguments) if pair[0] in ("--config", "-c")]
    for path in (Path(value) for _, value in pairs):
        if not path.is_file():
            continue
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            json.dumps(content, default=str)  # finds what refers to itself
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(f"{path}: not readable as YAML: {reason}") from error
        if not isinstance(content, dict):
            found = "nothing" if content is None else f"a {type(content).__name__}"
            raise ConfigurationError(
                f"{path}: holds {found}, expected a mapping with model, data and trainer"
            )


def explain(message: str, options: Iterable[str]) -> str:
    """One line for an error of the argument parser.

    Args:
        message: what the parser says, often a tree of attempts.
        options: the options that this parser has.
    """
    text = " ".join(message.split())
    names = sorted({option.lstrip("-") for option in options if option.startswith("--")} - {"help"})
    key = re.search(r"Parser key \"([\w.]+)\"", text)
    where = f"{key[1]}: " if key else ""

    unknown_class = re.search(r"Expected a dot import path string: ([\w.]+)", text)
    if unknown_class:
        known = _class_names(key[1] if key else "")
        name = unknown_class[1]
        return f"{where}no class {name!r}{_closest(name, known)}; known are {', '.join(known)}"

    unknown_argument = re.fullmatch(r"Option '([\w.]+)' is not accepted", text)
    if unknown_argument:
        name = unknown_argument[1]
        return f"no option {name!r}{_closest(name, names)}; there are {', '.join(names)}"

    unknown_option = re.search(r"(?:unrecognized arguments: |does not accept option ')([-\w.+]+)", text)
    if unknown_option:
        name = unknown_option[1].lstrip("-")
        hint = "`lightning-genesis COMMAND --help` lists all"
        return f"no option {name!r}{_closest(name, names)}; {hint}"

    expected = re.search(r"Expected an? (.+?)\. Got value: (.+)", text)
    if expected:
        return f"{where}expected {_plain_type(expected[1])}, found {expected[2]!r}"
    return text


def _plain_type(text: str) -> str:
    return re.sub(r"<class '([\w.]+)'>", r"\1", text)


def _closest(name: str, names: Iterable[str]) -> str:
    matches = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""


def _class_names(key: str) -> list[str]:
    """Short names of the classes that a key accepts."""
    from data_modules import __all__ as data
    from lightning_genesis.models import __all__ as models
    from lightning_genesis.objectives import __all__ as objectives

    names = {"data": data, "objective": objectives}.get(key.split(".")[-1], models)
    hidden = ("SceneDataModule", "DataError", "SceneModel", "Objective")
    return [name for name in names if name[0].isupper() and name not in hidden]
