"""Downloads from a server on this machine that misbehaves in every way one meets."""

import fcntl
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data_modules.raw.download import RawFile, download, file_record
from data_modules.store import DataError

CONTENT = np.random.default_rng(0).bytes(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = {"attempts": 3, "timeout": 60.0, "pause": 0.01, "min_rate": 1.0}
"""Only the pauses are short: a busy machine is no failure."""
IMPATIENT = QUICK | {"timeout": 0.4, "min_rate": 1000.0}


class Server:
    """Serves `content` with range requests, unless `answer` does something else; notes what was asked."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.etag: str | None = '"one"'
        self.ranges = True
        self.most_bytes: int | None = None  # the connection drops after so many
        self.answer: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
        self.requests: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.headers.get("Range"))
                if not server.answer(self):
                    server.send(self)

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/file.bin"

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        wanted, same = handler.headers.get("Range"), handler.headers.get("If-Range") in (None, self.etag)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges and same else 0
        if start and start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.end_headers()
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if start:
            last = len(self.content) - 1
            handler.send_header("Content-Range", f"bytes {start}-{last}/{len(self.content)}")
        handler.send_header("Content-Length", str(len(body)))
        if self.etag is not None:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        handler.wfile.write(body[: self.most_bytes])

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def raw_file(server: Server, **known: object) -> RawFile:
    return RawFile("file.bin", server.url, **known)  # type: ignore[arg-type]


def status(code: int, times: int = 10**6) -> Callable[[BaseHTTPRequestHandler], bool]:
    left = [times]

    def answer(handler: BaseHTTPRequestHandler) -> bool:
        left[0] -= 1
        if left[0] < 0:
            return False
        handler.send_error(code)
        return True

    return answer


def check_whole(folder: Path) -> None:
    assert (folder / "file.bin").read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == ["file.bin"], "nothing else may stay"


def test_a_whole_file(server: Server, tmp_path: Path) -> None:
    file = raw_file(server, bytes=len(CONTENT), sha256=SHA256, md5=hashlib.md5(CONTENT).hexdigest())
    assert download(file, tmp_path / "new", **QUICK) == tmp_path / "new" / "file.bin"
    check_whole(tmp_path / "new")
    record = file_record(file, tmp_path / "new")
    assert record == {"name": "file.bin", "url": server.url, "bytes": len(CONTENT), "sha256": SHA256}
    download(file, tmp_path / "new", **QUICK)
    assert len(server.requests) == 1, "what is there is not fetched again"


def test_dropped_connections_go_on_where_they_were(server: Server, tmp_path: Path) -> None:
    server.most_bytes = 60_000
    download(raw_file(server, sha256=SHA256), tmp_path, **QUICK)
    check_whole(tmp_path)
    assert server.requests == [None, "bytes=60000-", "bytes=120000-", "bytes=180000-"]


def test_another_process_goes_on(server: Server, tmp_path: Path) -> None:
    server.most_bytes, server.content = 50_000, CONTENT
    server.answer = lambda handler: len(server.requests) > 1 and status(500)(handler)
    with pytest.raises(DataError):
        download(raw_file(server), tmp_path, **QUICK)
    server.answer, server.most_bytes = lambda handler: False, None
    server.requests.clear()
    download(raw_file(server), tmp_path, **QUICK)
    check_whole(tmp_path)
    assert server.requests == ["bytes=50000-"]


def test_ranges_that_are_ignored(server: Server, tmp_path: Path) -> None:
    (server.most_bytes, server.ranges) = (60_000, False)

    def mend(handler: BaseHTTPRequestHandler) -> bool:
        server.most_bytes = None if len(server.requests) > 1 else 60_000
        return False

    server.answer = mend
    download(raw_file(server), tmp_path, **QUICK)
    check_whole(tmp_path)
    assert server.requests == [None, "bytes=60000-"]


def test_a_server_that_never_gets_further(server: Server, tmp_path: Path) -> None:
    (server.most_bytes, server.ranges) = (60_000, False)
    with pytest.raises(DataError, match="the connection ended before 200,000 bytes had come, 3 times"):
        download(raw_file(server), tmp_path, **QUICK)
    assert not (tmp_path / "file.bin").exists()


def test_a_file_that_has_changed_meanwhile(server: Server, tmp_path: Path) -> None:
    old = bytes(len(CONTENT))
    server.content, server.most_bytes = old, 60_000

    def change(handler: BaseHTTPRequestHandler) -> bool:
        if len(server.requests) > 1:
            server.content, server.etag, server.most_bytes = CONTENT, '"two"', None
        return False

    server.answer = change
    download(raw_file(server), tmp_path, **QUICK)
    check_whole(tmp_path)


def test_wrong_bytes_are_fetched_once_more(server: Server, tmp_path: Path) -> None:
    damaged = bytearray(CONTENT)
    damaged[1000] ^= 1
    server.content = bytes(damaged)

    def mend(handler: BaseHTTPRequestHandler) -> bool:
        if len(server.requests) > 1:
            server.content = CONTENT
        return False

    server.answer = mend
    download(raw_file(server, sha256=SHA256), tmp_path, **QUICK)
    check_whole(tmp_path)
    assert server.requests == [None, None]


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_wrong_bytes_are_refused(server: Server, tmp_path: Path, kind: str) -> None:
    expected = hashlib.new(kind, b"other").hexdigest()
    with pytest.raises(DataError, match=f"{server.url}: .* expected {expected}"):
        download(raw_file(server, **{kind: expected}), tmp_path, **QUICK)
    assert not (tmp_path / "file.bin").exists()
    (tmp_path / "file.bin").write_bytes(CONTENT)
    with pytest.raises(DataError, match=f"{tmp_path / 'file.bin'}: .* expected {expected}"):
        file_record(raw_file(server, **{kind: expected}), tmp_path)


def test_wrong_sizes_are_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="200,000 bytes, expected 200,001"):
        download(raw_file(server, bytes=200_001), tmp_path, **QUICK)
    (tmp_path / "file.bin").write_bytes(CONTENT)
    with pytest.raises(DataError, match="200,000 bytes, expected 5"):
        file_record(raw_file(server, bytes=5), tmp_path)


def test_more_bytes_than_there_should_be(server: Server, tmp_path: Path) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(bytes(10_000))
        return True

    server.answer = endless
    with pytest.raises(DataError, match="more than 50,000 bytes"):
        download(raw_file(server, bytes=50_000), tmp_path, **QUICK)


@pytest.mark.parametrize("code", [403, 404, 401, 410])
def test_refusals_end_at_once(server: Server, tmp_path: Path, code: int) -> None:
    server.answer = status(code)
    with pytest.raises(DataError, match=f"{server.url}: HTTP status {code} .*; get it by hand"):
        download(raw_file(server), tmp_path, remedy="get it by hand", **QUICK)
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [429, 500, 502, 503])
def test_passing_errors_are_tried_again(server: Server, tmp_path: Path, code: int) -> None:
    server.answer = status(code, times=2)
    download(raw_file(server), tmp_path, **QUICK)
    check_whole(tmp_path)
    server.answer = status(code)
    server.requests.clear()
    with pytest.raises(DataError, match=f"HTTP status {code} .*, 3 times in a row"):
        download(raw_file(server), tmp_path / "again", **QUICK)
    assert len(server.requests) == 3


def test_a_web_page_instead(server: Server, tmp_path: Path) -> None:
    def page(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html; charset=utf-8")
        handler.end_headers()
        handler.wfile.write(b"<html>Please log in</html>")
        return True

    server.answer = page
    with pytest.raises(DataError, match="the answer is a web page"):
        download(raw_file(server), tmp_path, **QUICK)


@pytest.mark.parametrize("headers_first", [False, True])
def test_silence_ends(server: Server, tmp_path: Path, headers_first: bool) -> None:
    over, waited_in_vain = threading.Event(), list[bool]()

    def silent(handler: BaseHTTPRequestHandler) -> bool:
        if headers_first:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
        waited_in_vain.append(not over.wait(600.0))
        return True

    server.answer = silent
    with pytest.raises(DataError, match="3 times in a row"):
        download(raw_file(server), tmp_path, **IMPATIENT)
    assert waited_in_vain == [], "the silence was still going on"
    over.set()


def test_bytes_that_come_too_slowly(server: Server, tmp_path: Path) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> bool:
        if len(server.requests) > 1:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.send_header("ETag", '"one"')
        handler.end_headers()
        for i in range(60):
            handler.wfile.write(CONTENT[i : i + 1])
            time.sleep(0.05)
        return True

    server.answer = slow
    download(raw_file(server), tmp_path, **IMPATIENT | {"attempts": 100})
    check_whole(tmp_path)
    assert server.requests[1] is not None, "what had come is kept"


def test_no_server_at_all(server: Server, tmp_path: Path) -> None:
    server.close()
    with pytest.raises(DataError, match=r"broke off .*, 3 times in a row; 0 bytes are here"):
        download(raw_file(server), tmp_path, **QUICK)


def test_the_rest_is_already_there(server: Server, tmp_path: Path) -> None:
    """The process ended between the last byte and the file's name."""
    server.most_bytes = 199_999
    server.answer = lambda handler: len(server.requests) > 1 and status(500)(handler)
    with pytest.raises(DataError):
        download(raw_file(server), tmp_path, **QUICK)
    with open(tmp_path / "file.bin.part", "ab") as part:
        part.write(CONTENT[-1:])
    server.answer, server.most_bytes = lambda handler: False, None
    download(raw_file(server, sha256=SHA256), tmp_path, **QUICK)
    check_whole(tmp_path)


def test_a_part_of_unknown_origin_is_not_used(server: Server, tmp_path: Path) -> None:
    for notes in (None, "no json", "[]", '{"url": "http://elsewhere/x", "version": null}'):
        (tmp_path / "file.bin.part").write_bytes(bytes(5000))
        if notes is not None:
            (tmp_path / "file.bin.part.json").write_text(notes)
        download(raw_file(server), tmp_path, **QUICK)
        check_whole(tmp_path)
        (tmp_path / "file.bin").unlink()


def test_answers_with_another_part_than_asked_for(server: Server, tmp_path: Path) -> None:
    server.most_bytes = 60_000

    def other_part(handler: BaseHTTPRequestHandler) -> bool:
        server.most_bytes = None if len(server.requests) > 1 else server.most_bytes
        if len(server.requests) != 2:
            return False
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 5-199999/200000")
        handler.send_header("Content-Length", "199995")
        handler.end_headers()
        handler.wfile.write(CONTENT[5:])
        return True

    server.answer = other_part
    download(raw_file(server), tmp_path, **QUICK)
    check_whole(tmp_path)


def test_two_processes_do_not_write_one_file(server: Server, tmp_path: Path) -> None:
    with open(tmp_path / "file.bin.part", "ab") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is downloading it"):
            download(raw_file(server), tmp_path, **QUICK)
    assert not server.requests
