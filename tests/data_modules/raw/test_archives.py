"""Archives: what is in them comes out, and what should not be in them does not."""

import bz2
import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_modules import DataError
from data_modules.raw import archives
from data_modules.raw.archives import FolderTree, Limits, ZipTree, checked_name, read_file, unpack
from tests.data_modules.damage import damaged

LIMITS = Limits(member_bytes=4_000_000, total_bytes=8_000_000, members=20)
LONG = "/".join(["long" * 20] * 4)
CONTENTS = {
    "top/a.txt": b"a" * 1000,
    "top/empty.bin": b"",
    "top/large.bin": np.random.default_rng(0).bytes(1_100_000),
    f"top/{LONG}/b.txt": b"b" * 512,
    "top/späße.txt": b"c",
}


def keep(name: str) -> str | None:
    """All but what is in the folder `other`."""
    return None if name.startswith("other") else name.removeprefix("top/")


def tar(contents: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        folder = tarfile.TarInfo("top")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write(folder: Path, content: bytes, name: str = "archive.tar") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refused(archive: Path, folder: Path, *parts: str, limits: Limits = LIMITS) -> None:
    with pytest.raises(DataError) as caught:
        unpack(archive, folder / "out", keep, limits)
    message = str(caught.value)
    for part in (str(archive), *parts):
        assert part in message
    assert "\n" not in message
    assert sorted(path.name for path in folder.iterdir()) == [archive.name], "something was left behind"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
def test_unpacks_what_is_needed(tmp_path: Path, form: int, compress: object) -> None:
    plain = tar(CONTENTS | {"other/x": b"x" * 700}, form)
    content = compress(plain)  # type: ignore[operator]
    archive = write(tmp_path, content)
    unpack(archive, tmp_path / "deep/out", keep, LIMITS)
    found = {
        path.relative_to(tmp_path / "deep/out").as_posix(): path.read_bytes()
        for path in (tmp_path / "deep/out").rglob("*")
        if path.is_file()
    }
    assert found == {name.removeprefix("top/"): content for name, content in CONTENTS.items()}


def test_old_archives_with_split_names(tmp_path: Path) -> None:
    archive = write(tmp_path, tar({f"top/{'d' * 90}/{'f' * 90}": b"1"}, tarfile.USTAR_FORMAT))
    unpack(archive, tmp_path / "out", keep, LIMITS)
    assert (tmp_path / "out" / ("d" * 90) / ("f" * 90)).read_bytes() == b"1"


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_damaged_archives_leave_nothing(tmp_path: Path, compress: object) -> None:
    plain = tar(CONTENTS | {"top/large.bin": CONTENTS["top/large.bin"][:50_000]})
    whole = compress(plain)  # type: ignore[operator]
    for case, content in damaged(whole, cuts=10, flips=20, start=30):
        refused(write(tmp_path, content), tmp_path)
        assert case


def test_damaged_headers_are_not_the_end(tmp_path: Path) -> None:
    """Where `tarfile` itself stops without a word, and for an archive without compression."""
    whole = tar(CONTENTS)
    starts = [i for i in range(0, len(whole), 512) if whole[i + 257 : i + 262] == b"ustar"]
    assert len(starts) > len(CONTENTS)
    for start in starts[1:]:
        flipped = bytearray(whole)
        flipped[start + 3] ^= 4
        refused(write(tmp_path, bytes(flipped)), tmp_path, "the file is damaged")
    for end in (100, starts[2], starts[3] + 600, len(whole) - 10_240):
        # without the two blocks of zeros at the end it may have been longer
        refused(write(tmp_path, whole[:end].rstrip(b"\0") if end > 600 else whole[:end]), tmp_path, "cut off")


@pytest.mark.parametrize(
    "name", ["/etc/x", "../x", "top/../../x", "top/a/../..", "", ".", "top\\..\\x", "/", "..", "a/.."]
)
def test_paths_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    member = bytearray(name.encode().ljust(100, b"\0") + tarfile.TarInfo("top/x").tobuf()[100:512])
    member[148:156] = b" " * 8
    member[148:156] = b"%06o\0 " % sum(member)
    refused(write(tmp_path, bytes(member) + bytes(1024)), tmp_path, "leads elsewhere")
    with pytest.raises(DataError, match="leads elsewhere"):
        checked_name(name, "x")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S"]
)
def test_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("top/link")
    info.type, info.linkname = kind, "/etc/passwd"
    refused(write(tmp_path, info.tobuf() + bytes(1024)), tmp_path, "a link or a device")


