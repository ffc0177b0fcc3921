"""What a server, a disk or a folder does that would make a wrong file for good."""

import errno
import gzip
import hashlib
import io
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from data_modules.raw import download as downloads
from data_modules.raw.download import download
from data_modules.raw.raw_file import CHECKSUM, GZIP, TFRECORD, ZIP, RawFile, with_checksum
from data_modules.store import DataError
from tests.data_modules.raw.test_download import CONTENT, QUICK, SHA256, Server, check_whole, raw_file

OTHER = np.random.default_rng(1).bytes(len(CONTENT))
PACKED = gzip.compress(CONTENT, mtime=0)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def reply(
    body: bytes, *, status: int = 200, sized: bool = True, sent: int | None = None, **headers: str
) -> Callable[[BaseHTTPRequestHandler], bool]:
    """An answer of these headers, of which maybe only the first `sent` bytes come."""

    def answer(handler: BaseHTTPRequestHandler) -> bool:
        # the other one sends a `Date` of its own
        (handler.send_response_only if "Date" in headers else handler.send_response)(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if sized:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:sent])
        return True

    return answer


def in_turn(*answers: Callable[[BaseHTTPRequestHandler], bool]) -> Callable[[BaseHTTPRequestHandler], bool]:
    """Each answer once, the last one from then on."""
    left = list(answers)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def refused(server: Server, folder: Path, part: str, **known: Any) -> None:
    """One line with `part` in it, after one request, and nothing is left in the folder."""
    server.requests.clear()
    with pytest.raises(DataError) as caught:
        download(raw_file(server, **known), folder, remedy="get it by hand", **QUICK)
    message = str(caught.value)
    assert part in message
    assert message.startswith(server.url)
    assert message.endswith("get it by hand")
    assert "\n" not in message
    assert len(server.requests) == 1
    assert not list(folder.iterdir())


# --- the disk --------------------------------------------------------------------------------------------


