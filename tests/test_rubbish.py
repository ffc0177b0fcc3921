"""Rubbish in place of checkpoints and stores: one line, bounded time and memory, and nothing in it runs."""

import io
import json
import os
import pickle
import random
import resource
import shlex
import shutil
import signal
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from data_modules import store as store_module
from data_modules import store_writer
from data_modules.store import DataError, Store
from data_modules.store_writer import write_store
from lightning_genesis.cli import main
from lightning_genesis.errors import CheckpointError
from lightning_genesis.models import GenesisV2, SceneModel
from lightning_genesis.runs.loading import load
from lightning_genesis.storage.checkpoint import read_checkpoint, write_checkpoint, write_weights
from tests.quick import few
from tests.tiny_checkpoint import same, train

CPU_SECONDS, SECONDS = 60.0, 600.0
"""Most that the reading of a small file, of milliseconds, may take: of computing, and of waiting."""
Damage = Callable[[bytes], bytes]


@contextmanager
def limited(megabytes: int | None = None) -> Iterator[None]:
    """Ends what does not end, or takes more memory than there is now and these megabytes."""

    def late(*_: object) -> None:
        pytest.fail(f"took more than {CPU_SECONDS} s of computing, or {SECONDS} s")

    timers = {
        signal.SIGALRM: (signal.ITIMER_REAL, SECONDS),
        signal.SIGPROF: (signal.ITIMER_PROF, CPU_SECONDS),
    }
    before = {number: signal.signal(number, late) for number in timers}
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if megabytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that a plain Trainer has written, without a seal and without the optimiser's numbers."""
    path = tmp_path_factory.mktemp("plain") / "plain.ckpt"
    model = GenesisV2(num_slots=3, image_size=32, feature_dim=8, latent_dim=8)
    trainer = train(model)
    trainer.optimizers[0].state.clear()
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def sealed(plain: Path) -> Path:
    path = plain.with_name("sealed.ckpt")
    write_checkpoint(path, torch.load(plain, weights_only=True))
    return path


@pytest.fixture(scope="module")
def weights(plain: Path) -> Path:
    path = plain.with_name("weights.safetensors")
    write_weights(path, read_checkpoint(plain), {"class_path": "data_modules.MultiDSprites"})
    return path


# ---------------------------------------------------------------- damage


