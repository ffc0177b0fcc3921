"""Which values a sweep takes: from the command line, `--model.std 0.5,0.7`, and from a file of values.

On the command line a comma separates values, except inside brackets and quotes: `0.5,0.7` are two values,
`[1,2]`, `{a: 1, b: 2}` and `'a,b'` are one, `[1,2],[3,4]` are two lists. What could be read
either way is refused.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.storage.yaml_file import read_yaml

MOST_POINTS = 1000
"""Combinations of values; as many tasks as SLURM's arrays have by default."""
LONGEST_VALUE, LONGEST_NAME = 40, 150
"""Characters of a value in a run's name, and of the name; what is longer ends in a digest."""
WHOLE = ("--change",)
"""Options that take names with commas between them: these are one value."""
EITHER = ("--trainer.devices",)
"""Options for which `0,1` is a value too."""
FIXED = ("--config", "-c", "--run", "--run.name", "--run.root", "--run.wandb", "--ckpt_path")
"""Options that are the same for all runs of a sweep."""
_OPEN, _CLOSED = "[{(", "]})"


@dataclass(frozen=True)
class Point:
    """A combination of values; without any, the experiment as it is."""

    values: tuple[tuple[str, str], ...] = ()
    """Option, without dashes, and its value as it is written on a command line."""

    @property
    def name(self) -> str:
        """What tells the runs of the point from others: `std=0.5`, empty without values.

        It depends on nothing but the swept options and these values, so that a sweep with more values finds
        the runs of the one before.
        """
        short = [_short(option) for option, _ in self.values]
        unique = len(set(short)) == len(short)
        names = short if unique else [option for option, _ in self.values]
        parts = (f"{name}={_in_a_name(value)}" for name, (_, value) in zip(names, self.values, strict=True))
        return _bounded(",".join(parts), LONGEST_NAME)


@dataclass(frozen=True)
class _Swept:
    """An option with several values, and its place among the arguments; None: it is in the file."""

    option: str
    values: tuple[str, ...]


class SweptOptions:
    """The command lines of a sweep.

    Args:
        options: of the command line, which go to `fit`.
        file: of values, see `read_points`; None for none.

    Raises:
        ConfigurationError: if a value could be read in two ways, or an option cannot be swept.
    """

    def __init__(self, options: Sequence[str], file: Path | None = None) -> None:
        self._parts: list[str | _Swept] = []
        for option, value in _pairs(options):
            self._parts += _read_option(option, value)
        swept = [part for part in self._parts if isinstance(part, _Swept)]
        from_file = [()] if file is None else read_points(file)
        self._check(swept, from_file, file)
        count = len(from_file)
        for part in swept:
            count *= len(part.values)
        if count > MOST_POINTS:
            raise ConfigurationError(
                f"sweep: {count} combinations of values, expected {MOST_POINTS} or fewer"
            )
        grid = itertools.product(*([(part.option, value) for value in part.values] for part in swept))
        self.points = [Point((*chosen, *given)) for chosen in grid for given in from_file]
        """All combinations, values of the last option changing fastest."""

    def _check(
        self, swept: Sequence[_Swept], points: Sequence[tuple[tuple[str, str], ...]], file: Path | None
    ) -> None:
        given = {
            _canonical(part.removeprefix("--"))
            for part in self._parts
            if isinstance(part, str) and part.startswith("--")
        }
        for part in swept:
            if _canonical(part.option) in given:
                raise ConfigurationError(f"sweep: --{part.option} is given twice, once with several values")
            given.add(_canonical(part.option))
        for option in dict.fromkeys(option for point in points for option, _ in point):
            if _canonical(option) in given:
                raise ConfigurationError(f"sweep: {option} is in {file} and on the command line")

    def at(self, point: Point) -> list[str]:
        """The options of `fit` at a point: swept ones where they stood, those of the file at the end."""
        chosen = dict(point.values)
        arguments = []
        for part in self._parts:
            if isinstance(part, str):
                arguments.append(part)
            else:
                arguments += [f"--{part.option}", chosen.pop(part.option)]
        return [*arguments, *(word for option, value in chosen.items() for word in (f"--{option}", value))]


# ---------------------------------------------------------------- the command line


