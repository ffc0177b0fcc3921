"""Synthetic ShapeStacks: layout and coding as published, labels against a second look at the towers."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_modules.shapestacks import crop_map
from data_modules.synthesis import shapestacks
from data_modules.synthesis.scene3d import Light, Plane, Solid, World, render, turn_x, turn_z
from data_modules.synthesis.shapestacks import Block, Tower
from tests.data_modules.synthesis.checks import around, hues

NAME = re.compile(r"env_(blocks|ccs)-(easy|hard)-h=([2-6])-vcom=(\d)-vpsf=(\d)-v=(\d+)")
GRID = np.stack(np.meshgrid(*[np.linspace(-3, 3, 401)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)


def cloud(block: Block, rng: np.random.Generator) -> np.ndarray:
    """Points spread evenly through a block, as many as it has volume, `[n, 3]`."""
    points = rng.uniform(-1, 1, (3000, 3))
    if block.kind == "cylinder":
        points = points[np.hypot(points[:, 0], points[:, 1]) <= 1]
    elif block.kind == "sphere":
        points = points[(points**2).sum(axis=1) <= 1]
    points = points * block.half_size
    cos, sin = np.cos(block.angle), np.sin(block.angle)
    x, y = points[:, 0] * cos - points[:, 1] * sin, points[:, 0] * sin + points[:, 1] * cos
    return np.stack([x, y, points[:, 2]], axis=1) + block.centre


def outline(block: Block) -> np.ndarray:
    """Which points of the grid lie below the block, `[n]`."""
    dx, dy = (GRID - block.centre[:2]).T
    if block.kind != "box":
        return np.hypot(dx, dy) <= block.half_size[0]
    cos, sin = np.cos(block.angle), np.sin(block.angle)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    return (np.abs(u) <= block.half_size[0]) & (np.abs(v) <= block.half_size[1])


def violations(tower: Tower) -> tuple[int, int]:
    """Index of the first block beside which the mass above it has its centre, and of the first round one.

    By brute force: mass as points, contact as cells of a grid; supported is what has contact on all sides.
    """
    rng = np.random.default_rng(0)
    com = surface = 0
    for number in range(1, len(tower.blocks)):
        below, above = tower.blocks[number - 1], tower.blocks[number]
        sampled = []
        for block in tower.blocks[number:]:
            points = cloud(block, rng)
            share = block.half_size[0] * block.half_size[1] * block.half_size[2]
            # the cube around all kinds is sampled alike, so points per cube are the mass per cube
            sampled.append((points.mean(axis=0)[:2], share * len(points)))
        weights = np.array([weight for _, weight in sampled])
        mass = (weights[:, None] * np.array([middle for middle, _ in sampled])).sum(axis=0) / weights.sum()
        contact = GRID[outline(below) & outline(above)]
        assert len(contact), "a block hangs in the air"
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        supported = ((contact @ directions.T).max(axis=0) >= mass @ directions.T).all()
        if not supported and com == 0:
            com = number
        if below.kind == "sphere" and surface == 0:
            surface = number
    return com, surface


def test_labels_agree_with_a_brute_force_look_at_the_masses() -> None:
    found = []
    for index in range(120):
        tower = shapestacks.tower(0, index)
        assert violations(tower) == (tower.com_violation, tower.surface_violation), tower.name
        found.append((tower.com_violation > 0, tower.surface_violation > 0))
    com, surface = np.array(found).sum(axis=0)
    assert com > 10
    assert surface > 10
    # about half of them stand
    assert 40 < com + surface < 80
    assert not (np.array(found).all(axis=1)).any()


def test_blocks_stand_on_each_other_and_their_names_say_what_they_are() -> None:
    heights = []
    for index in range(60):
        tower = shapestacks.tower(1, index)
        kind, level, height, com, surface, number = NAME.fullmatch(tower.name).groups()  # type: ignore[union-attr]
        assert (int(height), int(com), int(surface), int(number)) == (
            len(tower.blocks),
            tower.com_violation,
            tower.surface_violation,
            index,
        )
        heights.append(len(tower.blocks))
        assert tower.stable == (com == surface == "0")
        assert kind == "ccs" or {block.kind for block in tower.blocks} == {"box"}
        assert level in ("easy", "hard")
        bottom = 0.0
        for block in tower.blocks:
            assert block.centre[2] - block.half_size[2] == pytest.approx(bottom)
            bottom = block.centre[2] + block.half_size[2]
    assert set(heights) == {2, 3, 4, 5, 6}


@pytest.fixture(scope="module", params=["recordings", "iseg"])
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("shapestacks")
    shapestacks.write(folder, {"train": 3, "val": 2, "test": 1}, seed=2, layout=request.param)
    return folder, request.param


def test_tree_is_as_published(tree: tuple[Path, str]) -> None:
    folder, layout = tree
    names = [shapestacks.tower(2, index).name for index in range(6)]
    read = {p.stem: p.read_text() for p in (folder / "splits" / "default").iterdir()}
    assert read == {
        "train": "".join(f"{name}\n" for name in names[:3]),
        "eval": "".join(f"{name}\n" for name in names[3:5]),
        "test": f"{names[5]}\n",
    }
    for subset, kind in (("blocks_all", "blocks"), ("ccs_all", "ccs")):
        lines = (folder / "splits" / subset / "train.txt").read_text().split()
        assert lines == [name for name in names[:3] if f"_{kind}-" in name]
    assert sorted(p.name for p in (folder / "meta").iterdir()) == [
        "blacklist_stable.txt",
        "blacklist_unstable.txt",
    ]
    assert sorted(p.name for p in (folder / "recordings").iterdir()) == sorted(names)
    assert not list(folder.rglob("*.partial*"))
    for name in names:
        pictures = sorted((folder / "recordings" / name).glob("rgb-*-mono-0.png"))
        # the camera is the sixth field
        assert sorted(int(p.name.split("-")[5].removeprefix("cam_")) for p in pictures) == list(range(1, 17))
        maps = sorted(p.name for p in (folder / layout / name).glob("*.map"))
        assert maps == sorted(f"iseg-w=0-f=0-l=0-c=original-cam_{n}-mono-0.map" for n in range(1, 17))


def test_pictures_and_maps_are_coded_as_published_and_as_drawn(tree: tuple[Path, str]) -> None:
    folder, layout = tree
    for index in (0, 4):
        tower = shapestacks.tower(2, index)
        for camera in (1, 8, 13, 16):
            drawn = shapestacks.draw(2, index, camera)
            with Image.open(folder / "recordings" / tower.name / tower.frame_name(camera)) as picture:
                assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (224, 224))
                np.testing.assert_array_equal(np.asarray(picture), drawn.image)
            with Image.open(folder / layout / tower.name / shapestacks.map_name(camera)) as coded:
                assert (coded.format, coded.mode, coded.size) == ("PNG", "RGBA", (224, 224))
                values = np.asarray(coded)
            assert (values[..., 3] == 255).all()
            for channel in range(3):
                np.testing.assert_array_equal(values[..., channel], 32 * drawn.entities)


PURE = {(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1)}


def test_sizes_colours_and_places_are_the_publishers() -> None:
    """Edges of 0.5 to 1, six pure colours that differ in a tower, the whole tower within 2 of the middle."""
    towers = [shapestacks.tower(3, index) for index in range(300)]
    edges = 2 * np.array([block.half_size for tower in towers for block in tower.blocks])
    places = np.array([tower.blocks[0].centre[:2] for tower in towers])
    for values, low, high in ((edges, 0.5, 1.0), (places, -2.0, 2.0)):
        assert low <= values.min() < low + 0.05
        assert high - 0.05 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.15)
    assert {colour for tower in towers for colour in tower.colours} == PURE
    for tower in towers:
        assert len(set(tower.colours)) == len(tower.colours) == len(tower.blocks)
        for block in tower.blocks:
            x, y, z = block.half_size
            assert block.kind == "box" or x == y
            assert block.kind != "sphere" or x == z
    boxes = [block.half_size for tower in towers for block in tower.blocks if block.kind == "box"]
    assert all(len(set(sizes)) == 3 for sizes in boxes)


def test_a_mass_is_over_the_middle_or_just_outside() -> None:
    """At most half a half edge off the middle, or 0.05 beyond the edge, along the block's own edges."""
    largest, outside = 0.0, []
    for index in range(200):
        tower = shapestacks.tower(4, index)
        for number in range(1, len(tower.blocks)):
            below = tower.blocks[number - 1]
            volumes = [block.volume for block in tower.blocks[number:]]
            mass = np.average([block.centre[:2] for block in tower.blocks[number:]], axis=0, weights=volumes)
            cos, sin = np.cos(below.angle), np.sin(below.angle)
            off = np.abs(np.array([[cos, sin], [-sin, cos]]) @ (mass - below.centre[:2]))
            shares = off / below.half_size[:2]
            if number != tower.com_violation:
                largest = max(largest, shares.max())
            elif below.kind == "box":
                outside.append((off - below.half_size[:2]).max())
            else:
                outside.append(np.hypot(*off) - below.half_size[0])
    assert 0.48 < largest <= 0.5 + 1e-9
    assert len(outside) > 20
    assert outside == pytest.approx([0.05] * len(outside))


