"""TFRecords without TensorFlow: framing, both checksums, gzip or plain, and the `Example`s inside.

    for example in read_examples(path):
        image = example.uint8("image", (64, 64, 3))
        frames = example.strings("frames", 10)
        cameras = example.floats("cameras", (10, 5))

Files are streamed: memory is a record and some MiB, whatever the file's size. Everything that is not as
expected is a `DataError` that names file and record number (from 0).

multi-object-datasets stores every pixel as a string of its own of one byte. On the wire such a list is the
three bytes `0A 01 vv` over and over, so a slice with stride 3 is the tensor.
"""

import os
import struct
import uuid
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data_modules.raw.crc32c import masked_crc32c
from data_modules.store import DataError
from lightning_genesis.storage.files import open_regular

MAX_RECORD_BYTES = 256 * 2**20
"""A longer record is refused: the longest published one, of CLEVR, has 3.2 MB."""
BLOCK_BYTES = 2**20

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_FRAME_BYTES = _HEADER.size + _CHECKSUM.size
_GZIP = b"\x1f\x8b"
_VARINT, _EIGHT_BYTES, _DELIMITED, _FOUR_BYTES = 0, 1, 2, 5
_KINDS = {1: "bytes", 2: "floats", 3: "integers"}

Value = NDArray[Any] | Sequence[bytes]
"""What a feature is written from: uint8 becomes strings of one byte, float32 and int64 packed lists."""


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


@dataclass(frozen=True)
class _Feature:
    kind: int
    """1 bytes, 2 floats, 3 integers, 0 nothing."""
    body: memoryview
    """The list as it is on the wire."""