def flip(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def zero(data: bytes, start: int, length: int) -> bytes:
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def swap(data: bytes, a: int, b: int, length: int) -> bytes:
    copy = bytearray(data)
    copy[a : a + length], copy[b : b + length] = data[b : b + length], data[a : a + length]
    return bytes(copy)


def cut(data: bytes, start: int = 0, end: int | None = None) -> bytes:
    return data[start:end]


def insert(data: bytes, place: int, more: bytes) -> bytes:
    return data[:place] + more + data[place:]


def replace(data: bytes, other: bytes) -> bytes:
    return other


def general_damage(data: bytes, draw: random.Random, count: int) -> Iterator[Damage]:
    """What happens to any file: flipped bits, cuts, lost and exchanged blocks, additions, another file."""
    size = len(data)
    for _ in range(count):
        yield partial(flip, place=draw.randrange(size), bit=draw.randrange(8))
    for end in [0, 1, 3, 4, 8, 21, 22, 100, size // 2, size - 100, size - 23, size - 22, size - 2, size - 1]:
        yield partial(cut, end=end)
    for _ in range(count // 4):
        yield partial(cut, end=draw.randrange(size))
        yield partial(cut, start=draw.randrange(1, size))
        yield partial(zero, start=draw.randrange(size), length=draw.choice((1, 64, 512, 4096)))
        length = min(draw.choice((16, 512, 4096)), size // 4)
        a, b = draw.randrange(size // 2 - length), draw.randrange(size // 2, size - length)
        yield partial(swap, a=a, b=b, length=length)
        yield partial(insert, place=size, more=draw.randbytes(draw.choice((1, 64, 70_000))))
        yield partial(insert, place=draw.randrange(size), more=b"\0")
    for other in (
        b"PK",
        b"PK\x05\x06" + bytes(18),
        b"<html>404</html>",
        b"\x80\x02}q\x00.",
        b"\x93NUMPY",
        b"{}",
    ):
        yield partial(replace, other=other)
    for other in (
        bytes(5000),
        draw.randbytes(5000),
        b"PK\x03\x04" + draw.randbytes(5000),
        data + data,
        data[::-1],
    ):
        yield partial(replace, other=other)


def zip_damage(data: bytes, draw: random.Random) -> Iterator[Damage]:
    """Flips in every part of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries, directory = archive.infolist(), archive.start_dir
    for entry in entries:
        start = entry.header_offset
        name, extra = struct.unpack("<HH", data[start + 26 : start + 30])
        body = start + 30 + name + extra
        yield partial(flip, place=start + draw.randrange(30 + name), bit=draw.randrange(8))
        yield partial(flip, place=body + draw.randrange(max(1, entry.file_size)), bit=draw.randrange(8))
    record = next(entry for entry in entries if entry.filename.endswith("data.pkl"))
    for _ in range(60):
        yield partial(flip, place=64 + draw.randrange(record.file_size), bit=draw.randrange(8))
    for _ in range(60):
        yield partial(flip, place=draw.randrange(directory, len(data)), bit=draw.randrange(8))
    for place in range(len(data) - 98 - 89, len(data)):  # ends of the directory, and the seal
        yield partial(flip, place=place, bit=draw.randrange(8))


def sweep(path: Path, cases: list[Damage], folder: Path) -> dict[str, int]:
    """Reads every damaged copy: refused in one line, or exactly the same contents."""
    original, truth = path.read_bytes(), read_checkpoint(path)
    file = folder / path.name
    counts = {"refused": 0, "same": 0}
    for number, damage in enumerate(cases):
        damaged = damage(original)
        if damaged == original:  # a block of zeros lost, or like exchanged for like
            continue
        file.write_bytes(damaged)
        message = None
        try:
            with limited():
                found = read_checkpoint(file)
        except CheckpointError as error:
            message = str(error)
        if message is None:
            assert same(found, truth), f"case {number}: other contents"
            counts["same"] += 1
        else:
            assert str(file) in message, number
            assert "\n" not in message, number
            assert len(message) < 600, number
            counts["refused"] += 1
    return counts


@pytest.mark.parametrize("name", few(["sealed", "plain"], "sealed"))
def test_damaged_checkpoints(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path: Path = request.getfixturevalue(name)
    data, draw = path.read_bytes(), random.Random(0)
    cases = [*zip_damage(data, draw), *general_damage(data, draw, 60)]
    counts = sweep(path, cases, tmp_path)
    print(name, counts)
    assert sum(counts.values()) >= 500
    # a seal is over everything before it; only its own label can be lost without loss
    assert counts["same"] <= (30 if name == "sealed" else 250)
    assert counts["refused"] >= 250


def test_damaged_weights(weights: Path, tmp_path: Path) -> None:
    data, draw = weights.read_bytes(), random.Random(0)
    header = 8 + struct.unpack("<Q", data[:8])[0]
    cases: list[Damage] = [
        partial(flip, place=place, bit=draw.randrange(8)) for place in range(0, header, 40)
    ]
    cases += [partial(flip, place=place, bit=bit) for place in range(8) for bit in range(8)]
    counts = sweep(weights, [*cases, *general_damage(data, draw, 60)], tmp_path)
    print(counts)
    assert sum(counts.values()) >= 400
    assert counts["refused"] > 10 * counts["same"]


def test_torch_itself_would_not_notice(plain: Path, tmp_path: Path) -> None:
    """The reason for the seal: without it this sweep could not pass."""
    data = plain.read_bytes()
    place = data.rindex(b"PK\x03\x04") - 100_000  # within a tensor
    (tmp_path / "a.ckpt").write_bytes(flip(data, place, 6))
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: (damaged|not a readable checkpoint .Bad CRC)"):
        read_checkpoint(tmp_path / "a.ckpt")


# ---------------------------------------------------------------- things that are no files


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_what_is_no_file(tmp_path: Path, suffix: str) -> None:
    folder, loop, dangling, pipe = (
        tmp_path / f"{name}{suffix}" for name in ("folder", "loop", "lost", "pipe")
    )
    folder.mkdir()
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nowhere")
    os.mkfifo(pipe)
    for path in (folder, loop, dangling, pipe, tmp_path / f"{'x' * 300}{suffix}", tmp_path / f"a\0b{suffix}"):
        with limited(), pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(plain: Path, tmp_path: Path) -> None:
    shutil.copy(plain, tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").chmod(0)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: not a readable checkpoint .*Permission denied"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "config", ["", "[", "data: 3", "model: x", "- a", "data: {class_path: os.system}", "\0"]
)
def test_run_with_a_rubbish_configuration(sealed: Path, tmp_path: Path, config: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(sealed, tmp_path / "checkpoints" / "last.ckpt")
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(ValueError, match=r"config\.yaml|data\.class_path") as caught:
        load(tmp_path)
    assert type(caught.value).__name__ == "ConfigurationError"
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- wrong contents


def good() -> dict[str, Any]:
    return {
        "state_dict": {"weight": torch.zeros(2)},
        "model_class": "GenesisV2",
        "hyper_parameters": {"num_slots": 3},
        "global_step": 1,
        "optimizer_states": [],
    }


def cyclic() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["loop"] = [loop]
    return loop


def doubling() -> list[Any]:
    tree: list[Any] = [1]
    for _ in range(40):
        tree = [tree, tree]
    return tree


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"state_dict": [1]}, "state_dict is of type list, expected dict"),
        ({"state_dict": {"weight": 1.0}}, "state_dict['weight'] is a float, expected a Tensor"),
        ({"state_dict": {3: torch.zeros(1)}}, "state_dict[3] is a Tensor"),
        ({"state_dict": {"a\nb": torch.zeros(1)}}, "state_dict['a\\nb']"),
        ({"model_class": 3}, "model_class is of type int, expected str"),
        ({"model_class": "a\nb"}, "model_class 'a\\nb' is no name"),
        ({"hyper_parameters": None}, "hyper_parameters is of type NoneType, expected dict"),
        ({"hyper_parameters": {"a": torch.zeros(1)}}, "hyper_parameters is not plain data"),
        ({"hyper_parameters": cyclic()}, "hyper_parameters is not plain data"),
        ({"hyper_parameters": {"a": doubling()}}, "hyper_parameters is not plain data"),
        ({"global_step": "1"}, "global_step is of type str, expected int"),
        ({"global_step": True}, "global_step is of type bool, expected int"),
        ({"optimizer_states": {}}, "optimizer_states is of type dict, expected list"),
        ({"callbacks": 1}, "callbacks is of type int, expected dict"),
        ({"loops": []}, "loops is of type list, expected dict"),
        ({"random_states": 0}, "random_states is of type int, expected list"),
    ],
)
def test_wrong_types(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, good())
    read_checkpoint(path)
    write_checkpoint(path, good() | change)
    with limited(), pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize("value", [[1], "text", {}, 3, None, {"state_dict": {}}])
def test_not_one_of_ours(tmp_path: Path, value: Any) -> None:
    write_checkpoint(tmp_path / "a.ckpt", value)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: not a checkpoint of Lightning Genesis .no "):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_class": "SceneModel"}, "holds a 'SceneModel'; known are"),
        ({"model_class": "Unknown"}, "holds a 'Unknown'; known are"),
        ({"hyper_parameters": {"num_slots": "three", "image_size": 32}}, "hyperparameters make no GenesisV2"),
        ({"hyper_parameters": {"num_slots": 3}}, "hyperparameters make no GenesisV2"),
    ],
)
def test_models_that_cannot_be(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    write_checkpoint(tmp_path / "a.ckpt", good() | change)
    with limited(), pytest.raises(CheckpointError, match=expected) as caught:
        SceneModel.load_from_checkpoint(tmp_path / "a.ckpt")
    assert str(tmp_path / "a.ckpt") in str(caught.value)


# ---------------------------------------------------------------- bombs


class Calls:
    """Unpickles as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def rezip(source: Path, path: Path, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


def deflated(path: Path) -> None:
    write_checkpoint(path, good() | {"more": torch.zeros(2**23)})
    rezip(path, path.with_suffix(".zip"), zipfile.ZIP_DEFLATED)
    path.with_suffix(".zip").rename(path)


def overlapping(path: Path) -> None:
    """Many entries of one megabyte that are the same bytes."""
    torch.save(good() | {"more": torch.zeros(2**18)}, path)
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    size, start = struct.unpack("<LL", data[end + 12 : end + 20])
    directory = bytes(data[start : start + size])
    entry = directory[directory.rindex(b"PK\x01\x02", 0, directory.index(b"data/1")) :]
    length = 46 + sum(struct.unpack("<HHH", entry[28:34]))
    entry = entry[:length]
    place = entry.index(b"data/1")
    copies = b"".join(entry[:place] + b"%06d" % i + entry[place + 6 :] for i in range(500))
    count = directory.count(b"PK\x01\x02") + 500
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size + len(copies), start, 0)
    path.write_bytes(bytes(data[:start]) + directory + copies + tail)


BOMBS: dict[str, Callable[[Path], None]] = {
    "deflated": deflated,
    "overlapping": overlapping,
    "stride": lambda path: write_checkpoint(path, good() | {"x": torch.zeros(1).expand(2**40)}),
    "bytearray": lambda path: write_checkpoint(path, good() | {"x": Calls(bytearray, 2**33)}),
    "tensor": lambda path: write_checkpoint(path, good() | {"x": Calls(torch.Tensor, 2**31)}),
    "storage": lambda path: write_checkpoint(
        path, good() | {"x": Calls(torch.storage.UntypedStorage, 2**33)}
    ),
    "qtensor": lambda path: write_checkpoint(
        path, good() | {"x": torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)}
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(tmp_path: Path, bomb: str) -> None:
    """A small file makes no large memory."""
    path = tmp_path / "a.ckpt"
    BOMBS[bomb](path)
    assert path.stat().st_size < 4 * 2**20
    with limited(megabytes=500), pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "memory" not in str(caught.value).lower(), "the limit stopped it, not the check"


def test_claimed_sizes(plain: Path, tmp_path: Path) -> None:
    """The directory claims a petabyte for a tensor, or the pickle more numbers than there are."""
    data = bytearray(plain.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"/data/1"))
    struct.pack_into("<LL", data, entry + 20, 2**32 - 2, 2**32 - 2)
    (tmp_path / "a.ckpt").write_bytes(data)
    with limited(megabytes=500), pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("length", [2**63, 2**40, 2**31, 100_000_000])
def test_claimed_header_of_safetensors(tmp_path: Path, length: int) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" + bytes(100))
    with limited(megabytes=500), pytest.raises(CheckpointError, match=r"a\.safetensors: not a readable"):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", ["{", "[]", "3", '"x"', '{"model_class": 3}', "[" * 100_000, "{}"])
def test_rubbish_in_the_metadata(tmp_path: Path, text: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"lightning_genesis": text})
    with limited(), pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- code


def attacks(marker: Path) -> dict[str, Any]:
    """Objects that make a file `marker` when they are unpickled."""
    command = f"touch {shlex.quote(str(marker))}"
    return {
        "system": Calls(os.system, command),
        "exec": Calls(exec, f"open({str(marker)!r}, 'w')"),
        "method": Calls(Path.touch, marker),
        "eval": Calls(eval, f"__import__('os').system({command!r})"),
        "partial": Calls(partial(os.system), command),
    }


PLACES: dict[str, Callable[[Any], Any]] = {
    "top": lambda evil: evil,
    "value": lambda evil: good() | {"x": evil},
    "hyper_parameters": lambda evil: good() | {"hyper_parameters": {"num_slots": evil}},
    "state_dict": lambda evil: good() | {"state_dict": OrderedDict(weight=torch.zeros(2), other=evil)},
    "callbacks": lambda evil: good() | {"callbacks": {"a": [{"b": (evil,)}]}},
    "key": lambda evil: good() | {"optimizer_states": [[(evil, 1)]]},
}


def as_tar(path: Path, value: Any) -> None:
    """torch's format before 2018."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(value, protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def as_zip_with_the_pickle_twice(path: Path, value: Any) -> None:
    torch.save(good(), path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], pickle.dumps(value, protocol=2))


FORMATS: dict[str, Callable[[Path, Any], Any]] = {
    "pickle": lambda path, value: path.write_bytes(pickle.dumps(value)),
    "pickle2": lambda path, value: path.write_bytes(pickle.dumps(value, protocol=2)),
    "legacy": lambda path, value: torch.save(value, path, _use_new_zipfile_serialization=False),
    "zip": lambda path, value: torch.save(value, path),
    "sealed": write_checkpoint,
    "protocol4": lambda path, value: torch.save(value, path, pickle_protocol=4),
    "tar": as_tar,
    "twice": as_zip_with_the_pickle_twice,
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("place", PLACES)
def test_no_code_runs(tmp_path: Path, place: str, format: str) -> None:
    marker = tmp_path / "marker"
    for name, evil in attacks(marker).items():
        for suffix in (".ckpt", ".safetensors", ".pt"):
            path = tmp_path / f"{name}{suffix}"
            FORMATS[format](path, PLACES[place](evil))
            for read in (read_checkpoint, SceneModel.load_from_checkpoint, GenesisV2.load_from_checkpoint):
                with pytest.raises(CheckpointError) as caught:
                    read(path)
                assert str(path) in str(caught.value)
                assert "\n" not in str(caught.value)
                assert not marker.exists()


@pytest.mark.parametrize("name", ["system", "exec", "eval", "method", "partial"])
@pytest.mark.parametrize("format", ["legacy", "zip", "sealed"])
def test_the_attacks_are_real(tmp_path: Path, name: str, format: str) -> None:
    """Whoever unpickles these files runs them."""
    marker = tmp_path / "marker"
    FORMATS[format](tmp_path / "a.ckpt", PLACES["hyper_parameters"](attacks(marker)[name]))
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("format", few(["pickle", "sealed"], "sealed"))
def test_no_code_runs_in_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"image_size": 32, "train_size": 4, "val_size": 2, "test_size": 2, "batch_size": 2}
    config = {
        "model": {"class_path": "lightning_genesis.models.GenesisV2"},
        "data": {"class_path": "data_modules.MultiDSprites", "init_args": sizes},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "run": {"wandb": False},
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(config))
    FORMATS[format](tmp_path / "evil.ckpt", PLACES["value"](attacks(tmp_path / "marker")["system"]))
    shutil.copy("evil.ckpt", "evil.safetensors")
    for command in ("test --ckpt_path", "fit --ckpt_path", "fit --init_from", "predict --ckpt_path"):
        for file in ("evil.ckpt", "evil.safetensors"):
            name, option = command.split()
            assert main([name, "--config", "tiny.yaml", option, file]) == 2
            lines = [
                row for row in capsys.readouterr().err.splitlines() if row.startswith("lightning-genesis:")
            ]
            assert len(lines) == 1
            assert file in lines[0]
            assert not Path("marker").exists()


# ---------------------------------------------------------------- stores

SETTINGS = {"image_size": 8, "variant": "free"}


def records(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(256, size=(20, 8, 8, 3), dtype=np.uint8),
        "segmentations": rng.integers(5, size=(20, 8, 8), dtype=np.uint8),
        "labels.height": rng.integers(9, size=20),
    }


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stores of one shape: two splits, and another dataset."""
    monkeypatch.setattr(store_writer, "CHUNK_BYTES", 500)
    about: dict[str, Any] = {"name": "toy", "source": {}}
    write_store(tmp_path / "train", iter([records(0)]), split="train", settings=SETTINGS, **about)
    write_store(tmp_path / "val", iter([records(1)]), split="val", settings=SETTINGS, **about)
    other = {"image_size": 8, "variant": "unique"}
    write_store(tmp_path / "other", iter([records(2)]), split="train", settings=other, **about)
    return tmp_path


def outcome(path: Path, truth: dict[str, np.ndarray[Any, Any]], number: int) -> str:
    """What training on a store that may be damaged comes to."""
    message = None
    try:
        with limited():
            store = Store.open(path, "run `prepare`", SETTINGS, "train")
            found = [store.read([i, 19 - i]) for i in range(20)]
    except DataError as error:
        message = str(error)
    if message is not None:
        assert str(path) in message, number
        assert "\n" not in message, number
        assert "run `prepare`" in message, number
        return "refused"
    for i, read in enumerate(found):
        for name, array in truth.items():
            np.testing.assert_array_equal(read[name], array[[i, 19 - i]], f"case {number}")
    return "same"


def test_damaged_stores(stores: Path) -> None:
    path, draw, truth = stores / "train", random.Random(0), records(0)
    counts = {"refused": 0, "same": 0}
    number = 0
    assert outcome(path, truth, number) == "same"
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        count = 150 if file.suffix == ".json" else 60
        cases = [*general_damage(data, draw, count)]
        if file.suffix == ".npy":
            cases += [partial(flip, place=place, bit=draw.randrange(8)) for place in range(128)]
            cases.append(partial(swap, a=len(data) - 1000, b=len(data) - 500, length=500))
        for damage in cases:
            damaged = damage(data)
            if damaged == data:
                continue
            number += 1
            file.write_bytes(damaged)
            counts[outcome(path, truth, number)] += 1
        file.write_bytes(data)
    assert outcome(path, truth, number) == "same"
    print(number, counts)
    assert number >= 800
    # spaces in the manifest and in the headers
    assert counts["same"] < 0.2 * number


@pytest.mark.parametrize("name", ["manifest.json", "images.npy", "segmentations.npy", "labels.height.npy"])
@pytest.mark.parametrize("source", ["val", "other"])
def test_files_of_another_store(stores: Path, name: str, source: str) -> None:
    shutil.copy(stores / source / name, stores / "train" / name)
    assert outcome(stores / "train", records(0), 0) == "refused"


@pytest.mark.parametrize("source", ["val", "other"])
def test_another_store_in_its_place(stores: Path, source: str) -> None:
    shutil.rmtree(stores / "train")
    (stores / source).rename(stores / "train")
    assert outcome(stores / "train", records(0), 0) == "refused"


def test_files_swapped_within_a_store(stores: Path) -> None:
    a, b = stores / "train" / "images.npy", stores / "train" / "segmentations.npy"
    data = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(data)
    assert outcome(stores / "train", records(0), 0) == "refused"


def test_additional_files_do_no_harm(stores: Path) -> None:
    (stores / "train" / "notes.txt").write_text("mine")
    (stores / "train" / "labels.other.npy").write_bytes(b"rubbish")
    assert outcome(stores / "train", records(0), 0) == "same"


@pytest.mark.parametrize("name", ["manifest.json", "images.npy"])
@pytest.mark.parametrize("kind", ["folder", "loop", "dangling", "empty", "pipe", "gone"])
def test_what_is_no_file_of_a_store(stores: Path, name: str, kind: str) -> None:
    file = stores / "train" / name
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "dangling":
        file.symlink_to(stores / "nowhere")
    elif kind == "empty":
        file.touch()
    elif kind == "pipe":
        os.mkfifo(file)
    assert outcome(stores / "train", records(0), 0) == "refused"


@pytest.mark.parametrize("kind", ["file", "loop", "dangling", "empty folder"])
def test_what_is_no_store(stores: Path, kind: str) -> None:
    path = stores / "train"
    shutil.rmtree(path)
    if kind == "file":
        path.touch()
    elif kind == "empty folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else stores / "nowhere")
    assert outcome(path, records(0), 0) == "refused"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["", "manifest.json", "images.npy"])
def test_unreadable_store(stores: Path, name: str) -> None:
    (stores / "train" / name).chmod(0)
    try:
        assert outcome(stores / "train", records(0), 0) == "refused"
    finally:
        (stores / "train" / name).chmod(0o700)


def test_manifest_that_is_consistent_and_wrong(stores: Path) -> None:
    """Somebody has edited it and computed the checksum anew."""
    file = stores / "train" / "manifest.json"
    whole = json.loads(file.read_text())
    number = 0

    def edits() -> Iterator[tuple[Any, Any]]:
        values: list[Any] = [None, -1, "x", [], 10**30, 2.5, True, {"a": 1}]
        for value in values:
            for key in ("count", "split", "settings", "arrays", "version", "format"):
                yield (key,), value
            for key in ("dtype", "shape", "bytes", "chunk_bytes", "crc32"):
                yield ("arrays", "images", key), value
            yield ("arrays", "images"), value
            yield ("arrays", "images", "shape", 0), value
            yield ("arrays", "images", "crc32", 1), value
        yield ("arrays", "images", "chunk_bytes"), 0
        yield ("arrays", "images", "chunk_bytes"), 400
        yield ("arrays", "../val/images"), whole["arrays"]["images"]
        yield ("arrays", "missing"), whole["arrays"]["images"]

    for keys, value in edits():
        manifest = json.loads(json.dumps(whole))
        inner = manifest
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        manifest["sha256"] = store_module.manifest_digest(manifest)
        file.write_text(json.dumps(manifest))
        number += 1
        assert outcome(stores / "train", records(0), number) == "refused", (keys, value)
    assert number > 100
