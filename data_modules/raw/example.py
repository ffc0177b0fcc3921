"""The `Example`s inside TFRecords, without TensorFlow: protobuf's wire format, read and written.

    image = example.uint8("image", (64, 64, 3))
    frames = example.strings("frames", 10)
    cameras = example.floats("cameras", (10, 5))

multi-object-datasets stores every pixel as a string of its own of one byte. On the wire such a list is the
three bytes `0A 01 vv` over and over, so a slice with stride 3 is the tensor.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.store import DataError

_VARINT, _EIGHT_BYTES, _DELIMITED, _FOUR_BYTES = 0, 1, 2, 5
_KINDS = {1: "bytes", 2: "floats", 3: "integers"}

Value = NDArray[Any] | Sequence[bytes]
"""What a feature is written from: uint8 becomes strings of one byte, float32 and int64 packed lists."""


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
