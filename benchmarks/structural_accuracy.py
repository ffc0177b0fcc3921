"""Calibrates the judgement of block towers, and measures it on others, with 95 % Wilson intervals.

Thresholds are looked for on one part of the towers and compared with those in `TowerRules`, which are then
measured on the other part: the share of correct towers that is accepted, and of flawed ones that is rejected.
Flawed are the same towers with blocks lifted, shifted apart or into each other: rendered again, and moved in
the picture. Every row comes twice, from exact masks and from rough ones, as a model decodes them: edges that
wander, specks, a background of two slots, a block of two slots.

    python benchmarks/structural_accuracy.py [--num_towers 500] [--calibrate 300]
    python benchmarks/structural_accuracy.py --data experiments/data/shapestacks.yaml   # real masks
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from data_modules.shapestacks import crop_image, crop_map
from data_modules.synthesis import shapestacks as synthesis
from lightning_genesis.metrics.structural_accuracy import TowerRules, Towers, judge_towers, wilson_interval
from lightning_genesis.runs.loading import build_data

SIDE = 64
MISPLACED: tuple[synthesis.Flaw, ...] = ("lifted", "apart", "overlapping")
"""What has to be rejected."""
HELD_OUT = 200_000
"""Number of the first scenario that is measured; those of the calibration start at 0."""
SLIGHT: dict[synthesis.Flaw, tuple[float, float]] = {"lifted": (0.3, 0.6), "overlapping": (0.3, 0.6)}
"""Flaws that are hard to see, shown but not asked for."""
GRID: dict[str, tuple[float, ...]] = {
    "gap": (0.0, 1 / 64, 2 / 64),
    "speck": (0.001, 0.002, 0.003, 0.005),
    "border": (0.04, 0.08, 0.12),
    "same_hue": (0.1, 0.2, 0.3, 0.4),
    "place": (-0.05, 0.0, 0.05, 0.1, 0.15),
    "margin": (-0.04, -0.03, -0.02, -0.01, 0.0, 0.01),
}


@dataclass(frozen=True)
class Picture:
    """A tower as one camera sees it; ids count the blocks from the lowest up, 0 is background."""

    ids: NDArray[np.uint8]
    image: NDArray[np.uint8]
    stable: bool
    from_above: bool


# ---------------------------------------------------------------- towers


def rendered(
    first: int, count: int, flaw: synthesis.Flaw | None = None, slight: bool = False
) -> list[Picture]:
    """Towers of our renderer, flawed or not; towers and cameras are the same for all flaws."""
    pictures = []
    for index in range(first, first + count):
        rng = np.random.default_rng(index)
        camera = int(rng.integers(1, synthesis.NUM_CAMERAS + 1))
        tower = synthesis.tower(0, index)
        stable = tower.stable
        if flaw is not None:
            amount = float(rng.uniform(*SLIGHT[flaw])) if slight else None
            tower = synthesis.flawed(tower, flaw, camera, rng, amount)
        seen = synthesis.look(tower, camera)
        image = crop_image(Image.fromarray(seen.image), SIDE)
        pictures.append(Picture(crop_map(seen.entities, SIDE), image, stable, camera > 12))
    return pictures


def from_data(path: Path, split: str, count: int) -> list[Picture]:
    """Pictures of a data section's split, evenly chosen."""
    data = build_data(yaml.safe_load(path.read_text()))
    data.prepare()
    dataset = data.dataset(split)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)).tolist()
    batch = dataset.__getitems__(chosen)
    labels = batch["labels"]
    return [
        Picture(ids.numpy(), image.movedim(0, -1).numpy(), int(unstable) == 0, int(view) > 12)
        for ids, image, unstable, view in zip(
            batch["segmentation"], batch["image"], labels["stability"], labels["view"], strict=True
        )
    ]


