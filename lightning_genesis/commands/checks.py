"""What is wrong with a command line although the parser takes it.

Options that the command does not heed, values that would train nothing, what Lightning complains of.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import jsonargparse._typehints as parsing
from jsonargparse import Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException

from data_modules import DataError
from lightning_genesis.bounds import check_number
from lightning_genesis.classes import constructor_parameters
from lightning_genesis.commands.sweep import FIT_ONLY, TEST_ONLY
from lightning_genesis.errors import ConfigurationError, UserError
from lightning_genesis.models.contract import LINKED

ONLY_IN = {
    **dict.fromkeys(TEST_ONLY, "test"),
    **dict.fromkeys(FIT_ONLY, "fit"),
    "predictions": "predict",
}
"""Options that one command alone heeds. A configuration may hold them, since it is of a run's whole life."""
LARGEST_SEED = 2**32 - 1
"""Of NumPy's generator."""
_LEAST: dict[str, float] = {
    **dict.fromkeys(("accumulate_grad_batches", "check_val_every_n_epoch"), 1),
    **dict.fromkeys(("min_steps", "min_epochs", "overfit_batches", "gradient_clip_val"), 0),
    "log_every_n_steps": 0,
    **dict.fromkeys(("max_steps", "max_epochs", "num_sanity_val_steps"), -1),
    **dict.fromkeys(("num_nodes", "reload_dataloaders_every_n_epochs"), 0),
}
"""Of the Trainer's options, where they are numbers."""
_PASSES = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
_KNOWN = (
    *("lightning_genesis", "data_modules", "pytorch_lightning", "lightning_fabric", "lightning_utilities"),
    *("jsonargparse", "torch", "torchmetrics", "numpy", "__main__"),
)
"""Packages that are not the user's own code."""


def check_applies(arguments: Sequence[str]) -> None:
    """Refuses options on a command line that its command does not heed.

    Args:
        arguments: with the command's name first.

    Raises:
        ConfigurationError: naming the option and the command that it is for.
    """
    command, *rest = arguments
    for argument in rest:
        option = argument.partition("=")[0].removeprefix("--")
        name = option.partition(".")[0]
        if argument.startswith("--") and name in ONLY_IN and ONLY_IN[name] != command:
            raise ConfigurationError(
                f"--{option}: does nothing in `{command}`, it is for `{ONLY_IN[name]}`; leave it out"
            )


def check_values(command: str, config: Namespace) -> None:
    """Refuses numbers with which a command would do nothing, or something else than they say.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        config: its options as parsed.

    Raises:
        ConfigurationError: naming the option, the value and what was expected.
    """
    for section in ("model", "data"):
        _refuse_nulls(section, config[section])
    check_number("seed_everything", config.seed_everything, 0, LARGEST_SEED, whole=True)
    trainer: Mapping[str, Any] = config.trainer.as_dict()
    for name, least in _LEAST.items():
        if trainer.get(name) is not None:
            check_number(f"trainer.{name}", trainer[name], least)
    interval = trainer["val_check_interval"]
    if isinstance(interval, int | float):
        check_number("trainer.val_check_interval", interval, 0, open_ends=True)
    if not trainer["fast_dev_run"]:
        limit = f"limit_{_PASSES[command]}_batches"
        if trainer[limit] is not None and not trainer[limit] > 0:
            raise ConfigurationError(
                f"trainer.{limit}={trainer[limit]}: `{command}` would do nothing; expected a number above 0"
            )
        for name in ("max_steps", "max_epochs") if command == "fit" else ():
            if trainer[name] == 0:
                raise ConfigurationError(f"trainer.{name}=0: trains nothing; expected -1, or 1 or more")


def _refuse_nulls(section: str, spec: Any) -> None:
    """The parser takes null for every option of a class."""
    if not isinstance(spec, Namespace) or "class_path" not in spec:
        return
    parameters = constructor_parameters(_class_at(spec.class_path) or object)
    for name, value in (spec.get("init_args") or Namespace()).items(branches=True, nested=False):
        if value is not None:
            _refuse_nulls(f"{section}.{name}", value)
        elif name in parameters and name not in LINKED:
            kind = parameters[name].annotation
            if kind is not inspect.Parameter.empty and not re.search(r"None|Any|Optional", str(kind)):
                raise ConfigurationError(f"{section}.{name}=null: expected {getattr(kind, '__name__', kind)}")


