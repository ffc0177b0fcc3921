"""TFRecords without TensorFlow: framing, both checksums, gzip or plain, and the `Example`s inside.

    for example in read_examples(path):
        image = example.uint8("image", (64, 64, 3))

Files are streamed: memory is a record and some MiB, whatever the file's size. Everything that is not as
expected is a `DataError` that names file and record number (from 0).
"""

import os
import struct
import uuid
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from data_modules.raw.crc32c import masked_crc32c
from data_modules.raw.example import Example, Value, encode_example
from data_modules.store import DataError
from lightning_genesis.storage.files import open_regular

MAX_RECORD_BYTES = 256 * 2**20
"""A longer record is refused: the longest published one, of CLEVR, has 3.2 MB."""
BLOCK_BYTES = 2**20

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_FRAME_BYTES = _HEADER.size + _CHECKSUM.size
_GZIP = b"\x1f\x8b"


def is_gzip(path: Path) -> bool:
    """Whether a file is a gzip stream; a plain TFRecord whose length happens to look like one is not.

    Raises:
        DataError: if there is no such file, or it is empty.
    """
    try:
        with open_regular(path) as file:
            start = file.read(_HEADER.size)
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror}), expected a TFRecord file") from error
    if not start:
        raise DataError(f"{path}: empty, expected a TFRecord file")
    return start.startswith(_GZIP) and not _is_header(start)


def read_blocks(path: Path) -> Iterator[bytes]:
    """The content of a plain or gzip file in blocks of at most 1 MiB, decompressed.

    Raises:
        DataError: if a gzip stream is damaged or ends early.
    """
    compressed = is_gzip(path)
    with open(path, "rb") as file:
        blocks = iter(lambda: file.read(BLOCK_BYTES), b"")
        yield from _ahead(_gunzip(path, blocks)) if compressed else blocks


def _ahead(blocks: Iterator[bytes], count: int = 4) -> Iterator[bytes]:
    """The same blocks, made by a second thread while this one works on those before: zlib lets it run."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, blocks, None) for _ in range(count))
        while (block := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, blocks, None))
            yield block


def _gunzip(path: Path, blocks: Iterator[bytes]) -> Iterator[bytes]:
    # zlib itself checks the stream's CRC-32 and length; some writers put several streams one after another
    stream = zlib.decompressobj(wbits=31)
    try:
        for waiting in blocks:
            while waiting:
                if stream.eof:
                    stream = zlib.decompressobj(wbits=31)
                yield stream.decompress(waiting, BLOCK_BYTES)
                waiting = stream.unused_data if stream.eof else stream.unconsumed_tail
        # all has been read; what zlib still holds back comes out without more input
        while not stream.eof and (content := stream.decompress(b"", BLOCK_BYTES)):
            yield content
    except zlib.error as error:
        raise DataError(f"{path}: damaged gzip stream ({error}); get the file again") from error
    if not stream.eof:
        raise DataError(f"{path}: the gzip stream ends early; the file is cut off, get it again")


class _Bytes:
    """Takes any number of bytes out of a stream of blocks."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._block, self._position = memoryview(b""), 0

    def take(self, count: int) -> bytes | memoryview:
        """The next `count` bytes, or fewer at the end of the stream."""
        end = self._position + count
        if end <= len(self._block):
            piece, self._position = self._block[self._position : end], end
            return piece
        pieces = [self._block[self._position :]]
        missing = end - len(self._block)
        self._block, self._position = memoryview(b""), 0
        while missing and (block := next(self._blocks, None)) is not None:
            pieces.append(memoryview(block)[:missing])
            self._block, self._position = memoryview(block), len(pieces[-1])
            missing -= len(pieces[-1])
        return b"".join(pieces)


def _is_header(start: bytes | memoryview) -> bool:
    if len(start) != _HEADER.size:
        return False
    _, checksum = _HEADER.unpack(start)
    return bool(masked_crc32c(start[:8]) == checksum)


def read_records(path: Path, first: int = 0, stop: int | None = None) -> Iterator[bytes | memoryview]:
    """The payloads of the records `first` to below `stop`, in file order; checksums of all of these agree.

    In a gzip file the ones before `first` are decompressed and not checked; in a plain file they are skipped.

    Raises:
        DataError: if there is no such file, or it is damaged, cut off, of another format, or has fewer than
            `first` records.
    """
    for number, payload, checksum in _frames(path, first, stop):
        if masked_crc32c(payload) != checksum:
            raise DataError(
                f"{path}: record {number}: checksum {masked_crc32c(payload):08x}, expected {checksum:08x}; "
                "the file is damaged, get it again"
            )
        yield payload


