"""A small ray caster: convex solids on a floor between walls, a sun with shadows, exact instance ids.

Every pixel is one ray through its centre, so what a pixel shows is one entity and nothing else: the ids are
those of the picture, to the pixel. Arithmetic on rays is elementwise, so the same scene gives the same bytes
whatever the number of threads.

World axes: x and y along the floor, z up. Colours are RGB from 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_modules.synthesis.textures import Colour as Colour
from data_modules.synthesis.textures import Floats, paint
from data_modules.synthesis.textures import Pattern as Pattern
from data_modules.synthesis.textures import Texture as Texture

Vector = tuple[float, float, float]
Shape = Literal["box", "cylinder", "sphere", "octahedron", "hexagon", "dodecahedron", "icosahedron"]

_FAR = np.float32(1e6)
_GOLDEN = (1 + 5**0.5) / 2

DEPTH_BELOW: dict[Shape, float] = {"dodecahedron": 0.9341724, "icosahedron": 0.8506508}
"""How far a shape of size 1 reaches below its centre where that is not 1: so high it stands on a floor."""


@dataclass(frozen=True)
class Solid:
    """A convex solid.

    All shapes fit the ball or the cube of side 2 around the origin; then they are stretched by `half_size`,
    turned by `rotation` and moved to `centre`.
    """

    shape: Shape
    centre: Vector
    half_size: Vector
    colour: Colour
    entity: int
    """Its id in the mask; several solids may share one."""
    rotation: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    """`[3, 3]`, from the solid's axes to the world's."""
    texture: Texture | None = None
    metal: float = 0.0
    """How much it mirrors, 0 to 1."""

    @property
    def radius(self) -> float:
        """Radius of a ball around `centre` that holds the solid."""
        x, y, z = self.half_size
        if self.shape == "box":
            return float(np.sqrt(x * x + y * y + z * z))
        if self.shape in ("cylinder", "hexagon"):
            return float(np.hypot(max(x, y), z))
        return float(max(x, y, z))


@dataclass(frozen=True)
class Plane:
    """An endless floor or wall, seen only from the side its normal points to."""

    point: Vector
    normal: Vector
    """Of length 1."""
    colour: Colour
    entity: int
    texture: Texture | None = None
    top: float = float("inf")
    """Nothing of it is above this height."""


@dataclass(frozen=True)
class Light:
    """A sun, a weaker lamp without shadow, and light from everywhere."""

    direction: Vector
    """To the sun; any length."""
    sun: float = 0.6
    fill_direction: Vector = (0.0, 0.0, 1.0)
    fill: float = 0.15
    ambient: float = 0.35


@dataclass(frozen=True)
class World:
    """All that can be seen."""

    solids: Sequence[Solid]
    planes: Sequence[Plane]
    light: Light
    sky: Colour = (0.6, 0.75, 0.95)
    sky_entity: int = 0


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that holds its head upright."""

    position: Vector
    target: Vector
    field_of_view: float
    """Vertical, in degrees."""
    height: int
    width: int

    @cached_property
    def axes(self) -> NDArray[np.float64]:
        """Unit vectors to the right, down and forward, `[3, 3]` (one per row)."""
        forward = unit(np.subtract(self.target, self.position))
        right = unit(np.cross(forward, (0.0, 0.0, 1.0)))
        return np.stack([right, np.cross(forward, right), forward])

    @property
    def focal_length(self) -> float:
        """In pixels."""
        return self.height / 2 / float(np.tan(np.radians(self.field_of_view) / 2))

    def rays(self) -> Floats:
        """Unit vectors through the pixels' centres, float32 `[3, H * W]`."""
        right, down, forward = self.axes
        x = (np.arange(self.width) + 0.5 - self.width / 2) / self.focal_length
        y = (np.arange(self.height) + 0.5 - self.height / 2) / self.focal_length
        across = x[None, :] * right[:, None] + forward[:, None]
        rays = (across[:, None, :] + (y[None, :] * down[:, None])[:, :, None]).astype(np.float32)
        return _normalised(rays.reshape(3, -1))

    def project(self, points: ArrayLike) -> NDArray[np.float64]:
        """Column and row in pixels (0 at the frame's upper left edge) and depth of points, all `[..., 3]`."""
        x, y, depth = np.moveaxis((np.asarray(points) - self.position) @ self.axes.T, -1, 0)
        scale = self.focal_length / depth
        return np.stack([x * scale + self.width / 2, y * scale + self.height / 2, depth], axis=-1)

    def holds(self, centre: ArrayLike, radius: ArrayLike, margin: float = 0.0) -> NDArray[np.bool_]:
        """Whether balls `[..., 3]`, `[...]` are in the frame as a whole, `margin` pixels from its edge.

        On the safe side: a ball's outline is taken a little larger than it is.
        """
        column, row, depth = np.moveaxis(self.project(centre), -1, 0)
        # the outline of a ball off the axis is longer than its radius at its depth
        slant = np.hypot(np.hypot(column - self.width / 2, row - self.height / 2) / self.focal_length, 1.0)
        reach = self.focal_length * np.asarray(radius) * slant / np.maximum(depth - radius, 1e-6) + margin
        inside = (column >= reach) & (column <= self.width - reach)
        return np.asarray(inside & (row >= reach) & (row <= self.height - reach) & (depth > radius))


