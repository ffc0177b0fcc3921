"""The TFRecord reader against the `tfrecord` package, and against files that were damaged on purpose."""

import gzip
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tfrecord
from numpy.typing import NDArray

from data_modules.raw import tfrecord as module
from data_modules.raw.crc32c import masked_crc32c
from data_modules.raw.example import Example, encode_example
from data_modules.raw.tfrecord import TFRecordWriter, count_records, read_blocks, read_examples, read_records
from data_modules.store import DataError

ROOM = {"image": (64, 64, 3), "mask": (7, 64, 64, 1)}
CLEVR = {"image": (240, 320, 3), "mask": (11, 240, 320, 1)}


def scene(seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """A record that compresses like a picture, with every kind of feature."""
    rng = np.random.default_rng(seed)
    record: dict[str, Any] = {}
    for name, shape in shapes.items():
        coarse = rng.integers(0, 256, -(-int(np.prod(shape)) // 16), dtype=np.uint8)
        record[name] = coarse.repeat(16)[: int(np.prod(shape))].reshape(shape)
    record["x"] = rng.normal(size=11).astype(np.float32)
    record["numbers"] = np.array([0, 1, -1, 127, 128, 300, 2**62, -(2**63)], np.int64) + seed
    record["frames"] = [rng.bytes(int(length)) for length in rng.integers(0, 3000, 5)]
    return record


def write(path: Path, records: list[dict[str, Any]], compressed: bool) -> Path:
    with TFRecordWriter(path, compressed) as writer:
        for record in records:
            writer.write(record)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_written_is_read(tmp_path: Path, compressed: bool) -> None:
    records = [scene(i, ROOM) for i in range(9)]
    path = write(tmp_path / "x.tfrecords", records, compressed)
    assert [path] == list(tmp_path.iterdir()), "no temporary file may stay"
    examples = list(read_examples(path))
    assert len(examples) == count_records(path) == 9
    for example, record in zip(examples, records, strict=True):
        assert sorted(example) == sorted(record)
        for name, shape in ROOM.items():
            np.testing.assert_array_equal(example.uint8(name, shape), record[name])
        np.testing.assert_array_equal(example.floats("x", (11,)), record["x"])
        np.testing.assert_array_equal(example.integers("numbers", (8,)), record["numbers"])
        assert example.strings("frames", 5) == record["frames"]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("shapes", "count"), [(ROOM, 5), (CLEVR, 2)])
def test_agrees_byte_for_byte_with_the_tfrecord_package(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], count: int, compressed: bool
) -> None:
    path = write(tmp_path / "x.tfrecords", [scene(i, shapes) for i in range(count)], compressed)
    kinds = {"image": "byte", "mask": "byte", "x": "float", "numbers": "int", "frames": "byte"}
    compression = "gzip" if compressed else None
    others = tfrecord.tfrecord_loader(str(path), None, kinds, compression_type=compression)
    for example, other in zip(read_examples(path), others, strict=True):
        for name, shape in shapes.items():
            assert example.uint8(name, shape).tobytes() == other[name].tobytes()
        assert example.floats("x", (11,)).tobytes() == other["x"].tobytes()
        np.testing.assert_array_equal(example.integers("numbers", (8,)), other["numbers"])


@pytest.mark.parametrize("compressed", [False, True])
def test_reads_what_the_tfrecord_package_writes(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "x.tfrecords"
    writer = tfrecord.TFRecordWriter(str(path))
    for i in range(4):
        jpegs = [bytes([i]) * 50, b"", b"x"]
        writer.write(
            {"frames": (jpegs, "byte"), "x": ([0.5 * i, -1.0], "float"), "n": ([i, -i, 2**40], "int")}
        )
    writer.close()
    if compressed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    for i, example in enumerate(read_examples(path)):
        assert example.strings("frames") == [bytes([i]) * 50, b"", b"x"]
        assert example.floats("x", (2,)).tolist() == [0.5 * i, -1.0]
        assert example.integers("n", (3,)).tolist() == [i, -i, 2**40]
    assert i == 3


@pytest.mark.parametrize(("shapes", "count"), [(ROOM, 10), (CLEVR, 2)])
def test_pixels_stored_one_by_one_are_read_at_once(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], count: int
) -> None:
    """Every byte is a string of its own; the tfrecord package takes several calls for each."""
    path = write(tmp_path / "x.tfrecords", [scene(i, shapes) for i in range(count)], compressed=True)
    calls = 0

    def count_call(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count_call)
    try:
        for example in read_examples(path):
            for name, shape in shapes.items():
                example.uint8(name, shape)
    finally:
        sys.setprofile(before)
    num_bytes = count * sum(int(np.prod(shape)) for shape in shapes.values())
    assert 0 < calls < num_bytes / 50


@pytest.mark.parametrize("compressed", [False, True])
def test_a_part_of_a_file(tmp_path: Path, compressed: bool) -> None:
    path = write(tmp_path / "x", [{"n": np.array([i])} for i in range(10)], compressed)

    def numbers(*part: int) -> list[int]:
        return [int(example.integers("n", (1,))[0]) for example in read_examples(path, *part)]

    assert numbers(3, 6) == [3, 4, 5]
    assert numbers(8) == [8, 9]
    assert numbers(0, 0) == []
    assert count_records(path, 4) == 4
    assert [example.where for example in read_examples(path, 3, 4)] == [f"{path}: record 3"]
    with pytest.raises(DataError, match="10 records, expected more than 12"):
        numbers(12)


def test_gzip_files_of_several_streams(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", [{"n": np.array([i])} for i in range(5)], False).read_bytes()
    path = tmp_path / "x"
    path.write_bytes(b"".join(gzip.compress(plain[i : i + 17]) for i in range(0, len(plain), 17)))
    assert [int(e.integers("n", (1,))[0]) for e in read_examples(path)] == list(range(5))


def test_a_plain_file_that_looks_like_gzip(tmp_path: Path) -> None:
    # a first record of 0x8b1f bytes begins with gzip's two magic bytes
    with TFRecordWriter(tmp_path / "x", compressed=False) as writer:
        writer.write_payload(bytes(0x8B1F))
    assert (tmp_path / "x").read_bytes()[:2] == b"\x1f\x8b"
    assert [len(payload) for payload in read_records(tmp_path / "x")] == [0x8B1F]


def test_unpacked_lists(tmp_path: Path) -> None:
    """Writers may also give every number of a list a field of its own."""

    def delimited(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    floats = b"".join(b"\x0d" + struct.pack("<f", x) for x in (1.0, 2.5))
    integers = b"\x08\x05\x08\xac\x02"
    entries = b"".join(
        delimited(1, delimited(1, name) + delimited(2, delimited(kind, body)))
        for name, kind, body in ((b"x", 2, floats), (b"n", 3, integers))
    )
    example = Example(delimited(1, entries), "here")
    assert example.floats("x", (2,)).tolist() == [1.0, 2.5]
    assert example.integers("n", (2,)).tolist() == [5, 300]


def test_tensors_of_one_string(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint8)
    example = Example(encode_example({"a": [values.tobytes()], "b": values}), "here")
    for name in "ab":
        np.testing.assert_array_equal(example.uint8(name, (3, 4)), values.reshape(3, 4))


def test_memory_is_that_of_a_record(tmp_path: Path) -> None:
    path = write(tmp_path / "x", [scene(i, ROOM) for i in range(200)], compressed=True)
    list(read_examples(path, 0, 1))  # tables of the checksum
    tracemalloc.start()
    for example in read_examples(path):
        example.uint8("image", ROOM["image"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    total = sum(len(block) for block in read_blocks(path))
    assert total > 20e6
    assert peak < 10e6


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="float64"), TFRecordWriter(tmp_path / "x", True) as writer:
        writer.write({"x": np.zeros(3)})
    assert not list(tmp_path.iterdir())


# --- damaged files ---------------------------------------------------------------------------------------


def read_all(path: Path) -> list[NDArray[np.uint8]]:
    return [example.uint8("image", (8, 8, 3)) for example in read_examples(path)]


def error_of(read: Callable[[], object]) -> str | None:
    """The message of its `DataError`; any other error goes on."""
    try:
        read()
    except DataError as error:
        return str(error)
    return None


def small_file(path: Path, compressed: bool) -> Path:
    return write(path, [scene(i, {"image": (8, 8, 3)}) for i in range(4)], compressed)


@pytest.mark.parametrize("compressed", [False, True])
def test_truncations_are_refused(tmp_path: Path, compressed: bool) -> None:
    whole = small_file(tmp_path / "whole", compressed).read_bytes()
    ends = set(np.linspace(0, len(whole) - 1, 120).astype(int).tolist())
    if not compressed:
        # a plain file cut between two records is a shorter file
        position, records = 0, []
        while position < len(whole):
            records.append(position)
            position += struct.unpack("<Q", whole[position : position + 8])[0] + 16
        ends -= set(records[1:])
    path = tmp_path / "cut"
    for end in sorted(ends):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=str(path)) as caught:
            read_all(path)
        assert "record" in str(caught.value) or end == 0
        assert "\n" not in str(caught.value)
        if compressed or end == 0:
            with pytest.raises(DataError):
                count_records(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_flipped_bits_are_refused(tmp_path: Path, compressed: bool) -> None:
    whole = small_file(tmp_path / "whole", compressed).read_bytes()
    expected = [image.tobytes() for image in read_all(tmp_path / "whole")]
    path = tmp_path / "flipped"
    rng = np.random.default_rng(0)
    refused = 0
    for position in np.linspace(0, len(whole) - 1, 150).astype(int):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        message = error_of(lambda: read_all(path))
        if message is None:
            # gzip's header has a time and a flag or two that mean nothing
            assert compressed
            assert position < 10
            assert [image.tobytes() for image in read_all(path)] == expected
        else:
            assert str(path) in message
            assert "record" in message
            refused += 1
    assert refused >= 140


def test_wrong_checksums_name_the_record(tmp_path: Path) -> None:
    plain = bytearray(small_file(tmp_path / "x", False).read_bytes())
    length = struct.unpack("<Q", plain[:8])[0]
    for position, part in ((length + 16 + 9, "length"), (2 * length, "checksum")):
        damaged = bytearray(plain)
        damaged[position] ^= 1
        (tmp_path / "x").write_bytes(damaged)
        with pytest.raises(DataError, match=f"{tmp_path / 'x'}: record 1: .*{part}"):
            read_all(tmp_path / "x")


def test_other_files_are_refused(tmp_path: Path) -> None:
    contents = {
        "empty": b"",
        "text": b"a text, not a TFRecord at all",
        "page": b"<!DOCTYPE html><html><body>Not found</body></html>" * 20,
        "zeros": bytes(10_000),
        "short": b"\x01",
        "png": b"\x89PNG\r\n\x1a\n" + bytes(500),
        "gzip_of_text": gzip.compress(b"a text" * 100),
        "gzip_of_nothing": gzip.compress(b""),
        "noise": np.random.default_rng(0).bytes(5000),
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=str(path)):
            read_all(path)
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            read_all(path)


def test_payloads_that_are_no_examples(tmp_path: Path) -> None:
    good = encode_example({"image": np.zeros((8, 8, 3), np.uint8), "n": np.array([1, 2, 300])})
    rng = np.random.default_rng(0)
    payloads = [b"", b"\n", b"\xff" * 30, rng.bytes(300), *(good[:cut] for cut in range(1, len(good), 9))]
    for payload in payloads:
        path = tmp_path / "x"
        with TFRecordWriter(path, compressed=False) as writer:
            writer.write_payload(good)
            writer.write_payload(payload)
        with pytest.raises(DataError, match=f"{path}: record 1: "):
            _ = [(e.uint8("image", (8, 8, 3)), e.integers("n", (3,))) for e in read_examples(path)]


def test_random_damage_inside_an_example_is_never_another_error() -> None:
    good = encode_example(scene(0, {"image": (4, 4, 3)}))
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(good)
        for position in rng.integers(len(good), size=rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        for read in (
            lambda example: example.uint8("image", (4, 4, 3)),
            lambda example: example.floats("x", (11,)),
            lambda example: example.integers("numbers", (8,)),
            lambda example: example.strings("frames", 5),
        ):
            assert "here" in (error_of(lambda: read(Example(bytes(damaged), "here"))) or "here")  # noqa: B023


def test_another_schema_says_what_was_found(tmp_path: Path) -> None:
    path = write(tmp_path / "x", [{"image": np.zeros((4, 4, 3), np.uint8), "n": np.array([1])}], True)
    example = next(read_examples(path))
    place = f"{path}: record 0"
    for read, message in (
        (lambda: example.uint8("mask", (4, 4)), "no feature 'mask', found image, n"),
        (lambda: example.uint8("image", (8, 8, 3)), "image: 48 strings of .1. bytes, expected 192"),
        (lambda: example.uint8("n", (1,)), "n: found integers, expected bytes"),
        (lambda: example.floats("n", (1,)), "n: found integers, expected floats"),
        (lambda: example.integers("n", (2,)), "n: 1 values, expected 2"),
        (lambda: example.strings("image", 3), "image: 48 strings, expected 3"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read()
        assert str(caught.value).startswith(place)


def test_enormous_records_are_refused_unread(tmp_path: Path) -> None:
    length = struct.pack("<Q", 2**40)
    header = length + struct.pack("<I", masked_crc32c(length))
    path = tmp_path / "x"
    path.write_bytes(header + bytes(100))
    with pytest.raises(DataError, match="record 0: 1,099,511,627,776 bytes long, expected at most"):
        read_all(path)
    with pytest.raises(DataError, match="record 0"):
        count_records(path)


def test_bombs_are_refused_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gzip stream of zeros, a thousand times as large when unpacked, behind a large record's header."""
    monkeypatch.setattr(module, "MAX_RECORD_BYTES", 2**22)
    length = struct.pack("<Q", 2**26)
    header = length + struct.pack("<I", masked_crc32c(length))
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(header + bytes(2**26)))
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    with pytest.raises(DataError, match="record 0"):
        read_all(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
