"""What of a parametrised test always runs; its other members, which repeat it, are slow."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(values: Iterable[Any], *always: Any) -> list[Any]:
    """Parameters of a test, all but some of them marked `slow`.

    Args:
        values: one for each test; tuples where a test has several arguments.
        always: those that always run, or the first elements of their tuples.
    """
    values = [value if isinstance(value, tuple) else (value,) for value in values]
    known = [*values, *(value[0] for value in values)]
    assert all(one in known for one in always), f"{always} are not all among {known}"
    quick = [any(one in (value, value[0]) for one in always) for value in values]
    return [
        pytest.param(*value, marks=[] if runs else [pytest.mark.slow])
        for value, runs in zip(values, quick, strict=True)
    ]