def moved(picture: Picture, flaw: synthesis.Flaw, rng: np.random.Generator) -> Picture:
    """A block and all above it moved in the picture, until 3 to 10 pixels are free, or into the one below."""
    present = np.unique(picture.ids[picture.ids > 0])
    if len(present) < 2:
        return picture
    number = int(rng.integers(1, len(present)))
    below, block = picture.ids == present[number - 1], picture.ids == present[number]
    part = picture.ids >= present[number]
    (rows, columns), (other_rows, other_columns) = np.nonzero(part), np.nonzero((picture.ids > 0) & ~part)
    free, side = int(rng.integers(3, 11)), int(rng.choice([-1, 1]))
    front = True
    if flaw == "lifted":
        shift = (other_rows.min() - rows.max() - 1 - free, 0)
    elif flaw == "apart":
        shift = (0, other_columns.max() - columns.min() + 1 + free)
        if side < 0:
            shift = (0, other_columns.min() - columns.max() - 1 - free)
    else:
        middles = [np.array([axis.mean() for axis in np.nonzero(mask)]) for mask in (below, block)]
        widths = [np.ptp(np.nonzero(mask)[1]) + 1 for mask in (below, block)]
        down, across = rng.uniform(*synthesis.FLAWS[flaw]), side * rng.uniform(0.5, 0.9) * np.mean(widths)
        rise, offset = middles[0] - middles[1]
        shift = (round(down * rise), round(offset + across))
        front = bool(rng.random() < 0.5)
    ids, image = np.where(part, 0, picture.ids), picture.image.copy()
    kept = (rows + shift[0] >= 0) & (rows + shift[0] < len(ids))
    kept &= (columns + shift[1] >= 0) & (columns + shift[1] < ids.shape[1])
    rows, columns = rows[kept], columns[kept]
    target = (rows + shift[0], columns + shift[1])
    painted = np.ones(len(rows), bool) if front else ids[target] == 0
    target = (target[0][painted], target[1][painted])
    source = (rows[painted], columns[painted])
    ids[target], image[target] = picture.ids[source], picture.image[source]
    return replace(picture, ids=ids, image=image)


def roughened(picture: Picture, rng: np.random.Generator) -> Picture:
    """Masks as a model might decode them, with slots in any order."""
    ids, (height, width) = picture.ids.astype(np.int64), picture.ids.shape
    grid = np.mgrid[:height, :width]
    # edges wander by a pixel or so; the picture stays
    wander = np.stack([ndimage.gaussian_filter(rng.standard_normal((height, width)), 1.5) for _ in range(2)])
    source = np.rint(grid + 3.2 * wander).astype(int)
    ids = ids[np.clip(source[0], 0, height - 1), np.clip(source[1], 0, width - 1)]
    horizon = rng.uniform(0.4, 0.6) * height + rng.uniform(-0.2, 0.2) * (grid[1] - width / 2)
    ids[(ids == 0) & (grid[0] > horizon)] = 10
    halved = ids == rng.integers(1, 7)
    if halved.any() and rng.random() < 0.5:
        across, along = rng.permutation(np.nonzero(halved), axis=0)
        line = across > np.median(across) + rng.uniform(-0.5, 0.5) * (along - np.median(along))
        ids[tuple(index[line] for index in np.nonzero(halved))] = 11
    for _ in range(rng.integers(2, 8)):
        row, column = rng.integers(height - 1), rng.integers(width - 1)
        ids[row : row + rng.integers(1, 3), column : column + rng.integers(1, 3)] = rng.integers(12)
    return replace(picture, ids=rng.permutation(12)[ids])


# ---------------------------------------------------------------- judgement


def judge(pictures: Iterable[Picture], rules: TowerRules) -> Towers:
    """The judgement of pictures."""
    listed = list(pictures)
    ids = torch.from_numpy(np.stack([picture.ids.astype(np.int64) for picture in listed]))
    images = torch.from_numpy(np.stack([picture.image for picture in listed]))
    return judge_towers(ids, images.movedim(-1, 1).float() / 255, rules)


def all_sets(pictures: list[Picture], others: dict[str, list[Picture]]) -> dict[str, list[Picture]]:
    """Correct and flawed towers by name, all of them with exact and with rough masks."""
    sets = {"correct": pictures, **others}
    for flaw in MISPLACED:
        rng = np.random.default_rng(len(flaw))
        sets[f"{flaw}, in the picture"] = [moved(picture, flaw, rng) for picture in pictures]
    rng = np.random.default_rng(1)
    rough = {f"{name} (rough)": [roughened(one, rng) for one in some] for name, some in sets.items()}
    return sets | rough