@dataclass(frozen=True)
class Rendering:
    """What a camera sees."""

    image: NDArray[np.uint8]
    """`[H, W, 3]`."""
    entities: NDArray[np.uint8]
    """Id of what each pixel shows, `[H, W]`."""
    depth: Floats
    """Distance along the camera's axis, `[H, W]`; 0 for the sky."""


def unit(vector: ArrayLike) -> NDArray[np.float64]:
    """A vector of length 1 in the same direction, `[3]`."""
    vector = np.asarray(vector, np.float64)
    return np.asarray(vector / np.sqrt((vector * vector).sum()))


def turn_z(angle: float) -> NDArray[np.float64]:
    """Rotation about the vertical by radians, `[3, 3]`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def turn_x(angle: float) -> NDArray[np.float64]:
    """Rotation about the x axis by radians, `[3, 3]`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])


def along(direction: ArrayLike) -> NDArray[np.float64]:
    """A rotation that turns the z axis to a direction, `[3, 3]`."""
    z = unit(direction)
    helper = (1.0, 0.0, 0.0) if abs(z[0]) < 0.9 else (0.0, 1.0, 0.0)
    x = unit(np.cross(helper, z))
    return np.stack([x, np.cross(z, x), z], axis=1)


def vector(values: ArrayLike) -> Vector:
    """Three plain floats."""
    x, y, z = (float(value) for value in np.asarray(values).reshape(3))
    return x, y, z


def render(world: World, camera: Camera) -> Rendering:
    """Look at a world.

    Args:
        world: what there is; the camera stands outside of all solids.
        camera: where from, and the size of the picture.
    """
    rays = camera.rays()
    origin = np.asarray(camera.position, np.float32)
    distance, surface = _first_hits(world, origin, rays)
    seen = surface >= 0
    points = (origin[:, None] + np.where(seen, distance, 0.0) * rays).astype(np.float32)
    normals, colours, metal = _materials(world, points, surface)
    lit = _sunlight(world, points, surface)
    shaded = _shade(world.light, rays, normals, colours, metal, lit)
    horizon = np.clip(1.0 - 1.5 * rays[2], 0.0, 1.0) * 0.25
    for channel, tone in enumerate(world.sky):
        shaded[channel] = np.where(seen, shaded[channel], tone + (1.0 - tone) * horizon)
    image = np.rint(np.clip(shaded, 0.0, 1.0) * 255).astype(np.uint8)
    ids = [plane.entity for plane in world.planes] + [solid.entity for solid in world.solids]
    forward = camera.axes[2].astype(np.float32)
    size = (camera.height, camera.width)
    return Rendering(
        image=np.ascontiguousarray(image.T).reshape(*size, 3),
        entities=np.array([*ids, world.sky_entity], np.uint8)[surface].reshape(size),
        depth=np.where(seen, distance * _dot(forward, rays), 0.0).astype(np.float32).reshape(size),
    )


def _first_hits(world: World, origin: Floats, rays: Floats) -> tuple[Floats, NDArray[np.int16]]:
    """Distance along each ray and number of the surface met (planes, then solids; -1 for the sky), `[P]`."""
    distance = np.full(rays.shape[1], _FAR, np.float32)
    surface = np.full(rays.shape[1], -1, np.int16)
    for number, plane in enumerate(world.planes):
        normal = np.asarray(plane.normal, np.float32)
        facing = _dot(normal, rays)
        height = _dot(normal, np.asarray(plane.point, np.float32) - origin)
        reached = height / np.minimum(facing, np.float32(-1e-6))
        hit = (facing < -1e-6) & (reached > 0) & (reached < distance)
        if plane.top != float("inf"):
            hit &= origin[2] + reached * rays[2] <= plane.top
        distance[hit] = reached[hit]
        surface[hit] = number
    if not world.solids:
        return distance, surface
    to_centres = np.array([solid.centre for solid in world.solids], np.float32) - origin
    squares = (to_centres**2).sum(axis=1)
    # only a ray that passes a solid's ball can meet it
    radii = 1.01 * np.array([solid.radius for solid in world.solids], np.float32) + 1e-3
    along_ray = to_centres @ rays
    near = (along_ray > 0) & (squares[:, None] - along_ray**2 < (radii**2)[:, None])
    for number, solid in enumerate(world.solids):
        chosen = np.flatnonzero(near[number])
        to_local = _to_local(solid)
        start = _turn(to_local, origin - np.asarray(solid.centre, np.float32))
        enter, leave = _interval(solid.shape, start[:, None], _turn(to_local, rays[:, chosen]))
        hit = (enter < leave) & (enter > 0) & (enter < distance[chosen])
        distance[chosen[hit]] = enter[hit]
        surface[chosen[hit]] = len(world.planes) + number
    return distance, surface


