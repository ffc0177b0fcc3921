"""Reads the file that W&B keeps of a run, online or offline.

It holds records in the LevelDB log format, each a protobuf.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_genesis.storage.files import open_regular

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7
MAGIC = b":W&B"
MOST_BYTES = 2**27
"""A larger file is refused."""
WHOLE, LAST = 1, 4
"""Kinds of chunks that end a record."""


def read_records(path: Path) -> Iterator[Any]:
    """Every complete record of a `.wandb` file, as `wandb_internal_pb2.Record`.

    Raises:
        ValueError: if the file is none of W&B's, or damaged.
        OSError: if it cannot be read.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2 as records

    with open_regular(path) as file:
        data, position, parts = file.read(MOST_BYTES + 1), FILE_HEADER, bytearray()
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path.name}: more than {MOST_BYTES:,} bytes")
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{path.name}: no file of W&B")
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # the rest of a block is padding
            position += BLOCK - position % BLOCK
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if position + HEADER + length > len(data):  # still being written
            return
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (WHOLE, LAST):
            record = records.Record()  # type: ignore[attr-defined]
            try:
                record.ParseFromString(bytes(parts))
            except DecodeError as error:
                raise ValueError(f"{path.name}: damaged before byte {position}") from error
            yield record
            parts.clear()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every logged row of a `.wandb` file: names to plain values.

    Raises:
        ValueError: if the file is none of W&B's, or damaged.
        OSError: if it cannot be read.
    """
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
