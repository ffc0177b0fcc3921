"""Multi-dSprites: draws against an independent reimplementation, painting against a plain loop."""

import hashlib
import random
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_modules import DataError, MultiDSprites
from data_modules.base import SPLITS, Split
from data_modules.multi_dsprites import Draws, draw_scenes, paint, paint_all
from data_modules.store import Store
from data_modules.store_writer import write_store
from data_modules.synthesis import sprites
from data_modules.synthesis.sprites import RenderedSprites
from tests.data_modules.test_sprites import frames

SIZES = {"train": 40, "val": 20, "test": 20}
LEVELS = [0, 63, 127, 191, 255]


def published_draws() -> list[list[tuple]]:
    """The published order of draws, written down once more: six sets of scenes (background, sprites)."""
    rng = random.Random(0)

    def colour() -> tuple[int, ...]:
        return tuple(LEVELS[rng.randint(0, 4)] for _ in range(3))

    sets = []
    for unique in (False, True):
        for count in (40, 20, 20):
            scenes = []
            for _ in range(count):
                background, objects = colour(), []
                for _ in range(rng.randint(1, 4)):
                    index = rng.randint(0, 737279)
                    own = colour()
                    if unique:
                        while own == background or own in [other for _, other in objects]:
                            own = colour()
                    objects.append((index, own))
                scenes.append((background, objects))
            sets.append(scenes)
    return sets


@pytest.mark.parametrize("variant", ["free", "unique"])
def test_draws_follow_the_published_order(variant: str) -> None:
    drawn = draw_scenes(SIZES, variant, published_sizes=SIZES)
    sets = published_draws()[:3] if variant == "free" else published_draws()[3:]
    for draws, scenes in zip(drawn.values(), sets, strict=True):
        assert len(draws) == len(scenes)
        for i, (background, objects) in enumerate(scenes):
            assert draws.num_sprites[i] == len(objects)
            assert tuple(draws.colours[i, 0]) == background
            assert draws.sprites[i, : len(objects)].tolist() == [index for index, _ in objects]
            assert [tuple(c) for c in draws.colours[i, 1 : 1 + len(objects)]] == [own for _, own in objects]


def test_smaller_sets_begin_the_larger_ones() -> None:
    whole = draw_scenes(SIZES, "unique", published_sizes=SIZES)
    part = draw_scenes({"train": 3, "val": 2, "test": 1}, "unique", published_sizes=SIZES)
    for split, size in (("train", 3), ("val", 2), ("test", 1)):
        np.testing.assert_array_equal(part[split].sprites, whole[split].sprites[:size])
        np.testing.assert_array_equal(part[split].colours, whole[split].colours[:size])


def test_statistics_of_the_published_sets() -> None:
    draws = draw_scenes({"train": 50_000, "val": 10_000, "test": 10_000})["train"]
    np.testing.assert_allclose(np.bincount(draws.num_sprites)[1:] / 50_000, 0.25, atol=0.01)
    present = np.arange(4) < draws.num_sprites[:, None]
    same = (draws.colours[:, 1:] == draws.colours[:, :1]).all(-1) & present
    assert same.any(1).mean() == pytest.approx(0.02, abs=0.003)
    assert set(np.unique(draws.colours[:, 0])) == set(LEVELS)


def test_painting_covers_in_order() -> None:
    draws = draw_scenes(SIZES, published_sizes=SIZES)["train"]
    painted = paint(draws, RenderedSprites())
    hidden = 0
    for i in range(len(draws)):
        image = np.empty((64, 64, 3), np.uint8)
        image[:] = draws.colours[i, 0]
        labels = np.zeros((64, 64), np.uint8)
        for order in range(draws.num_sprites[i]):
            mask = frames(draws.sprites[i, order : order + 1])[0]
            hidden += int((labels[mask] > 0).sum())
            image[mask], labels[mask] = draws.colours[i, order + 1], order + 1
        np.testing.assert_array_equal(painted["images"][i], image)
        np.testing.assert_array_equal(painted["segmentations"][i], labels)
    assert hidden > 0, "no occlusion in the sample: the test shows nothing"