def _pairs(options: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Options with their values; None where there is none, and words that belong to no option alone."""
    remaining = list(options)
    while remaining:
        word = remaining.pop(0)
        name, equals, value = word.partition("=")
        is_option = word.startswith("--") or word == "-c"
        if is_option and equals:
            yield name, value
        elif is_option and remaining and not remaining[0].startswith("--"):
            yield word, remaining.pop(0)
        else:
            yield word, None


def _read_option(option: str, value: str | None) -> list["str | _Swept"]:
    if value is None:
        return [option]
    if option in WHOLE or "," not in value:
        return [option, value]
    parts = split_values(value, option)
    if len(parts) == 1:
        return [option, parts[0]]
    if option in FIXED:
        raise ConfigurationError(f"sweep: {option} {value}: is the same for all runs, expected one value")
    if option in EITHER:
        raise ConfigurationError(
            f"sweep: {option} {value}: one value or {len(parts)}? For one write [{value}], for several use a "
            "file, --values"
        )
    if Path(value).exists():
        raise ConfigurationError(
            f"sweep: {option} {value}: a file of this name is there: one value or {len(parts)}? For one "
            f"write it in quotes, \"'{value}'\""
        )
    _refuse_repeats(f"{option} {value}", parts)
    return [_Swept(option.removeprefix("--"), tuple(parts))]


def refuse_several(options: Sequence[str]) -> None:
    """Refuses several values of options that cannot be swept, which are those of `test`.

    Raises:
        ConfigurationError: naming the first option with several values.
    """
    for option, value in _pairs(options):
        if value is not None and len(split_values(value, option)) > 1:
            raise ConfigurationError(
                f"sweep: {option} {value}: only options of `fit` are swept, expected one value"
            )


def split_values(text: str, option: str) -> list[str]:
    """Values with commas between them; what is in brackets or quotes is one.

    Quotes around a value are dropped.

    Args:
        text: as given.
        option: for messages.

    Raises:
        ConfigurationError: if a bracket or a quote is not closed, or a value is empty.
    """
    parts = [""]
    depth: list[str] = []
    quote = ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and (depth or not parts[-1].strip()):  # as in YAML, only where a value starts
            quote = character
        elif character in _OPEN:
            depth.append(_CLOSED[_OPEN.index(character)])
        elif character in _CLOSED:
            if not depth or depth.pop() != character:
                raise ConfigurationError(f"sweep: {option} {text}: {character} closes nothing")
        elif character == "," and not depth:
            parts.append("")
            continue
        parts[-1] += character
    if depth or quote:
        raise ConfigurationError(f"sweep: {option} {text}: {(depth or [quote])[-1]} is missing")
    parts = [part.strip() for part in parts]
    if not all(parts):
        raise ConfigurationError(f"sweep: {option} {text}: an empty value; leave a comma out")
    quoted = re.compile(r"(['\"])(.*)\1")
    return [match[2] if (match := quoted.fullmatch(part)) else part for part in parts]


def _refuse_repeats(where: str, values: Sequence[str]) -> None:
    seen: list[Any] = []
    for value in values:
        if (plain := _plain(value)) in seen:
            raise ConfigurationError(f"sweep: {where}: the value {value} is there twice")
        seen.append(plain)


def _plain(value: str) -> Any:
    """A number or a YAML value, for comparison: `0.50` is `0.5`, and `true` is not 1."""
    try:
        return "number", float(value)
    except ValueError:
        pass
    try:
        return "yaml", json.dumps(yaml.safe_load(value), sort_keys=True, default=str)
    except (yaml.YAMLError, TypeError, RecursionError):
        return "text", value


# ---------------------------------------------------------------- the file


def read_points(file: Path) -> list[tuple[tuple[str, str], ...]]:
    """Combinations in a YAML file.

    Either a mapping of options to lists of values, all combined, `model.std: [0.5, 0.7]`, or a list of
    mappings of options to one value, each a combination, `- {model.std: 0.5, model.learning_rate: 1e-4}`.

    Raises:
        ConfigurationError: if it is something else.
    """
    expected = "options with lists of values, or a list of options with a value each"
    content = read_yaml(file, expected)
    if isinstance(content, dict) and content:
        columns = []
        for option, values in content.items():
            _check_option(file, option)
            if not isinstance(values, list) or not values:
                raise ConfigurationError(
                    f"{file}: {option}: {_as_text(values)}, expected a list of values, such as [0.5, 0.7]"
                )
            texts = [_as_text(value) for value in values]
            _refuse_repeats(f"{file}: {option}", texts)
            columns.append([(option, text) for text in texts])
        return list(itertools.product(*columns))
    if isinstance(content, list) and content:
        points = []
        for number, entry in enumerate(content, 1):
            if not isinstance(entry, dict) or not entry or list(entry) != list(content[0]):
                first = ", ".join(map(str, content[0])) if isinstance(content[0], dict) else "options"
                raise ConfigurationError(
                    f"{file}: entry {number} is {_as_text(entry)}, expected values of {first or 'options'}, "
                    "as in all entries"
                )
            for option in entry:
                _check_option(file, option)
            points.append(tuple((option, _as_text(value)) for option, value in entry.items()))
        if len(set(points)) < len(points):
            raise ConfigurationError(f"{file}: two entries are the same")
        return points
    raise ConfigurationError(f"{file}: expected {expected}")


def _check_option(file: Path, option: Any) -> None:
    if not isinstance(option, str) or not re.fullmatch(r"[\w.]+", option):
        raise ConfigurationError(f"{file}: {option!r}, expected the name of an option, such as model.std")
    if f"--{option}" in (*FIXED, "--seed_everything", *WHOLE) or option == "config":
        raise ConfigurationError(f"{file}: {option}: is the sweep's own, or the same for all runs")


def _as_text(value: Any) -> str:
    """A value as it stands on a command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


# ---------------------------------------------------------------- names


def _canonical(option: str) -> str:
    """An option's name without what may be left out of it."""
    return option.replace(".init_args.", ".")


def _short(option: str) -> str:
    """The last part of an option's name that says something."""
    parts = [part for part in option.split(".") if part not in ("class_path", "init_args")]
    return parts[-1] if parts else option


def _in_a_name(value: str) -> str:
    """A value as part of a folder's name."""
    clean = re.sub(r"[^\w.+-]+", "_", value, flags=re.ASCII).strip("_")
    return clean if clean == value and len(clean) <= LONGEST_VALUE else _digested(clean, value, 24)


def _bounded(name: str, longest: int) -> str:
    return name if len(name) <= longest else _digested(name, name, longest - 7)


def _digested(start: str, whole: str, length: int) -> str:
    return f"{start[:length]}~{hashlib.sha256(whole.encode()).hexdigest()[:6]}".lstrip("~")
