"""Images per second of generating and of loading Multi-dSprites: `python benchmarks/data.py`."""

import argparse
import tempfile
import time

from data_modules import MultiDSprites
from data_modules.multi_dsprites import draw_scenes, paint_all
from data_modules.synthesis.sprites import RenderedSprites


def generation(count: int, num_threads: int) -> float:
    draws = draw_scenes({"train": count, "val": 1, "test": 1})["train"]
    start = time.perf_counter()
    for _ in paint_all(draws, RenderedSprites(), 64, num_threads):
        pass
    return count / (time.perf_counter() - start)


def loading(data: MultiDSprites, seconds: float) -> float:
    loader = data.train_dataloader()
    for _ in loader:
        pass
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for batch in loader:
            images += len(batch["image"])
    return images / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="number of images to generate and load")
    parser.add_argument("--seconds", type=float, default=3.0, help="time to load for")
    arguments = parser.parse_args()
    for num_threads in (1, 2):
        print(f"generate, {num_threads} threads: {generation(arguments.images, num_threads):10,.0f} images/s")
    with tempfile.TemporaryDirectory() as root:
        sizes = {"train_size": arguments.images, "val_size": 1, "test_size": 1}
        for num_workers in (0, 2):
            data = MultiDSprites(root=root, num_workers=num_workers, **sizes)
            start = time.perf_counter()
            data.prepare()
            taken = time.perf_counter() - start
            print(f"prepare, {'made' if num_workers == 0 else 'verified'}: {taken:20.2f} s")
            print(f"load, {num_workers} workers:     {loading(data, arguments.seconds):10,.0f} images/s")


if __name__ == "__main__":
    main()
