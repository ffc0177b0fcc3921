"""Reading YAML that people or runs wrote: one mapping, within bounds, errors of one line."""

import stat
from pathlib import Path
from typing import Any

import yaml

from lightning_genesis.errors import ConfigurationError

MOST_BYTES = 4_000_000
"""No configuration is near this; the parser would take minutes over more."""
MOST_VALUES = 100_000
"""Values a file may stand for once its aliases are followed: ten lines of them can make a billion."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; `<<` of many aliases, which it copies out, ends at the bound too."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES:
            raise yaml.YAMLError(f"merges more than {MOST_VALUES} values")


def read_mapping(path: str | Path, expected: str = "a mapping") -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: a regular file.
        expected: what the file should hold, for messages.

    Raises:
        ConfigurationError: if it is not there, no regular file, too large, no YAML, refers to itself, stands
            for more than `MOST_VALUES` values, or holds something else.
    """
    path = Path(path)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise ConfigurationError(f"{path}: is {kind}, expected a YAML file with {expected}")
        if found.st_size > MOST_BYTES:
            raise ConfigurationError(
                f"{path}: {found.st_size} bytes, expected a YAML file of at most {MOST_BYTES}"
            )
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        _check_values(content)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigurationError(f"{path}: not readable as YAML: {reason}") from error
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigurationError(f"{path}: holds {kind}, expected {expected}")
    return content


def _check_values(content: Any) -> None:
    """Counts values as often as they are referred to.

    Raises:
        ValueError: if there are too many, or infinitely many.
    """
    count, waiting = 0, [content]
    while waiting:
        value = waiting.pop()
        count += 1
        if count + len(waiting) > MOST_VALUES:
            raise ValueError(f"stands for more than {MOST_VALUES} values, or refers to itself")
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
