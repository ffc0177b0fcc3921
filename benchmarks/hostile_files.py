"""Files that are corrupted or hostile, for every reader: see `hostile.py`, which tries them."""

import io
import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from lightning_genesis.commands.label import read_answers
from lightning_genesis.commands.sample import read_scene_latent
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.interop.reading import read_flags, read_official
from lightning_genesis.report.page import _embed
from lightning_genesis.report.runs import read_run
from lightning_genesis.runs.loading import load, load_model
from lightning_genesis.runs.results import Result, read_result, write_result
from lightning_genesis.runs.wandb_file import read_rows
from lightning_genesis.storage.checkpoint import read_checkpoint, write_checkpoint
from lightning_genesis.storage.yaml_file import read_mapping, read_yaml

Case = Callable[[], Any]

# ---------------------------------------------------------------- what is hostile

SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 255, 256, 10**6 + 1, 10**9, 2**31, 2**63, -(2**63), 10**400),
    *(0.0, -0.0, 1e-320, 1e308, -1e308, float("inf"), float("nan"), 0.5),
    *("", "x", "../../escape", "/etc/passwd", "\x1b[2J", "\ud800", "a" * 5000, "=1+1", "-" * 5000),
    *("${HOME}", "os.system", "NaN", "null", "\0", "é", "𝔘", "2020-99-99", "1:1:1"),
    *([], {}, [[]], [1, "a", None], {"a": {"b": []}}, {"": 0}, {"class_path": "os.system"}),
)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut, repeated, zeroed, or put in from elsewhere."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        a, length = draw.randrange(len(content) + 1), draw.choice((1, 2, 8, 100, 1000))
        kind = draw.randrange(6)
        if kind == 0 and a < len(content):
            content[a] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del content[a:]
        elif kind == 2:
            content[a : a + length] = bytes(min(length, len(content) - a))
        elif kind == 3:
            content[a:a] = content[a : a + length]
        elif kind == 4:
            del content[a : a + length]
        else:
            content[a : a + length] = draw.randbytes(length)
    return bytes(content)


def changed(tree: Any, draw: random.Random) -> Any:
    """A tree of plain data with one place that holds something else, is missing, or is named otherwise."""
    tree = json.loads(json.dumps(tree))
    place, key = tree, None
    while isinstance(place, dict | list) and place and (key is None or draw.random() < 0.8):
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.3:
            break
        place = place[key]
    if key is None or (isinstance(place, dict) and key not in place):
        return draw.choice(SCALARS)
    kind = draw.randrange(4)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, dict):
        place[str(draw.choice(SCALARS))] = place.pop(key)
    else:
        place[key] = draw.choice(SCALARS)
    return tree


def odd_file(path: Path, draw: random.Random) -> None:
    """Something that is no regular file, or an empty one."""
    kind = draw.choice(("pipe", "zero", "loop", "dangling", "folder", "empty"))
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    else:
        path.symlink_to(
            {"zero": Path("/dev/zero"), "loop": path, "dangling": path.with_name("nowhere")}[kind]
        )


MODELS = ("GenesisV2", "SRI", "MONet", "SlotAttention", "Genesis")


