"""What is asked for is what the publishers have, by their own pages; a server that has just that."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_modules import (
    APC,
    GQN,
    Clevr6,
    DataError,
    MultiDSpritesTFRecords,
    ObjectsRoom,
    ShapeStacks,
    Sketchy,
)
from data_modules import shapestacks as shapestacks_module
from data_modules.raw_source import RawSceneDataModule
from data_modules.synthesis import shapestacks as synthesis
from data_modules.tetrominoes import Tetrominoes
from tests.data_modules.test_shapestacks import arrays, pack

GOOGLE = "https://storage.googleapis.com"
OXFORD = "http://shapestacks-file.robots.ox.ac.uk/static/download/v1"
PLACES: list[tuple[RawSceneDataModule, set[str]]] = [
    (ObjectsRoom(), {f"{GOOGLE}/multi-object-datasets/objects_room/objects_room_train.tfrecords"}),
    (Clevr6(), {f"{GOOGLE}/multi-object-datasets/clevr_with_masks/clevr_with_masks_train.tfrecords"}),
    (Tetrominoes(), {f"{GOOGLE}/multi-object-datasets/tetrominoes/tetrominoes_train.tfrecords"}),
    (
        MultiDSpritesTFRecords(),
        {f"{GOOGLE}/multi-object-datasets/multi_dsprites/multi_dsprites_colored_on_grayscale.tfrecords"},
    ),
    (
        GQN(),
        {f"{GOOGLE}/gqn-dataset/rooms_ring_camera/train/{i:04}-of-2160.tfrecord" for i in range(1, 2161)}
        | {f"{GOOGLE}/gqn-dataset/rooms_ring_camera/test/{i:03}-of-240.tfrecord" for i in range(1, 241)},
    ),
    (
        Sketchy(),
        {
            f"{GOOGLE}/sketchy-data/{task}__demos-0000{i}-of-00002.tar.bz2"
            for task in ("lift_green", "stack_green_on_red")
            for i in range(2)
        },
    ),
    (APC(), {"http://3dvision.princeton.edu/projects/2016/apc/downloads/training.zip"}),
    (
        ShapeStacks(),
        {
            f"{OXFORD}/shapestacks-{part}{end}"
            for part in ("meta", "rgb", "iseg")
            for end in (".tar.gz", ".md5")
        },
    ),
]


@pytest.mark.parametrize(("data", "places"), PLACES, ids=[type(data).__name__ for data, _ in PLACES])
def test_places(data: RawSceneDataModule, places: set[str]) -> None:
    files = data.raw_files()
    assert {file.url for file in files} == places
    assert len(files) == len(places)
    # every file that may not be what it is called is known by something
    assert all(file.format is not None for file in files)
    assert all(file.url.endswith(f"/{file.name}") for file in files)


class Publisher:
    """ShapeStacks' host: the published paths and no other; answers as Apache does for such files."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.asked.append(self.path)
                place, _, name = self.path.rpartition("/")
                known = place == "/static/download/v1" and (folder / name).is_file()
                content = (folder / name).read_bytes() if known else b"<html>404 Not Found</html>"
                self.send_response(200 if known else 404)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", "application/x-gzip" if known else "text/html")
                if name.endswith(".gz"):
                    self.send_header("Content-Encoding", "x-gzip")
                self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/static/download/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The publisher's six files, under the publisher's names, written out here."""
    folder = tmp_path_factory.mktemp("publisher")
    (folder / "tree").mkdir()
    synthesis.write(folder / "tree", {"train": 1, "val": 1, "test": 1}, seed=5)
    pack(folder / "tree", folder / "packed")
    names = {f"shapestacks-{part}{end}" for part in ("meta", "rgb", "iseg") for end in (".tar.gz", ".md5")}
    assert {path.name for path in (folder / "packed").iterdir()} == names
    return folder / "packed"


@pytest.fixture
def publisher(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    folder = shutil.copytree(packed, tmp_path / "host")
    publisher = Publisher(folder)
    monkeypatch.setattr(shapestacks_module, "_URL", publisher.url)
    sizes = {
        name: ((folder / name).stat().st_size, limits)
        for name, (_, limits) in shapestacks_module._ARCHIVES.items()
    }
    monkeypatch.setattr(shapestacks_module, "_ARCHIVES", sizes)
    yield publisher
    publisher.close()


def test_shapestacks_from_its_publisher(publisher: Publisher, packed: Path, tmp_path: Path) -> None:
    data = ShapeStacks(root=str(tmp_path / "data"))
    data.prepare()
    assert len(publisher.asked) == 6
    raw = tmp_path / "data/raw/shapestacks"
    assert {path.name for path in raw.iterdir()} == {path.name for path in packed.iterdir()}
    for path in raw.iterdir():
        assert path.read_bytes() == (packed / path.name).read_bytes()
    plain = ShapeStacks(root=str(tmp_path / "plain"), raw=str(packed.parent / "tree"))
    plain.prepare()
    for name, array in arrays(plain, "test").items():
        assert (arrays(data, "test")[name] == array).all()


def test_shapestacks_without_a_checksum(publisher: Publisher, tmp_path: Path) -> None:
    """A warning, and the rest as ever."""
    (tmp_path / "host/shapestacks-iseg.md5").unlink()
    (tmp_path / "host/shapestacks-meta.md5").write_text("<html>maintenance</html>")
    data = ShapeStacks(root=str(tmp_path / "data"))
    with pytest.warns(UserWarning, match="going on without it") as caught:
        data.prepare()
    lines = [str(warning.message) for warning in caught]
    assert any("going on without it: " in line and "iseg.md5: HTTP status 404" in line for line in lines)
    assert any("meta.md5" in line and "expected an MD5 checksum" in line for line in lines)
    for part in ("iseg", "meta"):
        assert any(f"no shapestacks-{part}.md5 or shapestacks-{part}.tar.gz.md5" in line for line in lines)
    assert not any("shapestacks-rgb" in line for line in lines)
    files = json.loads((data.plan("val").path / "manifest.json").read_text())["source"]["files"]
    assert [file["name"] for file in files] == [
        "shapestacks-meta.tar.gz",
        "shapestacks-iseg.tar.gz",
        "shapestacks-rgb.md5",
        "shapestacks-rgb.tar.gz",
    ]


def test_shapestacks_with_another_checksum(publisher: Publisher, packed: Path, tmp_path: Path) -> None:
    wrong = f"{'0' * 32}  shapestacks-iseg.tar.gz\n"
    (tmp_path / "host/shapestacks-iseg.md5").write_text(wrong)
    with pytest.raises(DataError, match=r"shapestacks-iseg\.tar\.gz: MD5 .*, expected 0{32}; or get it by"):
        ShapeStacks(root=str(tmp_path / "data")).prepare()
    # got by hand, under either name of the checksum
    for name in ("shapestacks-iseg.md5", "shapestacks-iseg.tar.gz.md5"):
        folder = shutil.copytree(packed, tmp_path / name)
        (folder / "shapestacks-iseg.md5").unlink()
        (folder / name).write_text(wrong)
        with pytest.raises(DataError, match=r"shapestacks-iseg\.tar\.gz: MD5 .*, expected 0{32}; remove it"):
            ShapeStacks(root=str(tmp_path / "other"), raw=str(folder)).prepare()


def test_what_was_fetched_and_is_damaged_is_to_be_removed(publisher: Publisher, tmp_path: Path) -> None:
    path = tmp_path / "host/shapestacks-meta.tar.gz"
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "host/shapestacks-meta.md5").unlink()
    data = ShapeStacks(root=str(tmp_path / "data"))
    with pytest.warns(UserWarning, match="meta"), pytest.raises(DataError) as caught:
        data.prepare()
    fetched = tmp_path / "data/raw/shapestacks/shapestacks-meta.tar.gz"
    assert str(caught.value).endswith(f"; remove {fetched} and run the same command again")
