"""Shared fixtures."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """No test leaves variables behind for the next.

    A Trainer with DDP leaves `LOCAL_RANK`; a command started with that believes that somebody else starts
    the other ranks, and waits for them.
    """
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
