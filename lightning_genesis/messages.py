"""Turns the parser's long explanations into one line that names what would have worked."""

import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module


def explain(message: str, options: Iterable[str]) -> str:
    """One line for an error of the argument parser.

    Args:
        message: what the parser says, often a tree of attempts.
        options: the options that the command has.
    """
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    text = " ".join(lines)
    unknown_class = re.search(
        r"(?:dot import path string|does not correspond to a subclass[^:]*):? ?([\w.]+)", text
    )
    unknown_argument = re.findall(
        r"class_path '([\w.]+)': (?:Parser key \"[^\"]+\": )?Option '([\w.]+)' is not", text
    )
    unknown_option = re.search(
        r"(?:unrecognized arguments: |does not accept option '|Unrecognized arguments: )([-\w.+]+)", text
    )
    key = re.search(r"Parser key \"([\w.]+)\"", text)
    where = key[1] if key else ""
    if unknown_argument:
        path, name = unknown_argument[-1]
        names = _arguments(path)
        return (
            f"{path.split('.')[-1]} has no option {name!r}{_closest(name, names)}; it has {', '.join(names)}"
        )
    if unknown_class:
        names = _class_names(where)
        name = unknown_class[1]
        return f"{where}: no class {name!r}{_closest(name, names)}; known are {', '.join(names)}"
    if unknown_option:
        name = unknown_option[1].lstrip("-")
        names = sorted({option.lstrip("-") for option in options})
        return f"no option {name!r}{_closest(name, names)}; `lightning-genesis COMMAND --help` lists them"
    expected = re.search(r"Expected an? (.+?)\. Got value: (\S+)", text)
    if expected:
        inner = re.findall(r"Parser key \"([\w.]+)\"", text)
        return f"{'.'.join(inner)}: expected {_plain_type(expected[1])}, found {expected[2]!r}"
    return text


def _plain_type(text: str) -> str:
    return re.sub(r"<class '([\w.]+)'>", r"\1", text)


def _closest(name: str, names: Iterable[str]) -> str:
    matches = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""


def _arguments(path: str) -> list[str]:
    """Constructor arguments of a class by its import path."""
    module, _, name = path.rpartition(".")
    return [argument for argument in inspect.signature(getattr(import_module(module), name)).parameters]


def _class_names(key: str) -> list[str]:
    """Short names of the classes that a key accepts."""
    from data_modules import __all__ as data
    from lightning_genesis.models import __all__ as models
    from lightning_genesis.objectives import __all__ as objectives

    groups = {"data": (data, ("SceneDataModule", "DataError")), "objective": (objectives, ("Objective",))}
    names, hidden = groups.get(key.split(".")[-1], (models, ("SceneModel",)))
    return [name for name in names if name[0].isupper() and name not in hidden]
