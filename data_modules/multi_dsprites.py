"""Multi-dSprites as in GENESIS: coloured sprites that cover each other on a coloured background."""

import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_modules.base import SceneDataModule, Split, StorePlan
from data_modules.store import Arrays, DataError
from data_modules.synthesis import sprites as dsprites

Variant = Literal["free", "unique"]
Background = Literal["coloured", "black"]
Palette = Literal["levels", "saturated"]
Colour = tuple[int, ...]

PUBLISHED_SIZES: dict[Split, int] = {"train": 50_000, "val": 10_000, "test": 10_000}
SCENES_AT_ONCE = 256


@dataclass(frozen=True)
class Draws:
    """What was drawn at random for `N` scenes of at most `M` sprites."""

    colours: NDArray[np.uint8]
    """Colour of the background, then of each sprite, `[N, 1 + M, 3]`."""
    num_sprites: NDArray[np.int64]
    """`[N]`."""
    sprites: NDArray[np.int64]
    """Flat dSprites index of each sprite, `[N, M]`; 0 beyond `num_sprites`."""

    def __len__(self) -> int:
        return len(self.num_sprites)

    def __getitem__(self, part: slice) -> "Draws":
        return Draws(self.colours[part], self.num_sprites[part], self.sprites[part])


def _colour_drawer(rng: random.Random, palette: Palette) -> Callable[[], Colour]:
    if palette == "saturated":
        hues = [colour for colour in product((0, 255), repeat=3) if any(colour)]
        return lambda: rng.choice(hues)
    levels = (0, 63, 127, 191, 255)
    return lambda: (rng.choice(levels), rng.choice(levels), rng.choice(levels))


def _draw_set(
    rng: random.Random, count: int, unique: bool, max_sprites: int, background: Background, palette: Palette
) -> Draws:
    """Draw one set in the published order: background, number of sprites, then index and colour of each."""
    draw_colour = _colour_drawer(rng, palette)
    colours = np.zeros((count, 1 + max_sprites, 3), np.uint8)
    num_sprites = np.zeros(count, np.int64)
    sprites = np.zeros((count, max_sprites), np.int64)
    for scene in range(count):
        used = [draw_colour() if background == "coloured" else (0, 0, 0)]
        chosen = []
        for _ in range(1 + rng.randrange(max_sprites)):
            chosen.append(rng.randrange(dsprites.NUM_SPRITES))
            colour = draw_colour()
            while unique and colour in used:
                colour = draw_colour()
            used.append(colour)
        colours[scene, : len(used)] = used
        sprites[scene, : len(chosen)] = chosen
        num_sprites[scene] = len(chosen)
    return Draws(colours, num_sprites, sprites)


def draw_scenes(
    sizes: dict[Split, int],
    variant: Variant = "free",
    max_sprites: int = 4,
    background: Background = "coloured",
    palette: Palette = "levels",
    published_sizes: dict[Split, int] | None = None,
) -> dict[Split, Draws]:
    """Draw all sets from one `random.Random(0)`, as GENESIS does.

    Train, validation and test with free colours come first, then the same three with unique colours, all from
    one stream. A set smaller than the published one is its beginning: what comes after it in the stream stays
    the same.

    Args:
        sizes: number of scenes per split.
        variant: whether colours within a scene are `free` or `unique`.
        max_sprites: each scene has 1 to this many sprites.
        background: drawn like a sprite's colour, or `black`.
        palette: `levels` draws each channel from {0, 63, 127, 191, 255}, `saturated` one of 7 pure colours.
        published_sizes: sizes of the published sets, default 50,000, 10,000 and 10,000.
    """
    rng = random.Random(0)
    drawn: dict[Split, Draws] = {}
    for unique in (False, True)[: 1 if variant == "free" else 2]:
        for split, published in (published_sizes or PUBLISHED_SIZES).items():
            draws = _draw_set(rng, max(published, sizes[split]), unique, max_sprites, background, palette)
            drawn[split] = draws[: sizes[split]]
    return drawn


