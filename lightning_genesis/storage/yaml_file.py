"""Reading YAML that people or runs wrote: within bounds of size, kind and time, errors of one line."""

from pathlib import Path
from typing import Any

import yaml

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.storage.files import open_regular

MOST_BYTES = 300_000
"""The largest configuration has a tenth of it; the parser, which is slow, takes seconds over more."""
MOST_VALUES = 100_000
"""Values a file may stand for once its aliases are followed: ten lines of them can make a billion."""
MOST_MERGED = 100
"""Mappings that one `<<` may name."""
MOST_NUMBERED = 1000
"""Keys of a mapping that are no text: hashes of numbers can be made to collide, which takes for ever."""
LONGEST_NUMBER = 1000
"""Characters; the parser's time grows with their square."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with bounds on what takes more than linear time."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, value in node.value:
            is_merge = key.tag == "tag:yaml.org,2002:merge" and isinstance(value, yaml.SequenceNode)
            if is_merge and len(value.value) > MOST_MERGED:
                raise yaml.YAMLError(f"merges more than {MOST_MERGED} mappings at once")
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES:
            raise yaml.YAMLError(f"merges more than {MOST_VALUES} values")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        numbered = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:str"]
        if len(numbered) > MOST_NUMBERED:
            raise yaml.YAMLError(f"a mapping has more than {MOST_NUMBERED} keys that are no text")
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if is_number and len(str(value)) > LONGEST_NUMBER:
            raise yaml.YAMLError(f"a number of more than {LONGEST_NUMBER} characters")
        return value


def read_yaml(path: str | Path, expected: str = "YAML", most_bytes: int = MOST_BYTES) -> Any:
    """What a YAML file holds: plain data, of no code.

    Args:
        path: a regular file.
        expected: what the file should hold, for messages.
        most_bytes: a larger file is refused.

    Raises:
        ConfigurationError: if it is not there, no regular file, too large, no YAML, refers to itself, or
            stands for more than `MOST_VALUES` values.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ConfigurationError(f"{path}: is a folder, expected a YAML file with {expected}")
        with open_regular(path) as file:
            text = file.read(most_bytes + 1)
        if len(text) > most_bytes:
            raise ConfigurationError(
                f"{path}: more than {most_bytes:,} bytes, expected a smaller YAML file with {expected}"
            )
        content = yaml.load(text.decode("utf-8"), _Loader)
        _check_values(content)
    except ConfigurationError:
        raise
    except Exception as error:  # for rubbish the parser raises KeyError, AttributeError and others
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ConfigurationError(f"{path}: not readable as YAML: {reason}") from error
    return content


def read_mapping(path: str | Path, expected: str = "a mapping") -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: a regular file.
        expected: what the file should hold, for messages.

    Raises:
        ConfigurationError: as of `read_yaml`, and if it holds something else.
    """
    content = read_yaml(path, expected)
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
