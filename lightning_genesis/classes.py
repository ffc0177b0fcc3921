"""Finding a class by its name: among those that are imported, or by importing what the user names."""

import inspect
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from lightning_genesis.errors import ConfigurationError

T = TypeVar("T")


def subclasses(base: type[T]) -> list[type[T]]:
    """All classes below `base` that are imported, each once."""
    below = [found for child in base.__subclasses__() for found in (child, *subclasses(child))]
    return list(dict.fromkeys(below))


def class_path(kind: type) -> str:
    """The dotted path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def find_class(name: str, base: type[T], where: str) -> type[T]:
    """A class below `base` that is imported already; nothing is imported for a name from a file.

    Args:
        name: of the class, or its dotted path.
        base: what it has to be.
        where: what names it, for messages.

    Raises:
        ConfigurationError: if there is none, or several.
    """
    kinds = subclasses(base)
    found = [kind for kind in kinds if name in (kind.__name__, class_path(kind))]
    if len(found) > 1:
        paths = " and ".join(class_path(kind) for kind in found)
        raise ConfigurationError(f"{where}: {name!r} is the name of {paths}: give the dotted path")
    if not found:
        raise ConfigurationError(f"{where}: {unknown(name, [kind.__name__ for kind in kinds])}")
    return found[0]


def unknown(name: str, known: Sequence[str]) -> str:
    """Says that there is no class of a name, and which there are."""
    names = sorted({one for one in known if not one.startswith("_")})
    close = get_close_matches(name.rpartition(".")[2], names, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"no class {name!r}{hint}; known are {', '.join(names)}"


def import_class(path: str, base: type[T], where: str) -> type[T]:
    """A class that the user names, in an option or in a run's own configuration, imported if need be.

    Args:
        path: dotted path of the class, or the name alone of one that is imported.
        base: what it has to be.
        where: option or key that names it, for messages.

    Raises:
        ConfigurationError: if there is no such module or class, or it is no `base`. What goes wrong inside
            the module keeps its own error.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        return find_class(name, base, where)
    importable_from_here()
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"{where}: {path}: importing {module_name} failed: {error}") from error
        raise ConfigurationError(
            f"{where}: {path}: no module {error.name!r} among the installed ones and in the current folder "
            f"{Path.cwd()}; start the command where {error.name.partition('.')[0]} lies, or install it"
        ) from error
    kind = getattr(module, name, None)
    if not isinstance(kind, type) or not issubclass(kind, base):
        known = {key: value for key, value in vars(module).items() if isinstance(value, type)}
        fitting = [key for key, value in known.items() if issubclass(value, base) and value is not base]
        found = "there is none" if kind is None else f"it is no {base.__name__}"
        ours = f"; {module_name} has {', '.join(fitting)}" if fitting else ""
        raise ConfigurationError(f"{where}: {path}: expected a {base.__name__}, but {found}{ours}")
    return kind


def importable_from_here() -> None:
    """Lets class paths name modules in the current folder, as `python -m` does, but after the installed."""
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)


def constructor_parameters(kind: type) -> dict[str, inspect.Parameter]:
    """What a class can be constructed with, by name: its own arguments, then those that `**options` reach."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        own = inspect.signature(vars(base)["__init__"]).parameters.values()
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        named = [parameter for parameter in own if parameter.kind not in variable]
        found = {**found, **{one.name: one for one in named[1:] if one.name not in found}}
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in own):
            break
    return found