def paint(draws: Draws, source: dsprites.SpriteSource, image_size: int = dsprites.FRAME) -> Arrays:
    """Paint scenes; later sprites cover earlier ones.

    Returns:
        `images`, uint8 `[N, H, W, 3]`, and `segmentations`, uint8 `[N, H, W]`: 0 is the background, the
        others are the 1-based order of the sprites. Other sizes than 64 are taken from it by nearest
        neighbour. `objects.<name>` `[N, M, ...]` as `factors` has them.
    """
    labels = np.zeros((len(draws), dsprites.FRAME, dsprites.FRAME), np.uint8)
    areas = np.zeros(draws.sprites.shape, np.int64)
    for order in range(draws.sprites.shape[1]):
        scenes = np.flatnonzero(draws.num_sprites > order)
        if not scenes.size:
            continue
        masks, top, left = source.masks(draws.sprites[scenes, order])
        scene, row, column = np.nonzero(masks)
        labels[scenes[scene], top[scene] + row, left[scene] + column] = order + 1
        areas[scenes, order] = masks.sum(axis=(1, 2))
    objects = factors(draws, areas, labels)
    if image_size != dsprites.FRAME:
        nearest = np.arange(image_size) * dsprites.FRAME // image_size
        labels = labels[:, nearest[:, None], nearest]
    images = draws.colours[np.arange(len(draws))[:, None, None], labels]
    return {"images": images, "segmentations": labels, **objects}


def factors(draws: Draws, areas: NDArray[np.int64], labels: NDArray[np.uint8]) -> Arrays:
    """What was drawn of every sprite, under the names of the published TFRecords where these have one.

    Args:
        draws: of `N` scenes of at most `M` sprites.
        areas: pixels of each sprite before others cover it, `[N, M]`.
        labels: ids of what is seen, `[N, 64, 64]`.

    Returns:
        `objects.<name>`, all 0 beyond `num_sprites`: `present` bool `[N, M]`; `shape` uint8, the place in
        `SHAPES` from 1; `color` float32 `[N, M, 3]` in [0, 1]; `x`, `y`, place in [0, 1] to the right and
        down (the centre is at `16 + 32 x` of 64 pixels); `scale`; `orientation`, radians; `visible`, the
        share of the sprite's pixels that no later sprite covers; these five float32 `[N, M]`; and `depth`
        uint8, 1 for the sprite that was painted last, rising towards the background.
    """
    order = np.arange(draws.sprites.shape[1])
    present = order < draws.num_sprites[:, None]
    shape, scale, orientation, x, y = np.moveaxis(dsprites.latents_from_index(draws.sprites), -1, 0)
    seen = np.stack([(labels == number + 1).sum(axis=(1, 2)) for number in order], axis=1)
    numbers = {
        "x": x / 31,
        "y": y / 31,
        "scale": np.asarray(dsprites.SCALES)[scale],
        "orientation": 2 * np.pi * orientation / 39,
        "visible": seen / np.maximum(areas, 1),
    }
    found: dict[str, NDArray[Any]] = {
        "present": present,
        "shape": np.where(present, shape + 1, 0).astype(np.uint8),
        "color": (draws.colours[:, 1:] / 255).astype(np.float32),
        **{name: np.where(present, values, 0).astype(np.float32) for name, values in numbers.items()},
        "depth": np.where(present, draws.num_sprites[:, None] - order, 0).astype(np.uint8),
    }
    return {f"objects.{name}": values for name, values in found.items()}