def test_blocks_are_as_large_as_the_publishers_and_next_to_none_is_hidden() -> None:
    """About 54 pixels a block at 64 x 64, by the publisher's maps."""
    pixels, cut = [], 0
    for index in range(40):
        tower = shapestacks.tower(5, index)
        drawn = shapestacks.draw(5, index, 1 + index % 16).entities
        seen = np.bincount(crop_map(drawn, 64).ravel(), minlength=7)[1:]
        pixels += seen[: len(tower.blocks)].tolist()
        assert not seen[len(tower.blocks) :].any()
        cut += (drawn > 0).sum() != (drawn[14:210, 14:210] > 0).sum()
    assert np.mean(pixels) == pytest.approx(54, abs=6)
    assert np.mean(np.array(pixels) == 0) < 0.03
    assert cut <= 6


def test_a_published_world_is_where_the_publishers_picture_shows_it() -> None:
    """The lowest block of an example in the manual: the tower ends in row 164, within columns 75 to 103."""
    cylinder = Solid("cylinder", (-0.168, 1.1185, 0.3874), (0.3603, 0.3603, 0.3874), (1.0, 0.0, 0.0), 1)
    floor = Plane((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.5), 0)
    world = World([cylinder], [floor], Light((0.0, 0.0, 1.0)))
    rows, columns = np.nonzero(render(world, shapestacks.camera_number(1)).entities)
    assert rows.max() == pytest.approx(164, abs=1)
    assert 75 <= columns.min() <= columns.max() <= 103


