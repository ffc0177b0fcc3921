"""Images per second of preparing and of loading every dataset: `python -m benchmarks.data`.

Beside each stands how many times that is what training consumes: a step of GENESIS-V2 (K = 7, 64x64, batch
32) measured here, and 320 images per second, which is batch 32 at 10 steps a second, a fast model on one GPU.
Ratios above 1 mean that loading does not hold training back.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.train_step import make_step, timed, variants
from data_modules import MultiDSprites, ObjectsRoom, SceneDataModule
from data_modules.multi_dsprites import draw_scenes, paint_all
from data_modules.raw.tfrecord import read_blocks, read_examples
from data_modules.synthesis.sprites import RenderedSprites
from lightning_genesis.commands.prepare import datasets

DISTINCT = 500
FAST = 320.0
"""Images per second of a fast model on one GPU."""


def consumption(batch_size: int = 32) -> float:
    """Images per second of a training step in the fastest variant that is not compiled."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.rand(batch_size, 3, 64, 64, device=device)
    seconds = []
    for variant in variants(device):
        if variant.compile is None:
            step, _ = make_step(variant, device, 7, images)
            step()
            seconds.append(min(timed(step, device) for _ in range(3)))
    return batch_size / min(seconds)


def generation(count: int, num_threads: int) -> float:
    draws = draw_scenes({"train": count, "val": 1, "test": 1})["train"]
    start = time.perf_counter()
    for _ in paint_all(draws, RenderedSprites(), 64, num_threads):
        pass
    return count / (time.perf_counter() - start)


def loading(data: SceneDataModule, seconds: float) -> float:
    loader = data.train_dataloader()
    for _ in loader:
        pass
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for batch in loader:
            images += len(batch["image"])
    return images / (time.perf_counter() - start)


def preparing(root: Path, count: int) -> None:
    """ObjectsRoom: the drawn file once, then as often as it takes, as gzip streams one after another."""
    drawn = ObjectsRoom(root=str(root), synthetic=DISTINCT - 16)
    drawn.synthesise(root, {"train": DISTINCT, "val": 0, "test": 0}, seed=0)
    path = root / "raw" / drawn.file.name
    path.parent.mkdir()
    part = (root / drawn.file.name).read_bytes()
    path.write_bytes(part * (count // DISTINCT))
    count = count // DISTINCT * DISTINCT
    start = time.perf_counter()
    for _ in read_blocks(path):
        pass
    gunzip = time.perf_counter() - start
    start = time.perf_counter()
    for _ in read_examples(path):
        pass
    checked = time.perf_counter() - start
    start = time.perf_counter()
    ObjectsRoom(root=str(root), raw=str(path.parent)).prepare()
    taken = time.perf_counter() - start
    print(
        f"objects_room, {count:,} records: {count / taken:,.0f} records/s, {taken:.1f} s; unpacked twice (to "
        f"count and to convert): {2 * gunzip / taken:.0%} gunzip, {(checked - gunzip) / taken:.0%} checksums"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="Multi-dSprites to generate and load")
    parser.add_argument("--scenes", type=int, default=64, help="synthetic scenes of each other dataset")
    parser.add_argument("--records", type=int, default=20_000, help="records of ObjectsRoom to prepare")
    parser.add_argument("--seconds", type=float, default=3.0, help="time to load for")
    parser.add_argument("--only", nargs="*", help="names of datasets; default all")
    arguments = parser.parse_args()
    consumed = consumption()
    print(f"a training step consumes {consumed:,.1f} images/s here")
    for num_threads in (1, 2):
        print(f"generate, {num_threads} threads: {generation(arguments.images, num_threads):10,.0f} images/s")
    with tempfile.TemporaryDirectory() as root:
        preparing(Path(root), arguments.records)
    for name, kind in datasets().items():
        if name == "folder" or (arguments.only and name not in arguments.only):
            continue
        with tempfile.TemporaryDirectory() as root:
            for num_workers in (0, 2):
                sizes = {"synthetic": arguments.scenes}
                if kind is MultiDSprites:
                    sizes = {"train_size": arguments.images, "val_size": 1, "test_size": 1}
                data = kind(root=root, num_workers=num_workers, **sizes)
                start = time.perf_counter()
                data.prepare()
                taken = time.perf_counter() - start
                print(f"{name}, {'prepared' if num_workers == 0 else 'verified'}: {taken:.2f} s")
                speed = loading(data, arguments.seconds)
                print(
                    f"{name}, load, {num_workers} workers: {speed:,.0f} images/s, "
                    f"{speed / consumed:,.0f} times a training step, {speed / FAST:,.1f} times a fast one"
                )


if __name__ == "__main__":
    main()