def test_after_a_write_error_it_goes_on_at_the_right_byte(server: Server, tmp_path: Path) -> None:
    """The system itself refuses to make the file longer than 100,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"file\.bin\.part: not writable \(File too large\)"):
            download(raw_file(server), tmp_path, **QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert server.requests == [None], "to ask again does not help"
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:100_000]
    download(raw_file(server), tmp_path, **QUICK)
    check_whole(tmp_path)
    assert server.requests == [None, "bytes=100000-"]


class SmallDisk(io.FileIO):
    """A file on a disk of so many bytes: as the system does, it writes what there is space for."""

    space = 70_001

    def write(self, data: Any) -> int:
        free = self.space - os.fstat(self.fileno()).st_size
        if free <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(bytes(data)[:free])


def test_a_full_disk_ends_it_at_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "_open_part", lambda path: SmallDisk(path, "ab"))
        with pytest.raises(DataError, match="the disk is full; what has come is kept: free space and run"):
            download(raw_file(server), tmp_path, **QUICK)
    assert server.requests == [None]
    # a torn write that nobody counted is cut off
    part = tmp_path / "file.bin.part"
    assert part.read_bytes() == CONTENT[:70_001]
    download(raw_file(server), tmp_path, **QUICK)
    check_whole(tmp_path)
    assert server.requests == [None, "bytes=70001-"]


def test_what_finds_no_place_is_not_begun(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=150_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(DataError, match="150,000 bytes free, expected 200,000 for the rest of the file"):
        download(raw_file(server), tmp_path, **QUICK)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"not writable \((Not a directory|File exists)\)"):
        download(raw_file(server), tmp_path / "file" / "raw", **QUICK)
    (tmp_path / "file.bin.part").mkdir()
    with pytest.raises(DataError, match=r"file\.bin\.part: not writable \(Is a directory\)"):
        download(raw_file(server), tmp_path, **QUICK)
    assert not server.requests


# --- what is no such file --------------------------------------------------------------------------------

JSON = b'{"error": "rate limited, come back 42"}'[:38]
DENIED = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code></Error>"
SORRY = b"Sorry, this file has moved. " * 6000


@pytest.mark.parametrize("kind", ["application/json", "application/xml", "text/plain", "application/gzip"])
@pytest.mark.parametrize("body", [JSON, DENIED])
def test_an_error_with_status_200_is_no_file(server: Server, tmp_path: Path, kind: str, body: bytes) -> None:
    server.answer = reply(body, Content_Type=kind)
    expected = "expected about 150,000"
    refused(server, tmp_path, f"{len(body)} bytes, {expected}", about_bytes=150_000)
    # where no size is known, by how it begins; a fault that comes with the last byte is looked at twice
    for format in (GZIP, ZIP, TFRECORD):
        server.requests.clear()
        with pytest.raises(DataError, match=f"begins with b.*, expected {format.name}; get it by hand"):
            download(raw_file(server, format=format), tmp_path, remedy="get it by hand", **QUICK)
        assert not list(tmp_path.iterdir())


def test_a_long_text_ends_with_its_first_bytes(server: Server, tmp_path: Path) -> None:
    server.answer = reply(SORRY, Content_Type="application/octet-stream")
    refused(server, tmp_path, "begins with b'Sorry, this file has mov', expected a gzip file", format=GZIP)


@pytest.mark.parametrize("known", [{}, {"about_bytes": 60}, {"format": CHECKSUM}])
@pytest.mark.parametrize("sized", [False, True])
def test_an_empty_answer_is_no_file(server: Server, tmp_path: Path, known: Any, sized: bool) -> None:
    server.answer = reply(b"", sized=sized)
    with pytest.raises(DataError, match="0 bytes, expected "):
        download(raw_file(server, **known), tmp_path, **QUICK)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("about", "right"), [(49_000, False), (51_000, True), (790_000, True), (900_000, False)]
)
@pytest.mark.parametrize("sized", [False, True])
def test_sizes_far_from_the_published_one(
    server: Server, tmp_path: Path, about: int, right: bool, sized: bool
) -> None:
    server.answer = reply(CONTENT, sized=sized)
    if right:
        download(raw_file(server, about_bytes=about), tmp_path, **QUICK)
        check_whole(tmp_path)
    else:
        with pytest.raises(DataError, match=r"(200,000|more than 196,000) bytes, expected "):
            download(raw_file(server, about_bytes=about), tmp_path, **QUICK)
        assert not list(tmp_path.iterdir())


def test_something_else_of_this_name_is_to_be_removed(server: Server, tmp_path: Path) -> None:
    """What an earlier version, or a browser, has left."""
    target = tmp_path / "file.bin"
    cases: dict[str, Callable[[], Any]] = {
        "38 bytes, expected about 200,000": lambda: target.write_bytes(JSON),
        "begins with b'Sorry, ": lambda: target.write_bytes(SORRY),
        "not a regular file": lambda: os.mkfifo(target),
        "not a regular file, expected": target.mkdir,
        "No such file or directory": lambda: target.symlink_to("nowhere"),
    }
    for part, make in cases.items():
        make()
        with pytest.raises(DataError) as caught:
            download(raw_file(server, about_bytes=200_000, format=GZIP), tmp_path, **QUICK)
        assert f"{target}: {part}" in str(caught.value)
        assert "remove it" in str(caught.value)
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert not server.requests


# --- packed on the way -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gzip", "x-gzip"])
@pytest.mark.parametrize("known", [{"sha256": SHA256}, {"bytes": len(CONTENT)}, {"about_bytes": 300_000}])
def test_packed_on_the_way(server: Server, tmp_path: Path, name: str, known: Any) -> None:
    server.answer = reply(PACKED, Content_Encoding=name)
    if "bytes" in known:  # the answer's length is another one
        known = {"about_bytes": known["bytes"]}
    download(raw_file(server, **known), tmp_path, **QUICK)
    check_whole(tmp_path)


def test_packed_on_the_way_and_broken_off(server: Server, tmp_path: Path) -> None:
    rest = {"Content_Range": f"bytes 90000-{len(PACKED) - 1}/{len(PACKED)}", "ETag": '"p"'}
    first = reply(PACKED, sent=90_000, Content_Encoding="gzip", ETag='"p"')
    server.answer = in_turn(first, reply(PACKED[90_000:], status=206, Content_Encoding="gzip", **rest))
    download(raw_file(server), tmp_path, **QUICK)
    check_whole(tmp_path)
    assert server.requests == [None, "bytes=90000-"]
    # the rest comes as it is: it does not belong to what came packed
    (tmp_path / "file.bin").unlink()
    server.requests.clear()
    mixed = reply(CONTENT[90_000:], status=206, **rest)
    server.answer = in_turn(first, mixed, lambda handler: False)
    download(raw_file(server), tmp_path, **QUICK)
    check_whole(tmp_path)
    assert server.requests == [None, "bytes=90000-", None]


def test_the_files_own_packing_is_left_alone(server: Server, tmp_path: Path) -> None:
    """Some servers say `x-gzip` of every `.tar.gz`."""
    archive = gzip.compress(b"a tar archive" * 1000, mtime=0)
    server.answer = reply(archive, Content_Encoding="x-gzip")
    download(raw_file(server, format=GZIP), tmp_path, **QUICK)
    assert (tmp_path / "file.bin").read_bytes() == archive
    # and one that packs it once more
    server.answer = reply(gzip.compress(archive), Content_Encoding="gzip")
    download(raw_file(server, format=GZIP), tmp_path / "twice", **QUICK)
    assert (tmp_path / "twice/file.bin").read_bytes() == archive


def test_packings_that_are_refused(server: Server, tmp_path: Path) -> None:
    server.answer = reply(CONTENT, Content_Encoding="br")
    refused(server, tmp_path, "the answer is packed by 'br', expected the file as it is")
    for damaged in (PACKED[:-9], PACKED[:5000] + b"x" + PACKED[5001:], CONTENT):
        server.answer = reply(damaged, Content_Encoding="gzip")
        with pytest.raises(DataError, match="packed on the way and damaged"):
            download(raw_file(server), tmp_path, **QUICK)
    server.answer = reply(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip")
    with pytest.raises(DataError, match="expected about 200,000"):
        download(raw_file(server, about_bytes=200_000), tmp_path, **QUICK)
    assert not list(tmp_path.iterdir())


# --- two versions ----------------------------------------------------------------------------------------


class State(NamedTuple):
    """How a server names the state of its file, before and after a change."""

    before: dict[str, str]
    after: dict[str, str]


def dated(seconds: float) -> dict[str, str]:
    return {
        "Last_Modified": formatdate(1.7e9 + seconds, usegmt=True),
        "Date": formatdate(1.7e9 + 100, usegmt=True),
    }


@pytest.mark.parametrize(
    "state",
    [
        State({"ETag": 'W/"1"'}, {"ETag": 'W/"1"'}),
        State({"ETag": 'W/"1"'}, {"ETag": 'W/"2"'}),
        State({"ETag": 'W/"1"', **dated(0)}, {"ETag": 'W/"1"', **dated(0)}),
        State({}, {}),
        State(dated(99), dated(99)),  # two changes within a second
        State(dated(0), dated(50)),
        State({"ETag": '"1"'}, {"ETag": '"2"'}),
    ],
)
def test_pieces_of_two_versions_are_not_joined(server: Server, tmp_path: Path, state: State) -> None:
    """By a server that sends the rest of whatever it has, `If-Range` or not."""

    def changed(handler: BaseHTTPRequestHandler) -> bool:
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        headers = {"Content_Range": f"bytes {start}-199999/200000"} if start else {}
        return reply(OTHER[start:], status=206 if start else 200, **state.after, **headers)(handler)

    server.answer = in_turn(reply(CONTENT, sent=60_000, **state.before), changed)
    download(raw_file(server), tmp_path, **QUICK)
    assert (tmp_path / "file.bin").read_bytes() == OTHER
    # with a checksum that tells, pieces may be tried; what comes out is right in any case
    server.answer = in_turn(reply(CONTENT, sent=60_000, **state.before), changed)
    download(raw_file(server, sha256=hashlib.sha256(OTHER).hexdigest()), tmp_path / "known", **QUICK)
    assert (tmp_path / "known/file.bin").read_bytes() == OTHER


@pytest.mark.parametrize("headers", [{"ETag": '"1"'}, dated(0)])
def test_pieces_of_one_version_are_joined(server: Server, tmp_path: Path, headers: dict[str, str]) -> None:
    rest = reply(CONTENT[60_000:], status=206, Content_Range="bytes 60000-199999/200000", **headers)
    server.answer = in_turn(reply(CONTENT, sent=60_000, **headers), rest)
    download(raw_file(server), tmp_path, **QUICK)
    check_whole(tmp_path)
    assert server.requests == [None, "bytes=60000-"]


def test_numbers_that_are_none(server: Server, tmp_path: Path) -> None:
    """Lengths that Python's own tests of digits take, and `int` does not."""
    for length in ("²", "9" * 5000, "-5", "0x10"):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        server.answer = reply(CONTENT, sized=False, Content_Length=length)
        try:
            download(raw_file(server, sha256=SHA256), tmp_path / "x", **QUICK)
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017  (either is right)
        else:
            check_whole(tmp_path / "x")


# --- checksums in files of their own ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "{0}",
        "{0}  a.tar.gz\n",
        "{0} *some/where/a.tar.gz\n",
        "MD5 (a.tar.gz) = {0}",
        f"{'f' * 32}  b\n{{0}}  a.tar.gz\n",
    ],
)
def test_checksum_files(tmp_path: Path, text: str) -> None:
    digest = "0123456789abcdef0123456789abcdef"
    file = RawFile("a.tar.gz", "http://x/a.tar.gz", checksum_names=("a.md5", "a.tar.gz.md5"))
    assert with_checksum(file, tmp_path).md5 is None
    for name in reversed(file.checksum_names):
        (tmp_path / name).write_text(text.format(digest.upper()))
        assert with_checksum(file, tmp_path).md5 == digest
        assert CHECKSUM.start.match((tmp_path / name).read_bytes())
    assert not CHECKSUM.start.match(b"<html>" + digest.encode())
