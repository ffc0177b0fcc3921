"""Reads a W&B run file back: records in the LevelDB log format, each a protobuf."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as records

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7


def read_records(path: Path) -> Iterator[Any]:
    """Every record of a `.wandb` file."""
    data, position, parts = path.read_bytes(), FILE_HEADER, b""
    assert data[:4] == b":W&B"
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # the rest of a block is padding
            position += BLOCK - position % BLOCK
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if position + HEADER + length > len(data):  # still being written
            return
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = records.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def read_run(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Configuration and logged rows of a run that has finished.

    W&B's own process may still be writing when `finish` returns, so this waits for the closing record.
    """
    deadline = time.monotonic() + 30.0
    while not any(record.WhichOneof("record_type") == "exit" for record in read_records(path)):
        assert time.monotonic() < deadline, f"{path}: the run was not closed"
        time.sleep(0.1)
    config: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for record in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        elif kind == "config":
            config.update({item.key: json.loads(item.value_json) for item in record.config.update})
        elif kind == "history":
            keys = [item.key or "/".join(item.nested_key) for item in record.history.item]
            values = [json.loads(item.value_json) for item in record.history.item]
            rows.append(dict(zip(keys, values, strict=True)))
    return config, rows
