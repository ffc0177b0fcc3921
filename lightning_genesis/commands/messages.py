"""Turns the argument parser's explanations into one line that names what would have worked."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.storage.yaml_file import read_mapping, read_yaml

SAID = {
    **dict.fromkeys(("lr", "learning_rate", "learning-rate"), "model.learning_rate 1e-4"),
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "n_epochs"), "trainer.max_epochs 10"),
    **dict.fromkeys(("steps", "num_steps", "iterations", "iters"), "trainer.max_steps 1000"),
    **dict.fromkeys(("batch", "batch_size", "batch-size", "bs"), "data.batch_size 32"),
    **dict.fromkeys(("workers", "num_workers", "num-workers"), "data.num_workers 2"),
    **dict.fromkeys(("num_slots", "slots", "K", "k"), "data.num_slots 5"),
    **dict.fromkeys(("image_size", "img_size", "resolution"), "data.image_size 64"),
    **dict.fromkeys(("dataset", "data_module", "datamodule"), "data MultiDSprites"),
    **dict.fromkeys(("data_root", "data_dir", "data-dir", "root"), "data.root FOLDER"),
    **dict.fromkeys(("optimizer", "optimiser", "optim"), "model.optimizer Adam"),
    **dict.fromkeys(("weight_decay", "wd"), 'model.optimizer_options "{weight_decay: 0.01}"'),
    **dict.fromkeys(("objective", "loss"), "model.objective GECO"),
    **dict.fromkeys(("beta",), "model.objective FixedBeta --model.objective.beta 1.0"),
    **dict.fromkeys(("gpus", "gpu", "num_gpus", "n_gpus"), "trainer.devices 2"),
    **dict.fromkeys(("device", "cuda", "cpu"), "trainer.accelerator cpu"),
    **dict.fromkeys(("amp", "fp16", "bf16", "mixed_precision"), "trainer.precision bf16-mixed"),
    **dict.fromkeys(("clip", "grad_clip", "clip_grad"), "trainer.gradient_clip_val 1.0"),
    **dict.fromkeys(("resume", "resume_from", "resume_from_checkpoint", "continue"), "ckpt_path last"),
    **dict.fromkeys(("ckpt", "checkpoint_path", "load", "load_from"), "ckpt_path FILE"),
    **dict.fromkeys(("pretrained", "weights", "init", "finetune"), "init_from FILE"),
    **dict.fromkeys(("seed", "random_seed"), "seed_everything 0"),
    **dict.fromkeys(("name", "run_name", "exp_name", "experiment"), "run.name NAME"),
    **dict.fromkeys(("output", "output_dir", "out", "logdir", "log_dir", "save_dir"), "run.root FOLDER"),
    **dict.fromkeys(("wandb", "no_wandb", "offline"), "run.wandb false"),
    **dict.fromkeys(("conf", "cfg", "configs", "config_file"), "config FILE"),
}
"""What people type, and the option that does it."""


SECTIONS = (
    *("model", "data", "trainer", "model.objective"),
    *(f"trainer.{name}" for name in ("callbacks", "logger", "plugins", "profiler", "strategy")),
    *("run", "checkpoint", "rollback", "pictures", "fid", "structure"),
)
"""Options that take a file of such a section as well."""


def check_config_files(arguments: Sequence[str]) -> None:
    """Looks at the files that a command line names before the parser does, which has no bounds.

    Raises:
        ConfigurationError: for a configuration that is no YAML mapping, or a section that is no YAML, and for
            files that these name; one that is not there is left to the parser.
    """
    for option, value in _given(arguments):
        name = option.removeprefix("--")
        path = Path(value)
        if name in ("config", "-c"):
            if _exists(path):
                _check_nested(read_mapping(path, "a mapping with model, data and trainer"), path, {path})
        elif name in SECTIONS and _exists(path) and not path.is_dir():
            _check_nested(read_yaml(path, f"a section {name}"), path, {path})


def _given(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options and their values."""
    for argument, following in pairwise([*arguments, ""]):
        option, is_pair, value = argument.partition("=")
        if argument.startswith("-") and (value if is_pair else following):
            yield option, value if is_pair else following


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def _check_nested(content: Any, file: Path, seen: set[Path]) -> None:
    """Reads the files that the values of a file name, as the parser will.

    Raises:
        ConfigurationError: for one that names itself, in the end, or is no YAML.
    """
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            if odd := [name for name in value if not isinstance(name, str)]:
                raise ConfigurationError(f"{file}: has the key {odd[0]!r}, expected text")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and value.endswith((".yaml", ".yml")):
            for path in (file.parent / value, Path(value)):
                if _exists(path) and path.is_file():
                    if path.resolve() in {one.resolve() for one in seen}:
                        raise ConfigurationError(f"{file}: names {value}, which names it in turn")
                    _check_nested(read_yaml(path), path, {*seen, path})
                    break