def test_pixels_have_their_blocks_hue() -> None:
    for index in range(6):
        tower, drawn = shapestacks.tower(6, index), shapestacks.draw(6, index, 1 + index)
        for number, colour in enumerate(tower.colours, 1):
            expected = float(hues(np.array([colour]) * 255)[0])
            assert around(hues(drawn.image[drawn.entities == number]), expected).max() < 0.03


CAMERAS = """
1 (-7,-7,5) -45; 2 (-9,-2,5) -75; 3 (-2,-9,5) -15; 4 (-7,7,5) 225; 5 (-9,2,5) 255; 6 (-2,9,5) 195;
7 (7,7,5) 135; 8 (9,2,5) 105; 9 (2,9,5) 165; 10 (7,-7,5) 45; 11 (9,-2,5) 75; 12 (2,-9,5) 15; 13 (-5,-5,9) -45;
14 (-5,5,9) 225; 15 (5,5,9) 135; 16 (5,-5,9) 45"""
"""Number, place and turn, as the publisher's manual has them."""


def test_the_cameras_are_the_publishers() -> None:
    """A simulator's camera looks down z: raised to the level, tipped, then turned about the vertical."""
    found = re.findall(r"(\d+) \((-?\d),(-?\d),(\d)\) (-?\d+)", CAMERAS)
    assert len(found) == 16
    for number, *place, turn in found:
        camera = shapestacks.camera_number(int(number))
        assert camera.position == tuple(map(float, place))
        assert (camera.field_of_view, camera.height, camera.width) == (45.0, 224, 224)
        raised = np.radians(90 - (15 if int(number) <= 12 else 45))
        axes = turn_z(np.radians(float(turn))) @ turn_x(raised)
        right, down, ahead = camera.axes
        assert np.allclose([right, -down, -ahead], axes.T, atol=1e-12)


