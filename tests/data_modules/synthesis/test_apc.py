"""Synthetic APC: the published tree, and one object per scene but in the empty ones."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_modules.synthesis import apc


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apc")
    apc.write(folder, {"train": 2, "val": 1, "test": 1}, seed=3, views=2)
    return folder / "training"


def test_tree_is_as_published(tree: Path) -> None:
    found = sorted(str(path.relative_to(tree)) for path in tree.glob("*/*/scene-*"))
    assert found == sorted(apc.scenes(4))
    assert {path.name for path in tree.iterdir()} == {"shelf", "tote"}
    assert sum(name.endswith("scene-empty") for name in found) == 2
    for name in found:
        files = {str(path.relative_to(tree / name)) for path in (tree / name).rglob("*") if path.is_file()}
        expected = {"cam.info.txt"}
        for view in ("000000", "000001"):
            expected |= {f"frame-{view}.color.png", f"frame-{view}.depth.png"}
            if not name.endswith("empty"):
                expected.add(f"masks/frame-{view}.mask.png")
        assert files == expected
        assert (tree / name / "masks").exists() != name.endswith("empty")


def test_pictures_and_masks_are_what_was_drawn(tree: Path) -> None:
    for name in apc.scenes(4):
        for view in range(2):
            drawn = apc.draw(3, name, view)
            colour, depth, mask = (tree / name / path for path in apc.frame_names(view))
            with Image.open(colour) as picture:
                assert (picture.mode, picture.size) == ("RGB", (640, 480))
                np.testing.assert_array_equal(np.asarray(picture), drawn.image)
            with Image.open(depth) as picture:
                np.testing.assert_allclose(np.asarray(picture) / 10_000, drawn.depth, atol=6e-5)
            if name.endswith("empty"):
                assert not drawn.entities.any()
                continue
            with Image.open(mask) as picture:
                assert (picture.mode, picture.size) == ("L", (640, 480))
                np.testing.assert_array_equal(np.asarray(picture), 255 * drawn.entities)


def test_the_object_is_in_the_frame_and_in_the_square_in_its_middle() -> None:
    for name in [scene for scene in apc.scenes(900) if not scene.endswith("empty")][:780:31]:
        entities = apc.draw(0, name, 1).entities
        ys, xs = np.nonzero(entities)
        assert len(ys) > 800, name
        # the papers' crop keeps columns 80 to 559
        assert xs.min() >= 80, name
        assert xs.max() < 560, name
        assert ys.min() > 0, name
        assert ys.max() < 479, name


def test_scene_numbers_cover_objects_and_places() -> None:
    assert len(set(apc.scenes(500))) == 500
    many = apc.scenes(5000)
    assert len({scene.split("/")[1] for scene in many}) == len(apc.OBJECTS) == 39
    # one empty scene per object and place
    assert sum(scene.endswith("empty") for scene in many) == 78
    assert set(apc.scenes(40)) <= set(apc.scenes(59))


def test_views_and_scenes_differ_and_come_again() -> None:
    scene = apc.scenes(4)[2]
    pictures = [
        apc.draw(seed, scene, view).image.tobytes() for seed, view in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert pictures[0] == pictures[1]
    assert len(set(pictures)) == 3


def test_no_more_views_than_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apc, "HEIGHT", 24)
    monkeypatch.setattr(apc, "WIDTH", 32)
    apc.write(tmp_path, {"train": 2, "val": 0, "test": 0}, seed=0, views=99)
    assert len(list(tmp_path.rglob("shelf/*/*/*.color.png"))) == 15
    assert len(list(tmp_path.rglob("tote/*/*/*.color.png"))) == 18