def test_bombs(tmp_path: Path) -> None:
    """Claims of any size are refused at once, in little memory."""
    large = tarfile.TarInfo("top/large")
    large.size = 2**40
    claims = large.tobuf(tarfile.GNU_FORMAT)
    many = tar({f"top/{i}": b"" for i in range(21)})
    much = tar({f"top/{i}": bytes(3_000_000) for i in range(3)})
    name, note = tarfile.TarInfo("././@LongLink"), tarfile.TarInfo("pax")
    name.type, note.type = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE
    name.size = note.size = 500_000_000
    zeros = bz2.compress(name.tobuf() + bytes(50_000_000))
    padded = gzip.compress(tar({"top/a": b"1"}) + bytes(30_000_000))
    negative = bytearray(tarfile.TarInfo("top/x").tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    cases = {
        "1,099,511,627,776 bytes, expected at most 4,000,000": claims,
        "21 members, expected at most 20": many,
        "9,000,000 bytes in all, expected at most 8,000,000": much,
        "a note of 500,000,000 bytes": zeros,
        "a note of 500,000,000 bytes, expected": note.tobuf() + bytes(1024),
        "more content behind its end": padded,
        "more content behind its end; the file": tar({"top/a": b"1"}) + tar({"top/b": b"1"}),
        "-1 bytes, expected": bytes(negative) + bytes(1024),
    }
    tracemalloc.start()
    for part, content in cases.items():
        archive = write(tmp_path, content)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        refused(archive, tmp_path, part)
        assert tracemalloc.get_traced_memory()[1] - before < 16 * 2**20, part
    tracemalloc.stop()


def test_notes_that_make_no_sense(tmp_path: Path) -> None:
    for note in (
        b"x path=a\n",
        b"0 path=a\n",
        b"999 path=a\n",
        b"-5 path=a\n",
        b"11 size=xyz\n",
        b"\xff\xfe",
    ):
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, len(note)
        content = info.tobuf() + note.ljust(512, b"\0") + tarfile.TarInfo("top/a").tobuf() + bytes(1024)
        refused(write(tmp_path, content), tmp_path)
    evil = b"19 path=../../../x\n"
    assert len(evil) == 19
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(evil)
    content = info.tobuf() + evil.ljust(512, b"\0") + tarfile.TarInfo("top/a").tobuf() + bytes(1024)
    refused(write(tmp_path, content), tmp_path, "leads elsewhere")


def test_other_archives(tmp_path: Path) -> None:
    refused(write(tmp_path, tar({"other/a": b"1"})), tmp_path, "none of the files expected")
    member = tarfile.TarInfo("top/a").tobuf()
    refused(write(tmp_path, member + member + bytes(1024)), tmp_path, "is there twice")
    (tmp_path / "archive.tar").unlink()
    with pytest.raises(DataError, match="not readable"):
        unpack(tmp_path / "none.tar", tmp_path / "out", keep, LIMITS)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="not readable"):
        unpack(tmp_path / "folder", tmp_path / "out", keep, LIMITS)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write(tmp_path, tar(CONTENTS))
    monkeypatch.setattr(archives, "free_bytes", lambda folder: 1000)
    with pytest.raises(DataError, match=r"1\.0 kB free, expected at least 1\.1 MB to unpack"):
        unpack(archive, tmp_path / "out", keep, LIMITS)


# --- trees -----------------------------------------------------------------------------------------------


def zipped(contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in contents.items():
            file.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def test_trees_give_the_same(tmp_path: Path) -> None:
    for name, content in CONTENTS.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(content)
    on_disk = FolderTree(tmp_path / "tree", 4_000_000)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        in_zip = ZipTree(write(tmp_path, zipped(CONTENTS, method), "a.zip"), 4_000_000)
        for name, content in CONTENTS.items():
            assert on_disk.read(name) == in_zip.read(name) == content
    assert set(CONTENTS) <= set(on_disk.names)
    assert set(CONTENTS) == set(in_zip.names)


def test_damaged_zip_files(tmp_path: Path) -> None:
    whole = zipped({"a": CONTENTS["top/large.bin"][:3000], "b": b"b" * 3000})
    for case, content in damaged(whole, cuts=12, flips=0):
        path = write(tmp_path, content, "a.zip")
        with pytest.raises(DataError, match=str(path)) as caught:
            ZipTree(path, 4_000_000)
        assert "\n" not in str(caught.value), case
    start = whole.index(b"a", 30) + 16
    for position in np.linspace(start, start + 2900, 12).astype(int):
        flipped = bytearray(whole)
        flipped[position] ^= 16
        tree = ZipTree(write(tmp_path, bytes(flipped), "a.zip"), 4_000_000)
        assert tree.read("b") == b"b" * 3000
        with pytest.raises(DataError, match=f"{tmp_path}/a.zip: a: damaged"):
            tree.read("a")


def test_zip_members_that_are_refused(tmp_path: Path) -> None:
    for name in ("/etc/x", "../x", "a/../../x", "a\\..\\x"):
        path = write(tmp_path, zipped({"fine": b"1", name: b"1"}), "a.zip")
        with pytest.raises(DataError, match=r"member 1: .* leads elsewhere"):
            ZipTree(path, 100)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="'link' is a link"):
        ZipTree(write(tmp_path, buffer.getvalue(), "a.zip"), 100)
    with pytest.raises(DataError, match="compression 14"):
        ZipTree(write(tmp_path, zipped({"a": b"1"}, zipfile.ZIP_LZMA), "a.zip"), 100).read("a")
    encrypted = bytearray(zipped({"a": b"1"}))
    encrypted[encrypted.index(b"PK\1\2") + 8] |= 1
    encrypted[6] |= 1
    with pytest.raises(DataError, match="encrypted"):
        ZipTree(write(tmp_path, bytes(encrypted), "a.zip"), 100).read("a")


def test_zip_bombs(tmp_path: Path) -> None:
    """What claims to be large is refused, and what claims to be small does not become large."""
    honest = zipped({"a": bytes(50_000_000)})
    path = write(tmp_path, honest, "a.zip")
    with pytest.raises(DataError, match=r"a: 50,000,000 bytes, expected at most 1,000"):
        ZipTree(path, 1000).read("a")
    lying = bytearray(honest)
    for mark, place in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        start = lying.index(mark) + place
        lying[start : start + 4] = struct.pack("<I", 900)
    tree = ZipTree(write(tmp_path, bytes(lying), "a.zip"), 60_000)
    tracemalloc.start()
    with pytest.raises(DataError, match="damaged"):
        tree.read("a")
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


def test_files_are_read_up_to_a_bound(tmp_path: Path) -> None:
    path = write(tmp_path, b"12345")
    assert read_file(path, 5) == b"12345"
    with pytest.raises(DataError, match="more than 4 bytes"):
        read_file(path, 4)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match="not readable"):
            read_file(missing, 5)