def test_factors_paint_the_same_scene() -> None:
    """From what the store has of its objects, and the background's colour, every image can be made again."""
    sizes: dict[Split, int] = {"train": 200, "val": 1, "test": 1}
    draws = draw_scenes(sizes, max_sprites=6, published_sizes=sizes)["train"]
    painted = paint(draws, RenderedSprites())
    objects = {name.removeprefix("objects."): v for name, v in painted.items() if name.startswith("objects.")}
    names = {"present", "shape", "color", "x", "y", "scale", "orientation", "visible", "depth"}
    assert objects.keys() == names
    whole = dict.fromkeys(("present",), "bool") | dict.fromkeys(("shape", "depth"), "uint8")
    for name, values in objects.items():
        assert values.dtype == whole.get(name, "float32")
        assert values.shape == (200, 6, 3) if name == "color" else (200, 6)
        assert not values[~objects["present"]].any(), name
    covered = 0
    for i in range(200):
        image, labels = np.empty((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
        image[:] = draws.colours[i, 0]
        present = np.flatnonzero(objects["present"][i])
        # from the back to the front
        order = present[np.argsort(-objects["depth"][i, present].astype(int))]
        assert sorted(objects["depth"][i, present]) == list(range(1, len(present) + 1))
        areas = {}
        for number in order:
            one = {name: values[i, number : number + 1] for name, values in objects.items()}
            shape = one["shape"].astype(np.int64) - 1
            x, y = 16 + 32 * one["x"].astype(float), 16 + 32 * one["y"].astype(float)
            sprite = sprites.render(
                shape, one["scale"].astype(float).round(1), one["orientation"].astype(float), x, y
            )
            rows, columns = np.nonzero(sprite.masks[0])
            place = rows + sprite.top[0], columns + sprite.left[0]
            image[place], labels[place] = np.rint(one["color"][0] * 255), 1 + number
            areas[number] = len(rows)
        # a float32 place moves pixels whose centres lie on an outline
        assert (labels != painted["segmentations"][i]).sum() <= 4
        assert (image != painted["images"][i]).any(-1).sum() <= 4
        for number, area in areas.items():
            share = (painted["segmentations"][i] == number + 1).sum() / area
            assert objects["visible"][i, number] == pytest.approx(share, abs=4 / area)
            covered += share < 0.5
    assert covered > 10, "hardly any occlusion in the sample: the test shows little"


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ({}, 64, "5f891fd0c9e861ea"),
        ({"variant": "unique"}, 64, "1351efc4b671cd3e"),
        ({"max_sprites": 3, "background": "black", "palette": "saturated"}, 32, "6ca3eb10f54edc91"),
    ],
)
def test_the_same_images_as_ever(settings: dict[str, Any], size: int, expected: str) -> None:
    """Digests of version 0.1.0, before factors were kept: no run may find other images in the same place."""
    images = paint(draw_scenes(SIZES, published_sizes=SIZES, **settings)["train"], RenderedSprites(), size)
    assert hashlib.sha256(images["images"].tobytes()).hexdigest()[:16] == expected


def test_a_store_without_factors_is_read_as_it_is(tmp_path: Path) -> None:
    """As earlier versions wrote them: the images of a run are never asked to be made again."""
    older, data = tmp_path / "older", small(tmp_path)
    without_objects(data, older)
    found = small(older)
    found.prepare()
    batch, expected = (d.examples("train", 8) for d in (found, data))
    assert batch.keys() == {"image", "index", "segmentation"}
    assert torch.equal(batch["image"], expected["image"])
    assert expected["objects"]["present"].shape == (8, 4)


def test_other_sizes_are_nearest_neighbours() -> None:
    draws = draw_scenes(SIZES, published_sizes=SIZES)["val"]
    at_64 = paint(draws, RenderedSprites())
    for size, rows in ((32, np.arange(0, 64, 2)), (128, np.repeat(np.arange(64), 2))):
        other = paint(draws, RenderedSprites(), size)
        for name in ("images", "segmentations"):
            np.testing.assert_array_equal(other[name], at_64[name][:, rows][:, :, rows])


def test_number_of_threads_changes_nothing() -> None:
    draws = draw_scenes({"train": 1000, "val": 1, "test": 1}, published_sizes=SIZES)["train"]
    runs = [list(paint_all(draws, RenderedSprites(), 64, num_threads)) for num_threads in (1, 2)]
    for one, two in zip(*runs, strict=True):
        assert one["images"].tobytes() == two["images"].tobytes()
        assert one["segmentations"].tobytes() == two["segmentations"].tobytes()
    assert sum(len(chunk["images"]) for chunk in runs[0]) == 1000


def small(root: Path, **settings: object) -> MultiDSprites:
    sizes = {"train_size": 24, "val_size": 8, "test_size": 8}
    return MultiDSprites(root=str(root), **(sizes | settings))  # type: ignore[arg-type]