def _class_at(path: str) -> type | None:
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


# ---------------------------------------------------------------- another class than a file's


@contextmanager
def fresh_classes() -> Iterator[dict[tuple[str, str], list[str]]]:
    """While a command line is parsed, a class that takes the place of another starts from its own defaults.

    The parser would keep values of options of the same name, meant for the other class, and drop the rest.

    Yields:
        what was dropped, filled while parsing: (old class, new class) to options that were not the old one's
        defaults.
    """
    dropped: dict[tuple[str, str], list[str]] = {}

    def drop(parser_or_action: Any, before: Any, after: Any) -> None:
        del parser_or_action
        if not before or "init_args" not in before or before["class_path"] == after["class_path"]:
            return
        arguments = before["init_args"]
        given = dict(arguments.items(branches=True, nested=False) if isinstance(arguments, Namespace) else {})
        names = [name for name, value in given.items() if not _is_default(before["class_path"], name, value)]
        pair = (_short(before["class_path"]), _short(after["class_path"]))
        if names and pair not in dropped:
            dropped[pair] = names
        before["init_args"] = Namespace()

    with patch.object(parsing, "discard_init_args_on_class_path_change", drop):
        yield dropped


def _is_default(path: str, name: str, value: Any) -> bool:
    parameter = constructor_parameters(_class_at(path) or object).get(name)
    return parameter is not None and (parameter.default == value or value is None)


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def note_of(dropped: Mapping[tuple[str, str], Sequence[str]]) -> Iterator[str]:
    """A line for each class that took the place of another; see `fresh_classes`."""
    for (old, new), names in dropped.items():
        yield f"note: {new} in place of {old}: it starts from its own defaults; dropped: {', '.join(names)}"


# ---------------------------------------------------------------- Lightning's complaints


@contextmanager
def mistakes_in_one_line(
    option: str, *, running: bool = False, raised: Sequence[Exception] = ()
) -> Iterator[None]:
    """Turns what Lightning or a class of ours says of its options into one line.

    What a class or callback of the user's own raises, or makes others raise, keeps its traceback.

    Args:
        option: that the block looks at, for the message.
        running: only Lightning's complaints, in which it or its callbacks raise: everything else is an error
            of the program.
        raised: what constructors have raised in the block, see `remembering`.

    Raises:
        ConfigurationError: in place of these.
    """
    found: Exception | None = None
    try:
        yield
    except Exception as error:
        # The parser wraps what a constructor raises, or drops it; the innermost error says it best.
        found = raised[-1] if raised else error
    if found is None:
        return
    # Raised outside the handler: as the context of its own wrapper it would be its own cause.
    chain = list(_causes(found))
    innermost = chain[-1]
    modules = [name for one in chain for name in _modules(one)]
    ours = all(name.partition(".")[0] in (*_KNOWN, *sys.stdlib_module_names) for name in modules)
    complaint = isinstance(found, MisconfigurationException) or (
        type(found) is RuntimeError and modules[-1].startswith("pytorch_lightning.callbacks.")
    )
    told = any(isinstance(one, UserError | DataError | OSError) for one in chain)
    if told or not ours or (running and not complaint):
        raise found
    reason = " ".join(str(innermost).split())[:1000] or type(innermost).__name__
    raise ConfigurationError(f"{option}: {reason}") from found


def remembering(raised: list[Exception]) -> Callable[..., Any]:
    """What makes an instance for the parser, and adds to `raised` what a constructor raises."""

    def build(kind: type, *args: Any, **options: Any) -> Any:
        try:
            return kind(*args, **options)
        except Exception as error:
            raised.append(error)
            raise

    return build


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _modules(error: BaseException) -> Iterator[str]:
    """Names of the modules that an error went through, outermost first."""
    trace = error.__traceback__
    while trace is not None:
        yield str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