def worst_rate(sets: dict[str, list[Picture]], rules: TowerRules) -> float:
    """The smallest of all rates of acceptance and rejection."""
    rates = []
    for name, pictures in sets.items():
        accepted = judge(pictures, rules).correct.double().mean().item()
        rates.append(accepted if name.startswith("correct") else 1 - accepted)
    return min(rates)


def balanced_accuracy(sets: dict[str, list[Picture]], rules: TowerRules) -> float:
    """Of "supported" against the label, over correct towers."""
    truth = torch.tensor([picture.stable for picture in sets["correct"]])
    supported = judge(sets["correct"], rules).supported
    return 0.5 * (supported[truth].double().mean() + (~supported[~truth]).double().mean()).item()


def calibrate(sets: dict[str, list[Picture]]) -> Iterator[tuple[str, dict[float, float]]]:
    """Rates by value for each threshold, the others as they are in `TowerRules`."""
    for name, values in GRID.items():
        rate: Callable[..., float] = balanced_accuracy if name == "margin" else worst_rate
        yield name, {value: rate(sets, replace(TowerRules(), **{name: value})) for value in values}


# ---------------------------------------------------------------- output


def row(name: str, hits: torch.Tensor, above: torch.Tensor | None = None) -> str:
    """A row of the table; with `above` also the shares for cameras 1 to 12 and for 13 to 16."""
    low, high = wilson_interval(int(hits.sum()), len(hits))
    parts = [] if above is None else [hits[~above], hits[above]]
    apart = "".join(f"{100 * part.double().mean():7.1f}" for part in parts)
    return (
        f"{name:44s}{100 * hits.double().mean():6.1f}  [{100 * low:.1f}, {100 * high:.1f}]  n = {len(hits)}"
        f"{apart}"
    )


def main() -> None:
    """Calibrate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--num_towers", type=int, default=500, help="measured")
    parser.add_argument(
        "--calibrate", type=int, default=300, help="towers of the calibration; 0 leaves it out"
    )
    parser.add_argument("--data", type=Path, help="a data section with masks of towers, such as ShapeStacks'")
    arguments = parser.parse_args()
    start = time.perf_counter()

    def load(held_out: bool, count: int) -> dict[str, list[Picture]]:
        if arguments.data is not None:
            return all_sets(from_data(arguments.data, "test" if held_out else "val", count), {})
        first = HELD_OUT if held_out else 0
        flawed = {f"{flaw}, rendered": rendered(first, count, flaw) for flaw in MISPLACED}
        return all_sets(rendered(first, count), flawed)

    if arguments.calibrate:
        print(f"calibration on {arguments.calibrate} towers: smallest rate by threshold; * is in use")
        for name, rates in calibrate(load(False, arguments.calibrate)):
            used = getattr(TowerRules(), name)
            shown = [f"{v:.3g}{'*' if np.isclose(v, used) else ''}: {rate:.3f}" for v, rate in rates.items()]
            print(f"  {name:9s}{', '.join(shown)}")
    rules, sets = TowerRules(), load(True, arguments.num_towers)
    print(f"\nheld out; {rules}")
    print(f"{'':40s}accepted %  [95 % Wilson]; cameras 1 to 12; 13 to 16")
    above = torch.tensor([picture.from_above for picture in sets["correct"]])
    for name, pictures in sets.items():
        if name.startswith("correct"):
            print(row(name, judge(pictures, rules).correct, above))
    print(f"{'':40s}rejected %")
    for name, pictures in sets.items():
        if not name.startswith("correct"):
            print(row(name, ~judge(pictures, rules).correct, above))

    towers = judge(sets["correct"], rules)
    stable = torch.tensor([picture.stable for picture in sets["correct"]])
    print("\nnot asked for")
    print(row("stable towers: supported", towers.supported[stable]))
    print(row("unstable towers: not supported", ~towers.supported[~stable]))
    if arguments.data is None:
        tipping = [one for one in rendered(HELD_OUT, arguments.num_towers, "tipping") if one.stable]
        print(row("stable towers made to tip: not supported", ~judge(tipping, rules).supported))
        for flaw, amounts in SLIGHT.items():
            slight = judge(rendered(HELD_OUT, arguments.num_towers, flaw, slight=True), rules)
            print(row(f"{flaw} by {amounts[0]} to {amounts[1]}: rejected", ~slight.correct))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
