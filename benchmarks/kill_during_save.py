"""Kills a process that does nothing but save, again and again, and reads what it left behind.

    python benchmarks/kill_during_save.py --kills 60

The process keeps `last.ckpt` and `previous.ckpt` and tells each save that is complete. After every kill the
newest checkpoint has to load, to be whole, and to be at least as new as the last one told. (A kill is no
power failure: the kernel lives on, so this tests the order of the steps and not the disk.)
"""

import argparse
import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from lightning_genesis.runs.run import read_last_good
from lightning_genesis.storage.checkpoint import read_checkpoint, write_checkpoint


@dataclass
class Figures:
    """What happened."""

    kills: int = 0
    saves: int = 0
    """Saves that were told to be complete."""
    ahead: int = 0
    """Kills after which a save was complete that had not been told."""
    leftovers: int = 0
    """Kills that left a temporary file, which means that they hit while the bytes were written."""
    same: int = 0
    """Kills that left `previous.ckpt` as another name of `last.ckpt`, between the two renames of a save."""
    seconds_per_save: float = 0.0


def contents(step: int, megabytes: float) -> dict[str, Any]:
    """A state in which every number is the step."""
    weight = torch.full((int(megabytes * 2**20) // 4,), float(step))
    return {
        "state_dict": {"weight": weight},
        "model_class": "Nothing",
        "hyper_parameters": {},
        "global_step": step,
    }


def save_forever(folder: Path, step: int, megabytes: float, told: Connection) -> None:
    while True:
        step += 1
        write_checkpoint(folder / "last.ckpt", contents(step, megabytes), previous=folder / "previous.ckpt")
        told.send(step)


def everything_in(connection: Connection) -> Iterator[int]:
    with contextlib.suppress(EOFError):
        while True:
            yield connection.recv()


def kill_and_look(run: Path, kills: int, megabytes: float = 20.0, seed: int = 0) -> Figures:
    """Kills `kills` times, at random moments.

    Raises:
        AssertionError: if something was lost.
    """
    folder, figures, step, delays = run / "checkpoints", Figures(), 0, random.Random(seed)
    context = get_context("fork")  # importing torch takes longer than many saves
    start = time.perf_counter()
    write_checkpoint(run / "other.ckpt", contents(step, megabytes))
    figures.seconds_per_save = time.perf_counter() - start
    for _ in range(kills):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=save_forever, args=(folder, step, megabytes, sender))
        process.start()
        sender.close()
        time.sleep(delays.uniform(0, 6 * figures.seconds_per_save))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        told = max(everything_in(receiver), default=step)
        figures.kills += 1
        figures.saves += told - step
        leftovers = [*folder.glob(".*.tmp")]
        figures.leftovers += bool(leftovers)
        for leftover in leftovers:
            leftover.unlink()
        if told == 0 and not (folder / "last.ckpt").exists():
            continue  # killed in its very first save
        path, found = read_last_good(run)
        assert path.name == "last.ckpt", f"{path} instead of last.ckpt"
        assert found["global_step"] >= told, f"step {found['global_step']}, but {told} was told"
        assert bool((found["state_dict"]["weight"] == found["global_step"]).all()), f"{path}: mixed"
        step = found["global_step"]
        figures.ahead += step > told
        if (folder / "previous.ckpt").exists():
            assert read_checkpoint(folder / "previous.ckpt")["global_step"] in (step - 1, step)
            figures.same += (folder / "previous.ckpt").samefile(path)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--megabytes", type=float, default=20.0, help="size of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=None, help="on the disk to test; a temporary one if None"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(kill_and_look(Path(folder), arguments.kills, arguments.megabytes, arguments.seed))


if __name__ == "__main__":
    main()
