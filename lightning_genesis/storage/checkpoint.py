"""Checkpoints and weight files: written so that they survive, read without running any code in them.

A `.ckpt` is torch's zip archive with a seal: the archive's comment holds the SHA-256 of all bytes before it.
torch does not compare the checksums of the entries when it reads, so without one a flipped bit in a weight
would go unnoticed. torch and zip tools read a sealed file like any other. A `.safetensors` of ours holds a
digest of its contents in its metadata.
"""

import encodings
import hashlib
import io
import json
import pickletools
import pkgutil
import re
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from encodings.aliases import aliases
from pathlib import Path
from typing import IO, Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_genesis.errors import CheckpointError
from lightning_genesis.storage.files import link, replacing, sync_folder, to_disk

OBJECTIVE = "objective."
"""Prefix of the objective's state, which is not part of the weights."""

_SEAL = b"lightning-genesis sha256 "
_DIGEST_LENGTH = 64
_END = struct.Struct("<4s4H2LH")
"""What zip calls the end of the central directory; the comment follows."""
_GLOBALS = re.compile(
    r"collections (OrderedDict|Counter)"
    r"|builtins (set|complex)|__builtin__ (set|complex)"
    r"|_codecs encode"
    r"|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch (\w+Storage|Size|device|bool|(bfloat|float|complex|u?int)\d+)"
)
"""What the pickle in a checkpoint may name. A part of what torch allows with `weights_only`: it has none that
makes memory out of a number, like `bytearray` or `torch.Tensor`."""
_MOST_ENCODED = 2**28
"""Bytes that are stored as text; a pickle can make them of one text, again and again."""
_MOST_PLAIN = 10_000
"""Values in the hyperparameters. A pickle can make them cyclic, or 2^30 out of 30 shared lists."""


# ---------------------------------------------------------------- reading


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a `.ckpt` of ours, or of a `.safetensors` of weights, on the CPU.

    The result has at least `state_dict`, `model_class` and `hyper_parameters`. Every byte is compared with
    the checksums in the file before anything is taken from it; a `.safetensors` of others has none.

    Raises:
        CheckpointError: if the file is not there, damaged, or not one of ours.
    """
    path = Path(path)
    try:
        if not path.is_file():
            found = ", found a folder" if path.is_dir() else ""
            raise CheckpointError(f"{path}: no such checkpoint{found}")
        read = _read_safetensors if path.suffix == ".safetensors" else _read_archive
        checkpoint = read(path)
        _check_contents(checkpoint, path)
    except CheckpointError:
        raise
    except Exception as error:  # what a reader may raise for rubbish is not documented
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from error
    return checkpoint


def _read_archive(path: Path) -> Any:
    # one descriptor for all: the name may get another file at any time
    with open(path, "rb") as file:
        sealed = _check_seal(file, path)
        with zipfile.ZipFile(file) as archive:
            _check_entries(file, archive, path)
            if not sealed and (entry := archive.testzip()) is not None:
                raise CheckpointError(f"{path}: damaged in the entry {entry!r}")
            _check_globals(archive, path)
        file.seek(0)
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        size = file.seek(0, io.SEEK_END)
    for tensor in _tensors(checkpoint):
        # a few bytes with a stride of zero can claim any shape
        if tensor.numel() * tensor.element_size() > size:
            raise CheckpointError(
                f"{path}: a tensor of shape {list(tensor.shape)} in a file of {size:,} bytes"
            )
    return checkpoint


def _check_seal(file: IO[bytes], path: Path) -> bool:
    """Compares the file with its seal; False if it has none, as what others wrote."""
    length = file.seek(0, io.SEEK_END) - _DIGEST_LENGTH
    if length < len(_SEAL):
        return False
    file.seek(length - len(_SEAL))
    if file.read(len(_SEAL)) != _SEAL:
        return False
    expected = file.read().decode("ascii", "replace")
    digest, remaining = hashlib.sha256(), length
    file.seek(0)
    while chunk := file.read(min(remaining, 2**20)):
        digest.update(chunk)
        remaining -= len(chunk)
    if digest.hexdigest() != expected:
        raise CheckpointError(
            f"{path}: damaged: its SHA-256 is {digest.hexdigest()[:16]}..., expected {expected[:16]!r}..."
        )
    return True


def _check_entries(file: IO[bytes], archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses what torch would not have written: rubbish around the archive, entries that unfold to more."""
    entries = archive.infolist()
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(4)
    file.seek(max(0, size - _END.size - len(archive.comment)))
    signature, *_, comment_length = _END.unpack(file.read(_END.size))
    if start != b"PK\x03\x04" or signature != b"PK\x05\x06" or comment_length != len(archive.comment):
        raise CheckpointError(f"{path}: damaged: there is something before or after the archive")
    if len({entry.filename for entry in entries}) < len(entries):
        raise CheckpointError(f"{path}: damaged: two entries of one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path}: has compressed entries, expected stored ones")
    if (unfolded := sum(entry.file_size for entry in entries)) > size:
        raise CheckpointError(f"{path}: damaged: entries of {unfolded:,} bytes in a file of {size:,}")