def without_objects(data: MultiDSprites, root: Path) -> None:
    """Prepares data, and writes them to another root as versions without factors did."""
    data.prepare()
    for split in SPLITS:
        plan = data.plan(split)
        arrays = Store.open(plan.path).arrays
        kept = {name: values for name, values in arrays.items() if not name.startswith("objects.")}
        path = root / plan.path.relative_to(data.root)
        about = {"name": data.name, "split": split, "settings": plan.settings, "source": plan.source}
        write_store(path, iter([kept]), **about)  # type: ignore[arg-type]


def test_prepares_once_and_gives_batches(tmp_path: Path) -> None:
    data = small(tmp_path, batch_size=8)
    assert not list(tmp_path.iterdir()), "the constructor must not touch the disk"
    data.prepare()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(written) == 3 * (2 + 9)
    data.prepare()
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert not list(tmp_path.rglob(".*"))
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape == (8, 3, 64, 64)
    assert batch["segmentation"].shape == (8, 64, 64)
    assert batch["index"].tolist() == list(range(8))
    draws = draw_scenes(data.sizes)["test"]
    expected = paint(draws, RenderedSprites())
    np.testing.assert_array_equal(batch["image"].permute(0, 2, 3, 1).numpy(), expected["images"])
    np.testing.assert_array_equal(batch["segmentation"].numpy(), expected["segmentations"])


def test_unique_colours(tmp_path: Path) -> None:
    data = small(tmp_path, variant="unique", palette="saturated", background="black", max_sprites=5)
    data.prepare()
    store = Store.open(data.plan("train").path)
    images, labels = store.arrays["images"], store.arrays["segmentations"]
    assert labels.max() == 5
    for image, label in zip(images, labels, strict=True):
        colours = {tuple(image[label == k][0]) for k in np.unique(label)}
        assert len(colours) == len(np.unique(label))
        assert not image[label == 0].any()
    assert set(np.unique(images)) <= {0, 255}
    assert store.manifest["settings"]["differs_from_paper"] == ["max5", "black", "saturated", "train-24"]


def test_no_two_settings_share_a_folder() -> None:
    settings: list[dict[str, object]] = [
        {},
        {"variant": "unique"},
        {"image_size": 32},
        {"sprites": "x.npz"},
        {"max_sprites": 3},
        {"background": "black"},
        {"palette": "saturated"},
        {"train_size": 60_000},
        {"val_size": 60_000},
        {"train_size": 100},
    ]
    paths = {MultiDSprites(**setting).plan("train").path for setting in settings}  # type: ignore[arg-type]
    assert len(paths) == len(settings)
    assert Path("data/multi_dsprites-free/train") in paths
    # a larger training set moves the draws of the others
    assert MultiDSprites(train_size=60_000).plan("test").path != MultiDSprites().plan("test").path


def test_published_sprites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "NUM_SPRITES", 3000)
    path = tmp_path / "dsprites.npz"
    np.savez_compressed(path, imgs=frames(np.arange(3000)).astype(np.uint8))
    published, drawn = small(tmp_path, sprites=str(path)), small(tmp_path)
    published.prepare()
    drawn.prepare()
    a, b = (Store.open(data.plan("train").path) for data in (published, drawn))
    np.testing.assert_array_equal(a.arrays["images"], b.arrays["images"])
    assert a.manifest["source"] == {"sprites": "dsprites.npz", "crc32": sprites.npz_checksum(path)}
    assert "equivalent" in b.manifest["source"]["sprites"]
    # the store is enough: the file may be gone
    path.unlink()
    published.prepare()
    small(tmp_path, sprites=str(path)).setup("fit")


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"image_size": 4}, "image_size: 4, expected 8"),
        ({"max_sprites": 0}, "max_sprites: 0"),
        ({"val_size": 0}, "val_size: 0"),
        ({"variant": "unique", "palette": "saturated", "max_sprites": 7}, "at most 6"),
        ({"batch_size": 0}, "batch_size: 0"),
    ],
)
def test_settings_out_of_range(setting: dict[str, object], part: str) -> None:
    with pytest.raises(DataError, match=part):
        MultiDSprites(**setting)  # type: ignore[arg-type]


def test_missing_data_name_the_command(tmp_path: Path) -> None:
    data = small(tmp_path, variant="unique")
    with pytest.raises(DataError) as caught:
        data.setup("fit")
    command = (
        f"lightning-genesis prepare multi_dsprites --root {shlex.quote(str(tmp_path))} --variant unique "
        "--train_size 24 --val_size 8 --test_size 8"
    )
    assert command in str(caught.value)


def test_draws_can_be_cut() -> None:
    draws = Draws(np.zeros((5, 3, 3), np.uint8), np.arange(5), np.zeros((5, 2), np.int64))
    assert draws[1:3].num_sprites.tolist() == [1, 2]