def explain(message: str, options: Iterable[str]) -> str:
    """One line for an error of the argument parser.

    Args:
        message: what the parser says, often a tree of attempts.
        options: the options that this parser has.
    """
    text = " ".join(message.split())
    words = {option.lstrip("-") for option in options if option.startswith("--")}
    names = sorted(word for word in words - {"help", "print_shtab"} if not word.endswith((".help", "+")))
    key = re.search(r"Parser key \"([\w.]+)\"", text)
    where = f"{key[1]}: " if key else ""

    unknown_class = re.search(r"Expected a dot import path string: ([\w.]+)", text)
    if unknown_class:
        known = _class_names(key[1] if key else "")
        if not known:
            return f"{where}no class {unknown_class[1]!r}: give its dotted path"
        name = unknown_class[1]
        return f"{where}no class {name!r}{_closest(name, known)}; known are {', '.join(known)}"

    unknown_argument = re.fullmatch(r"Option '([\w.]+)' is not accepted", text)
    if unknown_argument:
        name = unknown_argument[1]
        if not names:
            return f"{where}no option {name!r} there: give its class first, as in --model.objective GECO"
        said = SAID.get(name, "").partition(" ")[0].rpartition(".")[2]
        closest = f" (did you mean {said}?)" if said in names else _closest(name, names)
        return f"no option {name!r}{closest}; there are {', '.join(names)}"

    unknown_option = re.search(r"(?:unrecognized arguments: |does not accept option ')([-\w.+]+)", text)
    if unknown_option:
        name = unknown_option[1].lstrip("-")
        hint = "`lightning-genesis COMMAND --help` lists all"
        if not name:
            return f"{unknown_option[1]!r}: expected the name of an option after it; {hint}"
        if text.startswith("unrecognized") and not unknown_option[1].startswith("-"):
            return f"{name!r}: expected an option, which starts with --; {hint}"
        return f"no option {name!r}{_meant(name, names)}; {hint}"

    missing = re.search(r"the following arguments are required: (.+)", text)
    if missing:
        wanted = [part.rpartition(".")[2] for part in missing[1].split(", ")]
        if "config" not in names:  # of a class
            return f"{where}{', '.join(wanted)} missing"
        return f"--{' and --'.join(wanted)} missing: give them, or an experiment with --config FILE"

    union = re.search(r"any of the Union subtypes Subtypes: \[(.+)\] Errors: .* Given value: ?(.*)$", text)
    if union and key and (inner := re.search(r" - ([\w, ]+) missing -", text)):
        return f"{' and '.join(f'--{key[1]}.{name}' for name in inner[1].split(', '))} missing"
    if union:
        return f"{where}expected {_plain_types(union[1])}, found {union[2]!r}"

    expected = re.search(r"Expected an? (.+?)\. Got value: ?(.*)", text)
    if expected:
        return f"{where}expected {_plain_type(expected[1])}, found {expected[2]!r}"
    return text


def _meant(name: str, names: Sequence[str]) -> str:
    """The option that does what somebody else's option of this name does, else the closest of ours."""
    said = SAID.get(name, SAID.get(name.rpartition(".")[2]) if "." not in name else None)
    if said is None and "." not in name:
        said = next((option for option in names if option.endswith(f".{name}")), None)
    return f" (did you mean --{said}?)" if said else _closest(name, names)


def _plain_types(text: str) -> str:
    """The parser's list of types, in words: literals, then names of types, each once."""
    literals = [value for group in re.findall(r"Literal\[([^\]]*)\]", text) for value in group.split(", ")]
    kinds = re.findall(r"<class '([\w.]+)'>", text)
    words = [value.strip("'") for value in literals] + [kind.rpartition(".")[2] for kind in kinds]
    words = ["null" if word in ("NoneType", "None") else word for word in words]
    return "one of " + ", ".join(dict.fromkeys(words)) if words else text


def _plain_type(text: str) -> str:
    if "Literal[" in text:
        return _plain_types(text)
    return re.sub(r"<class '([\w.]+)'>", r"\1", text)


def _closest(name: str, names: Iterable[str]) -> str:
    matches = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""


def _class_names(key: str) -> list[str]:
    """Short names of the classes that a key accepts."""
    from data_modules import __all__ as data
    from lightning_genesis.models import __all__ as models
    from lightning_genesis.objectives import __all__ as objectives

    if key.startswith("trainer."):
        return []  # Lightning's
    names = {"data": data, "objective": objectives}.get(key.split(".")[-1], models)
    hidden = ("SceneDataModule", "StorePlan", "DataError", "SceneModel", "Objective")
    return [name for name in names if name[0].isupper() and name not in hidden]