def _materials(world: World, points: Floats, surface: NDArray[np.int16]) -> tuple[Floats, Floats, Floats]:
    """Normals `[3, P]`, colours `[3, P]` and metal `[P]` of the points seen."""
    normals, colours = np.zeros_like(points), np.zeros_like(points)
    normals[2] = 1.0
    metal = np.zeros(points.shape[1], np.float32)
    for number, plane in enumerate(world.planes):
        chosen = np.flatnonzero(surface == number)
        normals[:, chosen] = np.asarray(plane.normal, np.float32)[:, None]
        # along the wall and up; on a floor x and y
        level = (-plane.normal[1], plane.normal[0], 0.0) if abs(plane.normal[2]) < 0.9 else (1.0, 0.0, 0.0)
        across = np.stack([unit(level), unit(np.cross(plane.normal, level))]).astype(np.float32)
        coordinates = _turn(across, points[:, chosen])
        colours[:, chosen] = paint(plane.colour, plane.texture, coordinates)
    for number, solid in enumerate(world.solids, len(world.planes)):
        chosen = np.flatnonzero(surface == number)
        if not chosen.size:
            continue
        offset = points[:, chosen] - np.asarray(solid.centre, np.float32)[:, None]
        local = _turn(_to_local(solid), offset)
        from_local = (solid.rotation / np.asarray(solid.half_size)).astype(np.float32)
        normals[:, chosen] = _normalised(_turn(from_local, _local_normals(solid.shape, local)))
        sizes = np.asarray(solid.half_size, np.float32)[:, None]
        colours[:, chosen] = paint(solid.colour, solid.texture, local * sizes)
        metal[chosen] = solid.metal
    return normals, colours, metal


def _sunlight(world: World, points: Floats, surface: NDArray[np.int16]) -> Floats:
    """1 where the sun is seen from a point, 0 where another solid is in between, `[P]`.

    A convex solid does not shade itself but on its far side, where the sun does not count anyway.
    """
    lit = np.ones(points.shape[1], np.float32)
    sun = unit(world.light.direction).astype(np.float32)
    across = along(sun).T.astype(np.float32)[:2]
    shadows = _turn(across, points)
    for number, solid in enumerate(world.solids, len(world.planes)):
        centre = np.asarray(solid.centre, np.float32)
        u, v = shadows - _turn(across, centre)[:, None]
        under = u * u + v * v < np.float32((1.01 * solid.radius + 1e-3) ** 2)
        chosen = np.flatnonzero(under & (surface != number) & (surface >= 0))
        to_local = _to_local(solid)
        starts = _turn(to_local, points[:, chosen] - centre[:, None])
        enter, leave = _interval(solid.shape, starts, _turn(to_local, sun)[:, None])
        lit[chosen[(enter < leave) & (leave > 1e-3)]] = 0.0
    return lit


def _shade(
    light: Light, rays: Floats, normals: Floats, colours: Floats, metal: Floats, lit: Floats
) -> Floats:
    """Lambert's law and a highlight for metal, `[3, P]`."""
    sun = unit(light.direction).astype(np.float32)
    fill = unit(light.fill_direction).astype(np.float32)
    lambert = np.maximum(_dot(sun, normals), 0.0) * lit
    brightness = light.ambient * (0.8 + 0.2 * normals[2]) + light.sun * lambert
    brightness += light.fill * np.maximum(_dot(fill, normals), 0.0)
    shaded = colours * brightness
    chosen = np.flatnonzero(metal)
    if chosen.size:
        ray, normal, amount = rays[:, chosen], normals[:, chosen], metal[chosen]
        mirrored = ray - 2 * (ray * normal).sum(axis=0) * normal
        # dark floor below, bright sky above
        surroundings = 0.25 + 0.75 / (1 + np.exp(-8 * (mirrored[2] - 0.15)))
        highlight = lit[chosen] * np.maximum(_dot(sun, mirrored), 0.0) ** 40
        mirror = colours[:, chosen] * surroundings * 0.9 + 0.8 * highlight
        shaded[:, chosen] += amount * (mirror - 0.75 * shaded[:, chosen])
    return shaded


