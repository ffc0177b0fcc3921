"""Reading JSON that nobody vouches for: within bounds of size, kind and time, errors of one line."""

import json
from pathlib import Path
from typing import Any

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.storage.files import open_regular
from lightning_genesis.storage.text import is_clean

MOST_BYTES = 10_000_000
DEEPEST = 50
"""Levels of lists and objects."""
LARGEST = 2**63
"""Whole numbers are below it; larger ones have no float, or no decimal text."""


def read_json(path: str | Path, most_bytes: int = MOST_BYTES) -> Any:
    """What a JSON file holds; all text in it can be written and shown.

    Args:
        path: a regular file.
        most_bytes: a larger file is refused.

    Raises:
        ConfigurationError: if it is not there, no regular file, too large or no JSON, if a whole number does
            not fit into 64 bits, text has control characters or half a character, or it is nested too deep.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            text = file.read(most_bytes + 1)
        if len(text) > most_bytes:
            raise ValueError(f"more than {most_bytes:,} bytes")
        contents = json.loads(text.decode("utf-8"))
        _check(contents)
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ConfigurationError(f"{path}: not readable as JSON ({reason})") from error
    return contents


def _check(contents: Any) -> None:
    waiting = [(contents, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels")
        if isinstance(value, dict):
            waiting += [(inner, depth + 1) for inner in (*value, *value.values())]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
        elif isinstance(value, str):
            if not is_clean(value):
                raise ValueError(f"text with characters that cannot be shown: {value[:40]!a}")
        elif type(value) is int and abs(value) >= LARGEST:
            raise ValueError(f"a whole number of {value.bit_length()} bits, expected at most 63")