class Example(Mapping[str, _Feature]):
    """The named features of one record. Its methods give them as arrays, or say what is wrong with them.

    Args:
        payload: a serialised `tf.train.Example`.
        where: file and record number, for error messages.

    Raises:
        DataError: if the payload is no `Example`.
    """

    def __init__(self, payload: bytes | memoryview, where: str) -> None:
        self.where = where
        try:
            self._features = _features(memoryview(payload))
        except (ValueError, IndexError, struct.error) as error:
            raise DataError(f"{where}: not a tf.train.Example ({error})") from error

    def __getitem__(self, name: str) -> _Feature:
        return self._features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    def is_bytes(self, name: str) -> bool:
        """Whether a feature is a list of strings; False if there is none of this name."""
        return name in self and self[name].kind == 1

    def uint8(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """A tensor stored as strings of one byte, or as one string of all bytes, in C order.

        Raises:
            DataError: if there is no such feature, or of another kind or size.
        """
        body = np.frombuffer(self._of_kind(name, 1).body, np.uint8)
        count = int(np.prod(shape))
        if len(body) == 3 * count and (body[0::3] == 0x0A).all() and (body[1::3] == 1).all():
            return np.ascontiguousarray(body[2::3]).reshape(shape)
        strings = self.strings(name)
        if len(strings) == 1 and len(strings[0]) == count:
            return np.frombuffer(strings[0], np.uint8).reshape(shape).copy()
        lengths = sorted({len(string) for string in strings})
        raise DataError(
            f"{self.where}: {name}: {len(strings):,} strings of {lengths[:3]} bytes, "
            f"expected {count:,} of one byte for {list(shape)}"
        )

    def strings(self, name: str, count: int | None = None) -> list[bytes]:
        """A list of strings, such as one JPEG each.

        Raises:
            DataError: if there is no such feature, or of another kind, or not `count` strings.
        """
        feature = self._of_kind(name, 1)
        try:
            strings = [bytes(value) for value in _field_one(feature.body)]
        except (ValueError, IndexError) as error:
            raise DataError(f"{self.where}: {name}: not a list of strings ({error})") from error
        if count is not None and len(strings) != count:
            raise DataError(f"{self.where}: {name}: {len(strings):,} strings, expected {count:,}")
        return strings

    def floats(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A float32 tensor in C order.

        Raises:
            DataError: if there is no such feature, or of another kind or size.
        """
        feature = self._of_kind(name, 2)
        try:
            values = np.frombuffer(b"".join(_field_one(feature.body)), "<f4").astype(np.float32)
        except (ValueError, IndexError) as error:
            raise DataError(f"{self.where}: {name}: not a list of floats ({error})") from error
        return self._shaped(name, values, shape)

    def integers(self, name: str, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """An int64 tensor in C order.

        Raises:
            DataError: if there is no such feature, or of another kind or size.
        """
        feature = self._of_kind(name, 3)
        try:
            values = _integers(feature.body)
        except (ValueError, IndexError) as error:
            raise DataError(f"{self.where}: {name}: not a list of integers ({error})") from error
        return self._shaped(name, values, shape)

    def _of_kind(self, name: str, kind: int) -> _Feature:
        feature = self._features.get(name)
        if feature is None:
            raise DataError(
                f"{self.where}: no feature {name!r}, found {', '.join(sorted(self)[:12]) or 'none'}; "
                "is it the file of another dataset?"
            )
        if feature.kind != kind:
            found = _KINDS.get(feature.kind, "nothing")
            raise DataError(f"{self.where}: {name}: found {found}, expected {_KINDS[kind]}")
        return feature

    def _shaped(self, name: str, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        if len(values) != (count := int(np.prod(shape))):
            raise DataError(
                f"{self.where}: {name}: {len(values):,} values, expected {count:,} for {list(shape)}"
            )
        return values.reshape(shape)


def read_examples(path: Path, first: int = 0, stop: int | None = None) -> Iterator[Example]:
    """The `Example`s of the records `first` to below `stop`, in file order.

    Raises:
        DataError: as `read_records`, or if a record is no `Example`.
    """
    for number, payload in enumerate(read_records(path, first, stop), first):
        yield Example(payload, f"{path}: record {number}")


def _varint(buffer: memoryview, position: int) -> tuple[int, int]:
    """A varint and the position behind it."""
    value = shift = 0
    while True:
        byte = buffer[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than 10 bytes")


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Number, wire type and content of every field of a message."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        start = position
        wire = tag & 7
        if wire == _DELIMITED:
            length, start = _varint(message, position)
            position = start + length
        elif wire == _VARINT:
            _, position = _varint(message, position)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            position += 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position > end:
            raise ValueError("a field longer than its message")
        yield tag >> 3, wire, message[start:position]


def _only(message: memoryview, number: int) -> Iterator[memoryview]:
    """Contents of the delimited fields of this number."""
    return (content for field, wire, content in _fields(message) if field == number and wire == _DELIMITED)


def _field_one(body: memoryview) -> Iterator[memoryview]:
    """Contents of field 1, which is all that a list has."""
    for number, _, content in _fields(body):
        if number != 1:
            raise ValueError(f"field {number} in a list")
        yield content


def _features(payload: memoryview) -> dict[str, _Feature]:
    found: dict[str, _Feature] = {}
    for features in _only(payload, 1):
        for entry in _only(features, 1):
            name, kind, body = "", 0, memoryview(b"")
            for number, _, content in _fields(entry):
                if number == 1:
                    name = str(content, "utf-8")
                elif number == 2:
                    for kind, _, body in _fields(content):  # noqa: B007  (a oneof: the last one counts)
                        pass
            found[name] = _Feature(kind, body)
    if not found:
        raise ValueError("no features")
    return found


def _integers(body: memoryview) -> NDArray[np.int64]:
    """Varints, in two's complement, of packed runs and single values alike."""
    run = np.frombuffer(b"".join(_field_one(body)), np.uint8)
    if not len(run):
        return np.empty(0, np.int64)
    if run[-1] >= 128:
        raise ValueError("a varint that does not end")
    ends = np.flatnonzero(run < 128)
    starts = np.concatenate(([0], ends[:-1] + 1))
    if (ends - starts).max() > 9:
        raise ValueError("a varint of more than 10 bytes")
    place = np.arange(len(run)) - np.repeat(starts, ends - starts + 1)
    parts = (run & 127).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(parts, starts).view(np.int64)


def encode_example(features: Mapping[str, Value]) -> bytes:
    """A serialised `tf.train.Example`.

    Args:
        features: uint8 arrays become strings of one byte, float32 and int64 arrays packed lists, all in C
            order; sequences of bytes become one string each.

    Raises:
        TypeError: if a value is none of these.
    """
    entries = b"".join(
        _delimited(1, _delimited(1, name.encode()) + _delimited(2, _encode_value(name, value)))
        for name, value in features.items()
    )
    return _delimited(1, entries)


def _encode_value(name: str, value: Value) -> bytes:
    if not isinstance(value, np.ndarray):
        return _delimited(1, b"".join(_delimited(1, string) for string in value))
    if value.dtype == np.uint8:
        wire = np.empty((value.size, 3), np.uint8)
        wire[:, 0], wire[:, 1], wire[:, 2] = 0x0A, 1, value.reshape(-1)
        return _delimited(1, wire.tobytes())
    if value.dtype == np.float32:
        return _delimited(2, _delimited(1, value.astype("<f4").tobytes()))
    if value.dtype == np.int64:
        varints = b"".join(_encode_varint(int(number) % 2**64) for number in value.reshape(-1))
        return _delimited(3, _delimited(1, varints))
    raise TypeError(f"{name}: {value.dtype}, expected uint8, float32 or int64")


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(number: int, content: bytes) -> bytes:
    return _encode_varint(number << 3 | _DELIMITED) + _encode_varint(len(content)) + content


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