def _interval(shape: Shape, starts: Floats, directions: Floats) -> tuple[Floats, Floats]:
    """Where rays `[3, n]` enter and leave a shape of size 1, in multiples of the directions.

    They miss it where enter > leave.
    """
    if shape == "sphere":
        return _round_interval(starts, directions)
    if shape == "cylinder":
        enter, leave = _round_interval(starts[:2], directions[:2])
        return _between(((0.0, 0.0, 1.0),), 1.0, starts, directions, enter, leave)
    normals, offset = _faces(shape)
    return _between(normals, offset, starts, directions)


def _round_interval(starts: Floats, directions: Floats) -> tuple[Floats, Floats]:
    """Of a ball, or of an endless cylinder if there are two coordinates."""
    a = np.maximum((directions * directions).sum(axis=0), np.float32(1e-12))
    b = (starts * directions).sum(axis=0)
    # the distance to the axis, not the difference of large squares: stays exact far away
    closest = starts - (b / a) * directions
    rest = 1.0 - (closest * closest).sum(axis=0)
    root = np.sqrt(np.maximum(rest, 0.0) / a)
    middle = -b / a
    miss = rest <= 0
    return np.where(miss, _FAR, middle - root), np.where(miss, -_FAR, middle + root)


def _between(
    normals: Sequence[Vector],
    offset: float,
    starts: Floats,
    directions: Floats,
    enter: Floats | None = None,
    leave: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Of all that lies between pairs of parallel faces, at `offset` on both sides of the origin."""
    for normal in normals:
        slope = _dot(np.asarray(normal, np.float32), directions)
        slope = np.where(np.abs(slope) < 1e-7, np.float32(1e-7), slope)
        start = _dot(np.asarray(normal, np.float32), starts)
        one, other = (-offset - start) / slope, (offset - start) / slope
        first, last = np.minimum(one, other), np.maximum(one, other)
        enter = first if enter is None else np.maximum(enter, first)
        leave = last if leave is None else np.minimum(leave, last)
    assert enter is not None
    assert leave is not None
    return enter, leave


def _local_normals(shape: Shape, points: Floats) -> Floats:
    """Outward normals at points on a shape of size 1, `[3, n]`."""
    if shape == "sphere":
        return points
    if shape == "cylinder":
        cap = np.abs(points[2]) > np.sqrt(points[0] ** 2 + points[1] ** 2)
        zero = np.zeros_like(points[2])
        return np.where(cap, np.stack([zero, zero, points[2]]), np.stack([points[0], points[1], zero]))
    normals = np.asarray(_faces(shape)[0], np.float32)
    heights = np.stack([_dot(normal, points) for normal in normals])
    face = np.abs(heights).argmax(axis=0)
    return (normals[face] * np.sign(heights[face, np.arange(len(face))])[:, None]).T


@cache
def _faces(shape: Shape) -> tuple[tuple[Vector, ...], float]:
    """One unit normal per pair of parallel faces, and the faces' distance from the centre."""
    g, h = _GOLDEN, 1 / _GOLDEN
    if shape == "box":
        return ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), 1.0
    if shape == "hexagon":
        # corners on the unit circle, ends at 1: sides are nearer, which the normals' length makes up for
        turns = np.array((0, np.pi / 3, -np.pi / 3))
        sides = [vector(np.array((np.cos(a), np.sin(a), 0)) / np.cos(np.pi / 6)) for a in turns]
        return (*sides, (0.0, 0.0, 1.0)), 1.0
    corners = np.array([(1, 1, 1), (1, 1, -1), (1, -1, 1), (1, -1, -1)])
    if shape == "octahedron":
        return tuple(vector(unit(normal)) for normal in corners), 3**-0.5
    if shape == "dodecahedron":
        normals = np.array([(0, 1, g), (0, -1, g), (1, g, 0), (-1, g, 0), (g, 0, 1), (g, 0, -1)])
    else:
        others = np.array([(0, h, g), (0, -h, g), (h, g, 0), (-h, g, 0), (g, 0, h), (g, 0, -h)])
        normals = np.concatenate([corners, others])
    return tuple(vector(unit(normal)) for normal in normals), 0.7946545


def _to_local(solid: Solid) -> Floats:
    """From the world's axes to those in which the solid has size 1, `[3, 3]`."""
    return (solid.rotation.T / np.asarray(solid.half_size)[:, None]).astype(np.float32)


def _dot(one: Floats, other: Floats) -> Floats:
    """Of a vector `[3]` and vectors `[3, ...]`."""
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]


def _turn(matrix: Floats, vectors: Floats) -> Floats:
    """Matrix `[m, 3]` times vectors `[3, ...]`."""
    return np.stack([_dot(row, vectors) for row in matrix])


def _normalised(vectors: Floats) -> Floats:
    return (vectors / np.sqrt(_dot(vectors, vectors))).astype(np.float32, copy=False)
