"""The ray caster against marching along each ray, against geometry by hand, and against itself."""

from dataclasses import replace

import numpy as np
import pytest

from data_modules.synthesis.drawing import place_apart
from data_modules.synthesis.scene3d import (
    _GOLDEN,
    DEPTH_BELOW,
    Camera,
    Light,
    Plane,
    Shape,
    Solid,
    Texture,
    World,
    _faces,
    along,
    render,
    turn_x,
    turn_z,
)
from data_modules.threads import in_order

SHAPES: tuple[Shape, ...] = (
    "box",
    "cylinder",
    "sphere",
    "octahedron",
    "hexagon",
    "dodecahedron",
    "icosahedron",
)
FLOOR = Plane((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.7, 0.7, 0.7), 0)
LIGHT = Light((0.3, -0.4, 1.0))
g, h = _GOLDEN, 1 / _GOLDEN
CYCLES = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
# corners of the Platonic solids, from their textbook coordinates
CORNERS = {
    "octahedron": [s * np.eye(3)[axis] for s in (1, -1) for axis in range(3)],
    "icosahedron": [
        np.array([a, 0, b * g])[list(c)] / np.hypot(1, g) for a in (1, -1) for b in (1, -1) for c in CYCLES
    ],
    "dodecahedron": [np.array([a, b, c]) / 3**0.5 for a in (1, -1) for b in (1, -1) for c in (1, -1)]
    + [np.array([0, a * g, b * h])[list(c)] / 3**0.5 for a in (1, -1) for b in (1, -1) for c in CYCLES],
}