class Calls:
    """Makes a file `marker` when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch marker",)


# ---------------------------------------------------------------- readers


def checkpoints(draw: random.Random, folder: Path) -> Iterator[Case]:
    """Archives damaged, pickles of other things, the writer's own with hostile contents."""
    good: dict[str, Any] = {
        "state_dict": {"weight": torch.arange(6.0).reshape(2, 3)},
        "model_class": "GenesisV2",
        "hyper_parameters": {"num_slots": 3},
        "global_step": 3,
        "loops": {"a": [1, {"b": 2}]},
        "bytes": b"\xff\x00abc",
    }
    sealed, plain, path = folder / "sealed.ckpt", folder / "plain.ckpt", folder / "case.ckpt"
    write_checkpoint(sealed, good)
    torch.save(good, plain)
    texts = {name: file.read_bytes() for name, file in (("sealed", sealed), ("plain", plain))}
    with zipfile.ZipFile(plain) as archive:
        pickled = archive.read("plain/data.pkl")

    def rebuilt(content: bytes) -> None:
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as target:
            for entry in source.infolist():
                body = content if entry.filename.endswith("data.pkl") else source.read(entry)
                target.writestr(entry.filename, body)

    while True:
        kind = draw.randrange(6)
        clear(path)
        if kind < 2:
            path.write_bytes(damaged(texts[draw.choice(("sealed", "plain"))], draw))
        elif kind == 2:
            rebuilt(damaged(pickled, draw))
        elif kind == 3:
            codec = draw.choice(("punycode", "idna", "zip", "hex", "utf_16", "unicode_escape", "UTF-8"))
            text = "é" * draw.choice((10, 4000, 100_000))
            rebuilt(_encoded(text, codec, draw.choice((1, 1, 50_000))))
        elif kind == 4:
            contents = {**good, draw.choice(list(good)): draw.choice((*SCALARS, Calls(), {1: 2}, {1, 2}))}
            if draw.random() < 0.5:
                torch.save(contents, path)
            else:
                write_checkpoint(path, contents)
        else:
            odd_file(path, draw)
        yield lambda: read_checkpoint(path)


def _encoded(text: str, codec: str, times: int) -> bytes:
    """A pickle that encodes a text, several times."""

    def unicode(value: str) -> bytes:
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    call = b"c_codecs\nencode\nq\x00" + unicode(text) + b"q\x01" + unicode(codec) + b"\x86q\x02R"
    again = b"h\x00h\x02R"
    return b"\x80\x02](" + call + again * (times - 1) + b"e."


def weights(draw: random.Random, folder: Path) -> Iterator[Case]:
    """Files of weights: damaged, and with hostile metadata, hyperparameters and data."""
    path = folder / "case.safetensors"
    state = {"weight": torch.arange(6.0).reshape(2, 3)}
    about = {
        "model_class": "GenesisV2",
        "hyper_parameters": {"num_slots": 3, "image_size": 32, "feature_dim": 8, "latent_dim": 8},
        "data": {
            "class_path": "data_modules.MultiDSprites",
            "init_args": {"image_size": 32, "train_size": 9},
        },
    }
    names = ("num_slots", "image_size", "feature_dim", "latent_dim", "decoder_stages", "kernel", "objective")
    save_file(state, path, {"lightning_genesis": json.dumps(about)})
    whole = path.read_bytes()
    while True:
        clear(path)
        kind = draw.randrange(6)
        contents = json.loads(json.dumps(about))
        if kind == 0:
            path.write_bytes(damaged(whole, draw))
        elif kind == 1:
            path.write_bytes(struct.pack("<Q", draw.choice((2**63, 2**40, 10**8, 7))) + whole[8:])
        elif kind == 2:
            odd_file(path, draw)
        else:
            if kind == 3:
                contents = changed(about, draw)
            elif kind == 4:
                contents["hyper_parameters"][draw.choice(names)] = draw.choice(SCALARS)
                contents["model_class"] = draw.choice(
                    ("GenesisV2", "SRI", "MONet", "SlotAttention", "Genesis")
                )
            else:
                contents["data"]["init_args"][draw.choice(("image_size", "batch_size", "root", "seed"))] = (
                    draw.choice(SCALARS)
                )
                contents["data"]["class_path"] = draw.choice(
                    ("data_modules.MultiDSprites", "data_modules.ImageFolder", "os.system", "antigravity.x")
                )
            save_file(state, path, {"lightning_genesis": json.dumps(contents)})
        yield draw.choice((lambda: load(path), lambda: load_model(path), lambda: read_checkpoint(path)))


