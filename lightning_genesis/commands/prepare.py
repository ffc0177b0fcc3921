"""`lightning-genesis prepare NAME`: builds a dataset's store.

NAME is a dataset of ours, or the dotted path of a `SceneDataModule` of one's own.
"""

from collections.abc import Sequence
from difflib import get_close_matches

from jsonargparse import ArgumentParser

import data_modules
from data_modules import SceneDataModule
from lightning_genesis.classes import import_class
from lightning_genesis.errors import ConfigurationError


def datasets() -> dict[str, type[SceneDataModule]]:
    """Every dataset that has something to prepare, by its name on the command line."""
    exported = [getattr(data_modules, name) for name in data_modules.__all__]
    kinds = [kind for kind in exported if isinstance(kind, type) and issubclass(kind, SceneDataModule)]
    return {kind.name: kind for kind in kinds if kind.name is not None}


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ConfigurationError: if there is no such dataset or option.
        DataError: if the data cannot be prepared.
    """
    known = datasets()
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: lightning-genesis prepare NAME [OPTIONS]\n\nNAME is one of {', '.join(known)}")
        return
    name, *rest = args
    if "." in name:
        known = {name: import_class(name, SceneDataModule, "prepare")}
    elif name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigurationError(
            f"prepare: no dataset {name!r}{hint}; known are {', '.join(known)}, "
            "or give the dotted path of your own class"
        )
    parser = ArgumentParser(prog=f"lightning-genesis prepare {name}", exit_on_error=False)
    parser.add_class_arguments(known[name])
    try:
        options = parser.parse_args(rest)
    except Exception as error:
        raise ConfigurationError(f"prepare {name}: {' '.join(str(error).split())}") from error
    data = known[name](**options.as_dict())
    data.prepare()
    print(f"{name} is ready in {data.root}")