def _frames(path: Path, first: int, stop: int | None) -> Iterator[tuple[int, bytes | memoryview, int]]:
    """Number, payload and stored checksum of each record from `first` to below `stop`."""
    stream = _Bytes(read_blocks(path))
    number = 0
    while stop is None or number < stop:
        try:
            header = stream.take(_HEADER.size)
            if not header:
                break
            length = _payload_length(path, number, header)
            frame = stream.take(length + _CHECKSUM.size)
        except DataError as error:
            raise DataError(f"{path}: record {number}: {str(error).removeprefix(f'{path}: ')}") from error
        if len(frame) < length + _CHECKSUM.size:
            raise DataError(
                f"{path}: record {number}: {len(frame):,} bytes left, expected {length + 4:,}; "
                "the file is cut off, get it again"
            )
        if number >= first:
            yield number, frame[:length], _CHECKSUM.unpack(frame[length:])[0]
        number += 1
    if number < first or (number == 0 and stop != 0):
        raise DataError(f"{path}: {number:,} records, expected more than {first:,}; get the whole file")


def _payload_length(path: Path, number: int, header: bytes | memoryview) -> int:
    """Length of a record's payload out of its header.

    Raises:
        DataError: if it is no header, or a record longer than any dataset's.
    """
    if len(header) < _HEADER.size:
        raise DataError(f"{path}: a header of {len(header)} bytes, expected 12; the file is cut off")
    if not _is_header(header):
        reason = "is it a TFRecord file?" if number == 0 else "the file is damaged, get it again"
        raise DataError(f"{path}: the checksum of the record's length does not agree; {reason}")
    length = int(_HEADER.unpack(header)[0])
    if length > MAX_RECORD_BYTES:
        raise DataError(f"{path}: {length:,} bytes long, expected at most {MAX_RECORD_BYTES:,}")
    return length


def count_records(path: Path, stop: int | None = None) -> int:
    """Number of records, `stop` at most; of a plain file only the headers are read.

    Raises:
        DataError: if there is no such file, or it is damaged or cut off.
    """
    if is_gzip(path):
        return sum(1 for _ in _frames(path, 0, stop))
    number, size = 0, os.path.getsize(path)
    with open(path, "rb") as file:
        position = 0
        while position < size and number != stop:
            file.seek(position)
            try:
                position += _payload_length(path, number, file.read(_HEADER.size)) + _FRAME_BYTES
            except DataError as error:
                raise DataError(f"{path}: record {number}: {str(error).removeprefix(f'{path}: ')}") from error
            number += 1
    if position > size:
        raise DataError(
            f"{path}: record {number - 1}: {position - size:,} bytes are missing; the file is cut off"
        )
    return number


def read_examples(path: Path, first: int = 0, stop: int | None = None) -> Iterator[Example]:
    """The `Example`s of the records `first` to below `stop`, in file order.

    Raises:
        DataError: as `read_records`, or if a record is no `Example`.
    """
    for number, payload in enumerate(read_records(path, first, stop), first):
        yield Example(payload, f"{path}: record {number}")


class TFRecordWriter:
    """Writes a TFRecord file; a context manager, and only a clean exit makes the file appear under its name.

    Args:
        path: the file to write.
        compressed: one gzip stream around the whole file.
        level: of the compression, 1 to 9.
    """

    def __init__(self, path: Path, compressed: bool, level: int = 6) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        self._file = open(self._partial, "wb")  # noqa: SIM115  (closed on exit)
        self._stream = zlib.compressobj(level, wbits=31) if compressed else None

    def write(self, features: Mapping[str, Value]) -> None:
        """Add a record; `features` as `encode_example` has them."""
        self.write_payload(encode_example(features))

    def write_payload(self, payload: bytes) -> None:
        """Add a record of any content."""
        length = struct.pack("<Q", len(payload))
        framed = b"".join(
            (
                length,
                _CHECKSUM.pack(masked_crc32c(length)),
                payload,
                _CHECKSUM.pack(masked_crc32c(payload)),
            )
        )
        self._file.write(framed if self._stream is None else self._stream.compress(framed))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None and self._stream is not None:
                self._file.write(self._stream.flush())
        if error is None:
            self._partial.rename(self.path)
        else:
            self._partial.unlink()