def yaml_files(draw: random.Random, folder: Path) -> Iterator[Case]:
    """YAML that is damaged, refers to itself, unfolds, collides, nests or names Python."""
    path = folder / "case.yaml"
    whole = fit_configuration()
    text = yaml.safe_dump(whole).encode()

    def bomb() -> bytes:
        levels, width = draw.randrange(2, 12), draw.randrange(2, 30)
        lines = ["a0: &a0 [x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
        return "\n".join(lines).encode()

    def merges() -> bytes:
        count = draw.choice((10, 1000, 20_000))
        keys = ", ".join(f"k{n}: 0" for n in range(draw.choice((1, 1000))))
        return f"a: &a {{{keys}}}\nb: {{<<: [{', '.join(['*a'] * count)}]}}".encode()

    def collisions() -> bytes:
        step = draw.choice((2**61 - 1, 2**64, 1))
        return "\n".join(f"{n * step}: 0" for n in range(draw.choice((10, 24_000)))).encode()

    crafted: tuple[Callable[[], bytes], ...] = (
        bomb,
        merges,
        collisions,
        lambda: b"a: &a [*a]",
        lambda: b"&a {<<: *a}",
        lambda: b"[" * draw.choice((10, 1000, 100_000)),
        lambda: b"a: " + b"-" * draw.choice((10, 100_000)),
        lambda: b"a: " + b"1:" * draw.choice((10, 100_000)) + b"1",
        lambda: b"a: 0x" + b"f" * draw.choice((10, 100_000)),
        lambda: (
            b"a: !!" + draw.choice((b"int x", b"bool x", b"timestamp x", b"binary x", b"float ''", b"set 3"))
        ),
        lambda: b"a: !!python/object/apply:os.system ['touch marker']",
        lambda: b"? {a: b}\n: c",
        lambda: b"x" * draw.choice((10, 400_000)),
        lambda: draw.randbytes(200),
        lambda: b"\xff\xfea\x00",
    )
    while True:
        clear(path)
        kind = draw.randrange(4)
        if kind == 0:
            path.write_bytes(damaged(text, draw))
        elif kind == 1:
            path.write_bytes(draw.choice(crafted)())
        elif kind == 2:
            path.write_text(yaml.safe_dump(writable(changed(whole, draw))), errors="replace")
        else:
            odd_file(path, draw)
        yield draw.choice((lambda: read_yaml(path), lambda: read_mapping(path)))


def json_files(draw: random.Random, folder: Path) -> Iterator[Case]:
    """Results, answers and flags: damaged, of wrong types, nested, numbers and text out of all bounds."""
    path = folder / "case.json"
    trees: dict[Callable[[Path], Any], dict[str, Any]] = {
        read_result: json.loads(write_result(folder, "x", a_result({"ari_fg": 0.5})).read_text()),
        read_answers: {"format": 1, "labeller": "a", "question": "b", "images": "c", "answers": {"x": True}},
        read_flags: {"K_steps": 5, "img_size": 64, "pixel_std": 0.7, "dynamic_K": False},
    }
    while True:
        clear(path)
        read = draw.choice(list(trees))
        kind = draw.randrange(5)
        if kind == 0:
            path.write_bytes(damaged(json.dumps(trees[read]).encode(), draw))
        elif kind == 1:
            depth = draw.choice((10, 500, 100_000))
            path.write_text(
                draw.choice(("[" * depth + "]" * depth, '{"a":' * depth, "1" * depth, "-" * depth))
            )
        elif kind == 2:
            odd_file(path, draw)
        else:
            path.write_text(json.dumps(changed(trees[read], draw)))
        yield lambda read=read: read(path)


def logs(draw: random.Random, folder: Path) -> Iterator[Case]:
    """Logs of a run: CSV and W&B's files."""
    run = folder / "run"
    rows = ["step,train/loss,val/ari_fg", *(f"{n},{n * 0.5},0.{n}" for n in range(20))]
    csv = "\n".join(rows).encode()
    record = (
        b":W&B\x98\xbd\x00" + b"\0\0\0\0" + struct.pack("<HB", 8, 1) + b"\x08\x01\x12\x04\x0a\x02\x08\x01"
    )
    while True:
        shutil.rmtree(run, ignore_errors=True)
        (run / "wandb/run-1").mkdir(parents=True)
        log, kept = run / "metrics.csv", run / "wandb/run-1/run-1.wandb"
        kind = draw.randrange(5)
        if kind < 2:
            log.write_bytes(damaged(csv, draw))
        elif kind == 2:
            cell = draw.choice(("1" * 5000, "nan", "1e309", "=1", "a,b,c,d", '"', "\x00", "-0", "1e-320"))
            log.write_text("\n".join([*rows, f"{cell},{cell},{cell}"]))
        elif kind == 3:
            kept.write_bytes(damaged(record * 3, draw))
        else:
            odd_file(draw.choice((log, kept)), draw)
        yield draw.choice((lambda: read_run(run), lambda kept=kept: list(read_rows_or_refuse(kept))))


def read_rows_or_refuse(path: Path) -> Iterator[Any]:
    """`read_rows`, whose ValueError and OSError the report turns into a remark."""
    try:
        yield from read_rows(path)
    except (ValueError, OSError) as error:
        raise ConfigurationError(str(error)) from error


def pictures(draw: random.Random, folder: Path) -> Iterator[Case]:
    """Pictures of a run: damaged, of other formats, huge, of many frames, or a program's."""
    path = folder / "case.png"
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    kinds = {}
    for name in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG", "PPM", "ICO", "TGA", "SGI", "PCX", "EPS"):
        content = io.BytesIO()
        image.save(content, name)
        kinds[name] = content.getvalue()
    content = io.BytesIO()
    image.save(content, "GIF", save_all=True, append_images=[image] * 3000)
    kinds["many"] = content.getvalue()
    huge = bytearray(kinds["PNG"])
    huge[16:24] = struct.pack(">II", 60_000, 60_000)
    kinds["huge"] = bytes(huge)
    while True:
        clear(path)
        if draw.random() < 0.1:
            odd_file(path, draw)
        else:
            data = kinds[draw.choice(list(kinds))]
            path.write_bytes(data if draw.random() < 0.2 else damaged(data, draw))

        def embed() -> Any:
            problems: list[str] = []
            picture = _embed(path, problems)
            if picture is None:
                raise ConfigurationError(problems[0])
            return picture

        yield embed


def arrays(draw: random.Random, folder: Path) -> Iterator[Case]:
    """Scene variables in `.npy`, and the authors' checkpoints."""
    path = folder / "case.npy"
    content = io.BytesIO()
    np.save(content, np.arange(6, dtype=np.float32))
    whole = content.getvalue()

    def read_latent(file: Path) -> Any:
        return read_scene_latent(file, SimpleNamespace(scene_dim=6), None)  # type: ignore[arg-type]

    torch.save({"model_state_dict": {"a": torch.zeros(3)}, "iter_idx": 3, "beta": 1.0}, folder / "official")
    official = (folder / "official").read_bytes()
    while True:
        clear(path)
        kind = draw.randrange(4)
        read: Callable[[Path], Any] = read_latent
        if kind == 0:
            path.write_bytes(damaged(whole, draw))
        elif kind == 1:
            text = draw.choice(("-" * 5000, "(" * 5000, "{'descr': '<f4', 'shape': (10**12,)}", "'a'*10**9"))
            path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text.encode() + bytes(24))
        elif kind == 2:
            odd_file(path, draw)
        else:
            path.write_bytes(damaged(official, draw))
            read = read_official
        yield lambda read=read: read(path)


def a_result(metrics: dict[str, Any]) -> Result:
    """An evaluation."""
    return Result("GenesisV2", "a-seed0", "a", "gqn", False, "test", 5, metrics, protocol="genesisv2", seed=0)


def fit_configuration() -> dict[str, Any]:
    """A small experiment."""
    sizes = {"image_size": 32, "train_size": 24, "val_size": 6, "test_size": 6, "batch_size": 4}
    return {
        "model": {
            "class_path": "lightning_genesis.models.GenesisV2",
            "init_args": {"feature_dim": 8, "latent_dim": 8},
        },
        "data": {"class_path": "data_modules.MultiDSprites", "init_args": sizes},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "logger": False},
        "run": {"wandb": False},
    }


def clear(path: Path) -> None:
    """Removes a file, link, pipe or empty folder."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)


def writable(tree: Any) -> Any:
    """The tree, if it is text without half characters."""
    return tree if not isinstance(tree, str) else tree.encode("utf-8", "replace").decode()