def paint_all(
    draws: Draws, source: dsprites.SpriteSource, image_size: int, num_threads: int
) -> Iterator[Arrays]:
    """Paint scenes in chunks, in order, whatever the number of threads (NumPy lets them run side by side)."""
    pending: deque[Future[Arrays]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for first in range(0, len(draws), SCENES_AT_ONCE):
            if len(pending) > num_threads:
                yield pending.popleft().result()
            pending.append(pool.submit(paint, draws[first : first + SCENES_AT_ONCE], source, image_size))
        while pending:
            yield pending.popleft().result()


class MultiDSprites(SceneDataModule):
    """Multi-dSprites, generated on first use: 1 to 4 coloured sprites on a coloured background.

    The draws are those of GENESIS (Engelcke et al., 2020): one `random.Random(0)` for all sets. With the
    published dSprites file as `sprites` the scenes are the paper's; without it the sprites are drawn by
    formula, and the data are equivalent in distribution, not identical: say so with results. Two settings
    never share a folder.

    Ids of `segmentation` are the order of painting: 0 background, `i` the sprite whose factors are
    `objects[...][i - 1]` (`present`, `shape`, `color`, `x`, `y`, `scale`, `orientation`, `visible`, `depth`;
    see `factors`). Stores made before these were kept have no `objects` and are read as they are.

    Two facts to know: 2 % of the scenes with free colours have a sprite of exactly the background's colour,
    invisible but labelled, and 0.5 % of all sprites are covered completely, so the ids of a scene
    can have gaps.

    Args:
        variant: `free` colours, or `unique` ones: no two of sprites and background are the same.
        sprites: `dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz`; None draws the sprites by formula.
        image_size: height and width; other sizes than 64 are taken from it by nearest neighbour.
        num_slots: the paper's K.
        train_size: number of training scenes; fewer than published are the first ones of the published set.
        val_size: number of validation scenes, likewise.
        test_size: number of test scenes, likewise.
        max_sprites: each scene has 1 to this many sprites.
        background: `coloured`, or `black` (an easier setting of ours).
        palette: `levels` draws each channel from {0, 63, 127, 191, 255}; `saturated` draws one of seven pure
            colours (an easier setting of ours, for quick experiments).
        options: the arguments of every data module, of `SceneDataModule`.

    Raises:
        DataError: if a setting is out of its range.
    """

    name = "multi_dsprites"
    has_objects = True

    def __init__(
        self,
        variant: Variant = "free",
        sprites: str | None = None,
        image_size: int = 64,
        num_slots: int = 5,
        train_size: int = PUBLISHED_SIZES["train"],
        val_size: int = PUBLISHED_SIZES["val"],
        test_size: int = PUBLISHED_SIZES["test"],
        max_sprites: int = 4,
        background: Background = "coloured",
        palette: Palette = "levels",
        **options: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            num_slots=num_slots,
            num_background=1,
            **options,
        )
        if image_size < 8:
            raise DataError(f"image_size: {image_size}, expected 8 or more; choose a larger one")
        if not 1 <= max_sprites <= 254:
            raise DataError(f"max_sprites: {max_sprites}, expected 1 to 254; choose another number")
        if variant == "unique" and max_sprites + 1 > (colours := 7 if palette == "saturated" else 125):
            raise DataError(
                f"max_sprites: {max_sprites} sprites of unique colours, expected at most {colours - 1} with "
                f"palette {palette}; choose fewer, or variant free"
            )
        self.train_size = train_size
        self.val_size = val_size
        self.test_size = test_size
        for split, size in self.sizes.items():
            if size < 1:
                raise DataError(f"{split}_size: {size}, expected 1 or more; choose a larger one")
        self.variant: Variant = variant
        self.sprites = sprites
        self.max_sprites = max_sprites
        self.background: Background = background
        self.palette: Palette = palette
        self._draws: dict[Split, Draws] | None = None

    @property
    def sizes(self) -> dict[Split, int]:
        """Number of scenes per split."""
        return {"train": self.train_size, "val": self.val_size, "test": self.test_size}

    def folder_name(self) -> str:
        """Name of the folder in `root`: the variant and whatever differs from the paper's settings."""
        drawn = {split: max(size, PUBLISHED_SIZES[split]) for split, size in self.sizes.items()}
        differing = {
            f"{self.image_size}px": self.image_size != dsprites.FRAME,
            "npz": self.sprites is not None,
            f"max{self.max_sprites}": self.max_sprites != 4,
            self.background: self.background != "coloured",
            self.palette: self.palette != "levels",
            # a larger set moves all that is drawn after it
            "drawn" + "_".join(str(size) for size in drawn.values()): drawn != PUBLISHED_SIZES,
        }
        return "-".join([self.name, self.variant, *(tag for tag, differs in differing.items() if differs)])

    def plan(self, split: Split) -> StorePlan:
        """How a split is generated."""
        size = self.sizes[split]
        place = split if size == PUBLISHED_SIZES[split] else f"{split}-{size}"
        folder = self.folder_name()
        source: dict[str, Any] = {
            "sprites": "drawn by formula: equivalent to the published data in distribution"
        }
        if self.sprites is not None:
            path = Path(self.sprites)
            source = {"sprites": path.name, "crc32": dsprites.npz_checksum(path)}
        return StorePlan(
            path=Path(self.root) / folder / place,
            count=size,
            record_bytes=4 * self.image_size**2 + self.max_sprites * (3 * 1 + 5 * 4 + 12),
            settings={
                "variant": self.variant,
                "sprites": "rendered" if self.sprites is None else "npz",
                "image_size": self.image_size,
                "size": size,
                "max_sprites": self.max_sprites,
                "background": self.background,
                "palette": self.palette,
                "differs_from_paper": folder.split("-")[2:] + ([] if place == split else [place]),
            },
            source=source,
            build=lambda: self._build(split),
        )

    def _build(self, split: Split) -> Iterator[Arrays]:
        if self._draws is None:
            self._draws = draw_scenes(
                self.sizes, self.variant, self.max_sprites, self.background, self.palette
            )
        draws = self._draws[split]
        source: dsprites.SpriteSource = dsprites.RenderedSprites()
        if self.sprites is not None:
            source = dsprites.NpzSprites(Path(self.sprites), draws.sprites)
        return paint_all(draws, source, self.image_size, num_threads=min(8, os.cpu_count() or 1))

    def prepare(self) -> None:
        """Generate what is missing (some seconds) and check the rest.

        Raises:
            DataError: if a store is damaged, the disk too small, or `sprites` not the dSprites file.
        """
        super().prepare()
        self._draws = None
