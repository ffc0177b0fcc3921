"""Shared fixtures."""

import os
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """No test leaves environment variables or folders to import from behind for the next.

    A Trainer with DDP leaves `LOCAL_RANK`; a command started with that believes that somebody else starts
    the other ranks, and waits for them. The command leaves the folder it was called in on `sys.path`.
    """
    variables, path = dict(os.environ), [*sys.path]
    yield
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
    sys.path[:] = path
