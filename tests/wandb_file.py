"""Reads a finished W&B run back."""

import json
import time
from pathlib import Path
from typing import Any

from lightning_genesis.runs.wandb_file import read_records, read_rows
from tests.ranks.command import TIMEOUT


def read_finished(path: Path) -> list[Any]:
    """The records of a run that has finished.

    W&B's own process may still be writing when `finish` returns, so this waits for the closing record.
    """
    deadline = time.monotonic() + TIMEOUT
    while not any(record.WhichOneof("record_type") == "exit" for record in read_records(path)):
        assert time.monotonic() < deadline, f"{path}: the run was not closed"
        time.sleep(0.1)
    return [*read_records(path)]


def read_run(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Configuration and logged rows of a run that has finished."""
    config: dict[str, Any] = {}
    for record in read_finished(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        elif kind == "config":
            config.update({item.key: json.loads(item.value_json) for item in record.config.update})
    return config, list(read_rows(path))


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of a run that has finished: names to values, or to the parts of one, such as max."""
    summary: dict[str, Any] = {}
    for record in read_finished(path):
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return summary


def top_level(path: Path) -> set[str]:
    """Names in the summary of a run, as the server has them: a picture is one, not its width and height."""
    items = [
        item
        for record in read_finished(path)
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    ]
    return {item.key or item.nested_key[0] for item in items}