def _check_globals(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses a pickle that names more than tensors and plain data need."""
    pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: has {len(pickles)} data.pkl, expected one")
    texts: list[str] = []
    encodes, calls = False, 0
    for operation, argument, _ in pickletools.genops(archive.read(pickles[0])):
        if operation.name == "GLOBAL" and _GLOBALS.fullmatch(str(argument)) is None:
            name = ".".join(str(argument).split())
            raise CheckpointError(f"{path}: names {name}, expected tensors and plain data only")
        encodes = encodes or argument == "_codecs encode"
        calls += operation.name == "REDUCE"
        if isinstance(argument, str) and operation.name != "GLOBAL":
            texts.append(argument)
    if encodes:
        _check_encoding(texts, calls, path)


def _check_encoding(texts: Sequence[str], calls: int, path: Path) -> None:
    """Refuses what could take for ever or fill the memory, of a pickle that has bytes as text in Latin-1."""
    known = {
        *aliases,
        *aliases.values(),
        *(module.name for module in pkgutil.iter_modules(encodings.__path__)),
    }
    for text in texts:
        name = encodings.normalize_encoding(text[:60]).lower() if text.isascii() else ""
        if name in known and aliases.get(name, name) != "latin_1":
            raise CheckpointError(f"{path}: names the encoding {text!r}, expected bytes as latin1")
    if calls * max(map(len, texts), default=0) > _MOST_ENCODED:
        raise CheckpointError(f"{path}: could make more than {_MOST_ENCODED:,} bytes out of text")


def _read_safetensors(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    text = metadata.get("lightning_genesis", "{}")
    if "sha256" in metadata and (found := _digest(text, state)) != (expected := metadata["sha256"]):
        raise CheckpointError(
            f"{path}: damaged: its SHA-256 is {found[:16]}..., expected {expected[:16]!r}..."
        )
    header = json.loads(text)
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its metadata is a {type(header).__name__}, expected a dict")
    return {**header, "state_dict": state}


def _digest(header: str, state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a header and of names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256(header.encode())
    for key, value in sorted(state.items()):
        digest.update(json.dumps([key, str(value.dtype), list(value.shape)]).encode())
        data: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(data)
    return digest.hexdigest()


def _check_contents(checkpoint: Any, path: Path) -> None:
    """Compares the types of what is used with those expected."""
    needed = ("state_dict", "model_class", "hyper_parameters")
    missing = [key for key in needed if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise CheckpointError(f"{path}: not a checkpoint of Lightning Genesis (no {' or '.join(missing)})")
    expected = {
        "state_dict": dict,
        "model_class": str,
        "hyper_parameters": dict,
        "global_step": int,
        "epoch": int,
        "loops": dict,
        "callbacks": dict,
        "optimizer_states": list,
        "lr_schedulers": list,
        "random_states": list,
        "data": dict,
    }
    for key, kind in expected.items():
        if key in checkpoint and (type(checkpoint[key]) not in (kind, OrderedDict)):
            found = type(checkpoint[key]).__name__
            raise CheckpointError(f"{path}: {key} is of type {found}, expected {kind.__name__}")
    if not checkpoint["model_class"].isidentifier():
        raise CheckpointError(f"{path}: model_class {checkpoint['model_class'][:60]!r} is no name of a class")
    for key, value in checkpoint["state_dict"].items():
        if not (isinstance(key, str) and key.isprintable() and isinstance(value, Tensor)):
            raise CheckpointError(
                f"{path}: state_dict[{key!r}] is a {type(value).__name__}, expected a Tensor"
            )
    for key in ("hyper_parameters", "data"):
        if not _is_plain(checkpoint.get(key)):
            raise CheckpointError(f"{path}: {key} is not plain data (numbers, strings, lists, dicts)")


def _is_plain(tree: Any) -> bool:
    waiting, count = [tree], 0
    while waiting and count <= _MOST_PLAIN:
        value, count = waiting.pop(), count + 1
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif not (value is None or isinstance(value, bool | int | float | str)):
            return False
    return not waiting


def _tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors in nested containers. A pickle can make these deep, cyclic or shared: each is seen once."""
    waiting, seen = [tree], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


# ---------------------------------------------------------------- writing


def write_checkpoint(path: str | Path, contents: dict[str, Any], previous: str | Path | None = None) -> None:
    """Writes a sealed checkpoint; until it is complete and on the disk, `path` is what it was.

    Args:
        path: the file; its folder is made if need be.
        contents: tensors and plain data.
        previous: becomes what `path` was, once the new one is complete; None keeps nothing.

    Raises:
        CheckpointError: if it cannot be written, for example on a full disk.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    # the archive ends with the length of its comment, which is empty
    buffer.seek(-2, io.SEEK_END)
    buffer.write(struct.pack("<H", len(_SEAL) + _DIGEST_LENGTH) + _SEAL)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(digest.encode())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            if previous is not None:
                to_disk(file)
                rotate(path, previous)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: str | Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be written ({error.strerror or error}); it is what it was")


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written by `write_checkpoint` and read by `read_checkpoint`.

    Give it to the Trainer: `plugins=[DurableCheckpointIO()]`. To keep the last but one, save with
    `trainer.save_checkpoint(path, storage_options={"previous": other_path})`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See `write_checkpoint`.

        Raises:
            CheckpointError: if it cannot be written.
        """
        if "://" in str(path):
            raise CheckpointError(f"{path}: checkpoints are written to folders of this machine only")
        write_checkpoint(path, checkpoint, **(storage_options or {}))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See `read_checkpoint`: on the CPU, and whatever is asked, no code in the file runs.

        Raises:
            CheckpointError: if the file is not there, damaged, or not one of ours.
        """
        return read_checkpoint(path)


def rotate(last: str | Path, previous: str | Path) -> None:
    """Makes `previous` what `last` is now. Both are whole at every moment; without a `last` nothing happens.

    Raises:
        CheckpointError: if it cannot be written.
    """
    last, previous = Path(last), Path(previous)
    if not last.is_file():
        return
    try:
        try:
            link(last, previous)
        except OSError:  # no hard links there
            with replacing(previous) as temporary:
                shutil.copyfile(last, temporary)
    except OSError as error:
        raise _unwritable(previous, error) from error


def set_aside(path: str | Path) -> Path:
    """Renames a damaged checkpoint, so that it is neither read nor rotated over a good one, and keeps it.

    Returns:
        its new name, for `last.ckpt` the first of `last.damaged-1.ckpt.bad`, `last.damaged-2.ckpt.bad`, ...
        that is not taken.

    Raises:
        CheckpointError: if it cannot be renamed.
    """
    path = Path(path)
    number = 1
    while (aside := path.with_name(f"{path.stem}.damaged-{number}{path.suffix}.bad")).exists():
        number += 1
    try:
        path.rename(aside)
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: damaged, and cannot be renamed ({error.strerror})") from error
    return aside


def write_weights(path: str | Path, checkpoint: dict[str, Any], data: dict[str, Any] | None = None) -> None:
    """Writes the weights of a checkpoint as safetensors, with what is needed to build model and data again.

    Args:
        path: a `.safetensors` file; until it is complete, `path` is what it was.
        checkpoint: from `read_checkpoint`.
        data: class and arguments of the data module, as in a configuration; None if they are not known.

    Raises:
        CheckpointError: if it cannot be written.
    """
    header = {key: checkpoint[key] for key in ("model_class", "hyper_parameters")}
    header |= {"global_step": checkpoint.get("global_step", 0)} | ({} if data is None else {"data": data})
    weights = {key: value.contiguous() for key, value in weights_of(checkpoint).items()}
    text = json.dumps(header)
    metadata = {"lightning_genesis": text, "sha256": _digest(text, weights)}
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(weights, temporary, metadata=metadata)
    except OSError as error:
        raise _unwritable(path, error) from error


# ---------------------------------------------------------------- models


def weights_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict without the objective's state."""
    return {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(OBJECTIVE)}


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads weights alone into a model: no optimiser, no step, no state of the objective.

    Raises:
        CheckpointError: if the file holds another model, or parameters of other names or shapes.
    """
    checkpoint = read_checkpoint(path)
    check_model(checkpoint, model, path)
    model.load_state_dict(weights_of(checkpoint), strict=False)


def check_model(checkpoint: dict[str, Any], model: nn.Module, path: str | Path) -> None:
    """Compares a checkpoint's model, names and shapes with a model's.

    Raises:
        CheckpointError: at the first difference.
    """
    if checkpoint["model_class"] != type(model).__name__:
        found = checkpoint["model_class"]
        raise CheckpointError(f"{path}: holds a {found}, but the model is a {type(model).__name__}")
    found, expected = weights_of(checkpoint), weights_of({"state_dict": model.state_dict()})
    for key in sorted(set(found) ^ set(expected)):
        where = "lacks" if key in expected else "has the additional"
        raise CheckpointError(f"{path}: {where} parameter {key}; it was made by a model with other options")
    for key, value in expected.items():
        if value.shape != found[key].shape:
            shapes = f"{list(found[key].shape)}, the model {list(value.shape)}"
            raise CheckpointError(f"{path}: parameter {key} has shape {shapes}; check the model's options")
