"""Damaged files, and what has to come of them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_modules import DataError
from data_modules.raw_source import RawSceneDataModule

CASES = Path(__file__).parents[3] / "shared" / "cases"
"""Small inputs that lie beside the project, not in it: what needs them is skipped without."""


def damaged(content: bytes, cuts: int, flips: int, start: int = 0) -> Iterator[tuple[str, bytes]]:
    """Contents that are empty, cut off, rubbish, or have a bit changed behind `start`, with their names."""
    rng = np.random.default_rng(len(content))
    yield "empty", b""
    yield "rubbish", rng.bytes(min(len(content), 2000))
    for end in np.linspace(1, len(content) - 1, cuts).astype(int):
        yield f"cut at {end}", content[:end]
    for position in rng.integers(start, len(content), flips):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(rng.integers(8))
        yield f"flipped at {position}", bytes(flipped)


def assert_refused(data: RawSceneDataModule, part: str, case: str = "") -> str:
    """Preparing stops with one line that has `part` in it, and leaves no training set; returns the line."""
    with pytest.raises(DataError) as caught:
        data.prepare()
    message = str(caught.value)
    assert part in message, (case, message)
    assert "\n" not in message, case
    assert not data.plan("train").path.exists(), case
    root = Path(data.root)
    assert not list(root.rglob("*.partial")), case
    return message