def test_scenes_depend_on_seed_and_index_alone() -> None:
    assert shapestacks.tower(0, 3) == shapestacks.tower(0, 3)
    assert shapestacks.tower(0, 3) != shapestacks.tower(1, 3)
    assert shapestacks.draw(0, 3, 2).image.tobytes() == shapestacks.draw(0, 3, 2).image.tobytes()


def moved_part(tower: Tower, other: Tower) -> tuple[int, np.ndarray]:
    """Number of the first block that moved, and by how much it and all above it did."""
    shifts = np.array([b.centre for b in other.blocks]) - [a.centre for a in tower.blocks]
    first = int((np.abs(shifts).max(axis=1) > 1e-12).argmax())
    assert first > 0
    assert np.abs(shifts[:first]).max() == 0
    assert np.allclose(shifts[first:], shifts[first], atol=1e-12)
    return first, shifts[first]


@pytest.mark.parametrize("flaw", shapestacks.FLAWS)
def test_flawed_towers(flaw: shapestacks.Flaw) -> None:
    """Corners and points of the blocks, not the formulas that moved them."""
    for index in range(12):
        rng = np.random.default_rng(index)
        tower, camera = shapestacks.tower(0, index), 1 + index
        amount = shapestacks.FLAWS[flaw][index % 2]
        other = shapestacks.flawed(tower, flaw, camera, rng, amount)
        number, shift = moved_part(tower, other)
        below, above = (cloud(block, rng) for block in other.blocks[number - 1 : number + 1])
        right = shapestacks.camera_number(camera).axes[0]
        left_to_right = [points @ right for points in (below, above)]
        if flaw == "lifted":
            assert shift == pytest.approx([0, 0, amount])
        elif flaw == "apart":
            gaps = [left_to_right[i].min() - left_to_right[1 - i].max() for i in (0, 1)]
            assert max(gaps) == pytest.approx(amount, abs=0.12)  # points do not reach the corners
            assert shift[2] == 0
        elif flaw == "overlapping":
            heights = [other.blocks[i].half_size[2] for i in (number - 1, number)]
            rise = other.blocks[number].centre[2] - other.blocks[number - 1].centre[2]
            assert rise == pytest.approx((1 - amount) * sum(heights), abs=1e-9)
            assert left_to_right[0].min() < left_to_right[1].max()
            assert left_to_right[1].min() < left_to_right[0].max()
        else:
            middles = [(cloud(block, rng) @ right).mean() for block in other.blocks[number:]]
            mass = np.average(middles, weights=[block.volume for block in other.blocks[number:]])
            beside = max(left_to_right[0].min() - mass, mass - left_to_right[0].max())
            assert beside == pytest.approx(amount, abs=0.12)
            assert shift[2] == 0


def test_a_flaw_is_drawn_from_the_generator() -> None:
    tower = shapestacks.tower(0, 3)
    one, same, other = (
        shapestacks.flawed(tower, "lifted", 1, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert one == same != other
    low, high = shapestacks.FLAWS["lifted"]
    assert low <= moved_part(tower, one)[1][2] <= high
    assert np.array_equal(shapestacks.look(tower, 4).image, shapestacks.draw(0, 3, 4).image)