def inside(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Whether points `[n, 3]` are in a solid, by its definition."""
    x, y, z = ((points - solid.centre) @ solid.rotation / solid.half_size).T
    if solid.shape == "box":
        return np.maximum(np.maximum(abs(x), abs(y)), abs(z)) <= 1
    if solid.shape == "cylinder":
        return (x**2 + y**2 <= 1) & (abs(z) <= 1)
    if solid.shape == "sphere":
        return x**2 + y**2 + z**2 <= 1
    if solid.shape == "hexagon":
        side = np.cos(np.pi / 6)
        turned = [abs(x * np.cos(a) + y * np.sin(a)) <= side for a in (0, np.pi / 3, 2 * np.pi / 3)]
        return np.all(turned, axis=0) & (abs(z) <= 1)
    # the hull of its corners: no point beyond the farthest corner in any face's direction
    corners = np.array(CORNERS[solid.shape])
    normals = np.array(_faces(solid.shape)[0])
    local = np.stack([x, y, z], axis=1)
    return (np.abs(local @ normals.T) <= np.abs(corners @ normals.T).max(axis=0)).all(axis=1)


def random_world(seed: int, shapes: tuple[Shape, ...] = SHAPES) -> World:
    rng = np.random.default_rng(seed)
    solids = [
        Solid(
            shape,
            tuple(rng.uniform((-2, -2, 0.5), (2, 2, 1.2))),
            tuple(rng.uniform(0.3, 0.8, 3)),
            tuple(rng.uniform(0.3, 0.9, 3)),
            number,
            turn_z(rng.uniform(0, 6)) @ turn_x(rng.uniform(0, 6)),
        )
        for number, shape in enumerate(shapes, 1)
    ]
    return World(solids, [FLOOR], LIGHT)


def camera(size: int = 40) -> Camera:
    return Camera((0.5, -7.0, 4.0), (0.0, 0.0, 0.5), 40.0, size, size)


@pytest.mark.parametrize("seed", range(3))
def test_entities_are_what_marching_along_the_rays_meets_first(seed: int) -> None:
    world, view = random_world(seed), camera(28)
    rendering = render(world, view)
    steps = np.arange(4.5, 11.0, 0.005)
    rays = view.rays().T.astype(np.float64)
    met = np.zeros(len(rays), int)
    distance = np.where(rays[:, 2] < 0, -view.position[2] / np.minimum(rays[:, 2], -1e-9), np.inf)
    for solid in world.solids:
        points = np.asarray(view.position) + steps[:, None, None] * rays
        hit = inside(solid, points.reshape(-1, 3)).reshape(len(steps), -1)
        first = np.where(hit.any(axis=0), steps[hit.argmax(axis=0)], np.inf)
        met = np.where(first < distance, solid.entity, met)
        distance = np.minimum(distance, first)
    agree = met == rendering.entities.reshape(-1)
    # a march of 5 mm misses slivers at outlines
    assert agree.mean() > 0.995
    known = agree & np.isfinite(distance)
    depth = distance * (rays @ view.axes[2])
    np.testing.assert_allclose(rendering.depth.reshape(-1)[known], depth[known], atol=0.006)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_colour_changes_the_pixels_of_its_entity_and_no_other(shape: Shape) -> None:
    world = random_world(7, (shape, "box", "sphere"))
    before = render(world, camera(64))
    for solid in world.solids:
        others = [replace(one, colour=(0.1, 0.2, 0.1)) if one is solid else one for one in world.solids]
        after = render(replace(world, solids=others), camera(64))
        changed = (before.image != after.image).any(axis=2)
        np.testing.assert_array_equal(changed, before.entities == solid.entity)
        np.testing.assert_array_equal(before.entities, after.entities)


def test_a_pixel_is_in_shadow_where_a_solid_is_between_it_and_the_sun() -> None:
    world, view = random_world(3, ("box", "cylinder", "icosahedron", "sphere")), camera(32)
    rendering = render(world, view)
    floor = rendering.entities.reshape(-1) == 0
    rays = view.rays().T.astype(np.float64)[floor]
    points = np.asarray(view.position) - view.position[2] / rays[:, 2:] * rays
    sun = np.asarray(LIGHT.direction) / np.linalg.norm(LIGHT.direction)
    on_the_way = points + np.arange(0.002, 3, 0.005)[:, None, None] * sun
    shadow = np.zeros(len(points), bool)
    for solid in world.solids:
        shadow |= inside(solid, on_the_way.reshape(-1, 3)).reshape(len(on_the_way), -1).any(axis=0)
    fill = LIGHT.fill + LIGHT.ambient
    bright = np.rint(255 * 0.7 * (fill + LIGHT.sun * sun[2]))
    expected = np.where(shadow, np.rint(255 * 0.7 * fill), bright)
    found = rendering.image.reshape(-1, 3)[floor, 0]
    assert set(found.tolist()) == set(expected.tolist())
    assert (found == expected).mean() > 0.99
    assert shadow.sum() > 20


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_are_those_of_the_surface(shape: Shape) -> None:
    # light from one side only shows the cosine, and neighbouring points the plane they are in
    rotation = turn_z(0.4) @ turn_x(0.3)
    solid = Solid(shape, (0.0, 0.0, 0.0), (1.0, 0.8, 1.2), (1.0, 1.0, 1.0), 1, rotation)
    view = Camera((0.0, -6.0, 2.0), (0.0, 0.0, 0.0), 25.0, 200, 200)
    light = Light((0.0, 0.0, 1.0), sun=0.0, fill_direction=(-0.5, -1.0, 0.7), fill=1.0, ambient=0.0)
    rendering = render(World([solid], [], light), view)
    points = (
        view.position
        + view.rays().T.reshape(200, 200, 3)
        * (rendering.depth / (view.rays().T @ view.axes[2]).reshape(200, 200))[..., None]
    ).astype(np.float64)
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    normals = np.cross(down, across)
    normals /= np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), 1e-12)
    lamp = np.array(light.fill_direction) / np.linalg.norm(light.fill_direction)
    expected = np.maximum(normals @ lamp, 0)
    inner = np.all([np.roll(rendering.entities == 1, s, a) for a in (0, 1) for s in (-2, 2)], axis=0)[
        1:-1, 1:-1
    ]
    difference = np.abs(rendering.image[1:-1, 1:-1, 0] / 255 - expected)[inner]
    # edges between faces have two normals
    assert np.mean(difference < 0.03) > 0.9


@pytest.mark.parametrize("shape", ["octahedron", "dodecahedron", "icosahedron"])
def test_faces_and_depth_of_the_platonic_solids(shape: Shape) -> None:
    corners = np.array(CORNERS[shape])
    normals, offset = _faces(shape)
    heights = np.abs(corners @ np.array(normals).T)
    # a face goes through its corners, and no corner is beyond it
    np.testing.assert_allclose(heights.max(axis=0), offset, atol=1e-6)
    assert {"octahedron": 3, "dodecahedron": 5, "icosahedron": 3}[shape] == int(
        (np.isclose(corners @ np.array(normals).T, offset)).sum(axis=0)[0]
    )
    assert DEPTH_BELOW.get(shape, 1.0) == pytest.approx(-corners[:, 2].min(), abs=1e-6)


def test_project_finds_the_pixel_whose_ray_goes_through_a_point() -> None:
    view = Camera((1.0, -5.0, 2.0), (0.0, 0.0, 0.5), 50.0, 30, 44)
    points = np.asarray(view.position) + 3.7 * view.rays().T.astype(np.float64)
    column, row, depth = view.project(points).T
    np.testing.assert_allclose(column.reshape(30, 44), np.arange(44) + 0.5 + np.zeros((30, 1)), atol=1e-4)
    np.testing.assert_allclose(row.reshape(30, 44), np.arange(30)[:, None] + 0.5 + np.zeros(44), atol=1e-4)
    assert depth.max() == pytest.approx(3.7, abs=0.01)


def test_a_ball_that_the_frame_holds_has_its_whole_outline_in_it() -> None:
    rng = np.random.default_rng(0)
    view = Camera((0.0, -6.0, 2.0), (0.0, 0.0, 0.0), 45.0, 48, 64)
    wide = replace(
        view, field_of_view=2 * np.degrees(np.arctan(2 * np.tan(np.radians(22.5)))), height=96, width=128
    )
    held = 0
    for _ in range(60):
        centre, radius = rng.uniform((-3, -2, -2), (3, 2, 2)), rng.uniform(0.2, 0.9)
        ball = Solid("sphere", tuple(centre), (radius,) * 3, (1.0, 1.0, 1.0), 1)
        seen = render(World([ball], [], LIGHT), wide).entities
        seen[24:72, 32:96] = 0
        if view.holds(centre, radius):
            held += 1
            assert not seen.any()
    assert 10 < held < 50


@pytest.mark.parametrize("pattern", ["checks", "stripes", "waves", "bricks"])
def test_textures_show_two_colours_and_leave_the_ids(pattern: str) -> None:
    textured = replace(FLOOR, texture=Texture(pattern, (0.2, 0.3, 0.6), 0.8))  # type: ignore[arg-type]
    world = random_world(1)
    plain, patterned = render(world, camera(64)), render(replace(world, planes=[textured]), camera(64))
    np.testing.assert_array_equal(plain.entities, patterned.entities)
    changed = (plain.image != patterned.image).any(axis=2)
    assert not changed[plain.entities > 0].any()
    assert changed[(plain.entities == 0) & (plain.depth > 0)].mean() > 0.05


def test_a_wall_ends_at_its_top_and_is_seen_from_its_front_only() -> None:
    wall = Plane((0.0, 3.0, 0.0), (0.0, -1.0, 0.0), (0.5, 0.5, 0.5), 2, top=1.0)
    view = Camera((0.0, -3.0, 1.0), (0.0, 3.0, 1.0), 40.0, 40, 40)
    world = World([], [FLOOR, wall], LIGHT, sky_entity=9)
    entities = render(world, view).entities
    assert set(entities[:20].ravel().tolist()) == {9}
    # 1 m below eye level at 6 m
    assert (entities[20:, 0] == 2).sum() == pytest.approx(view.focal_length / 6, abs=1)
    behind = render(world, replace(view, position=(0.0, 8.0, 1.0))).entities
    assert not (behind == 2).any()


def test_the_same_scene_gives_the_same_bytes_in_any_number_of_threads() -> None:
    worlds = [random_world(seed) for seed in range(12)]
    one = [render(world, camera(96)) for world in worlds]
    for rendering, again in zip(
        one, in_order(lambda world: render(world, camera(96)), worlds, 3), strict=True
    ):
        assert rendering.image.tobytes() == again.image.tobytes()
        assert rendering.depth.tobytes() == again.depth.tobytes()


def test_places_keep_their_distance() -> None:
    rng = np.random.default_rng(0)
    radii = rng.uniform(0.2, 0.5, 6)
    places = place_apart(rng.uniform(-3, 3, (200, 2)), radii, np.ones((6, 200), bool), gap=0.1)
    assert places is not None
    for one in range(6):
        for other in range(one):
            assert np.hypot(*(places[one] - places[other])) >= radii[one] + radii[other] + 0.1
    assert place_apart(np.zeros((5, 2)), radii, np.ones((6, 5), bool), gap=0.0) is None


def test_along_is_a_rotation_to_the_direction() -> None:
    for direction in ((1, 0, 0), (0, 0, -1), (0.3, -2, 0.4)):
        rotation = along(direction)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        np.testing.assert_allclose(
            rotation[:, 2], np.array(direction) / np.linalg.norm(direction), atol=1e-12
        )
