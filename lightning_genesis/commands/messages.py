"""Turns the argument parser's explanations into one line that names what would have worked."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from lightning_genesis.storage.yaml_file import read_mapping


def check_config_files(arguments: Sequence[str]) -> None:
    """Looks at the files that `--config` names before the parser does, which answers some with a traceback.

    Raises:
        ConfigurationError: for a file that is no YAML mapping; one that is not there is left to the parser.
    """
    pairs = [argument.split("=", 1) for argument in arguments if argument.startswith("--config=")]
    pairs += [list(pair) for pair in pairwise(arguments) if pair[0] in ("--config", "-c")]
    for path in (Path(value) for _, value in pairs):
        if path.exists():
            read_mapping(path, "a mapping with model, data and trainer")


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
    hidden = ("SceneDataModule", "StorePlan", "DataError", "SceneModel", "Objective")
    return [name for name in names if name[0].isupper() and name not in hidden]
