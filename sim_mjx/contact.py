"""Contact rules between a convex body and the ground, as plane-mesh colliders for MJX.

A rule picks at most four support points. MJX looks colliders up in a table while it traces, so
`plane_mesh_rule` swaps ours in for the time of a trace and puts the stock entry back.

Legend: K support points, 4 contacts.
"""

# The bindings of MuJoCo are compiled: type checkers see none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sim_mjx.bodies import HullPolygons
from sim_mjx.mjx_import import GeomType, collision_driver

CONTACTS = 4
# Ground normal, in the first row of a contact frame, and two tangents.
_FRAME = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))
_PAIR = (GeomType.PLANE, GeomType.MESH)
_BODY_GEOM = 1  # geom 0 is the ground
_trace_lock = threading.Lock()

# The world's up axis in the geom frame (3,) and heights of the points over the ground (K,) ->
# indices (4,), valid (4,).
Rule = Callable[
    [Float[Array, " 3"], Float[Array, " K"]], tuple[Int[Array, " 4"], Bool[Array, " 4"]]
]


@contextlib.contextmanager
def plane_mesh_rule(points: Float[Array, "K 3"], rule: Rule) -> Iterator[None]:
    """While open, MJX traces plane-mesh contact with `points` (geom frame) and `rule`."""

    def collide(model, data, key, geom):
        del model, key, geom  # one ground, one body: its points are closed over
        position, matrix = data.geom_xpos[_BODY_GEOM], data.geom_xmat[_BODY_GEOM]
        heights = heights_over_ground(points, matrix[2], position[2])
        index, valid = rule(matrix[2], heights)
        distance = jnp.where(valid, heights[index], 1.0)
        world = points[index] @ matrix.T + position
        # A contact sits halfway between the two surfaces.
        middle = world - 0.5 * distance[:, None] * jnp.array(_FRAME[0])
        return distance, middle, jnp.broadcast_to(jnp.array(_FRAME), (CONTACTS, 3, 3))

    collide.ncon = CONTACTS
    with _trace_lock:
        stock = collision_driver._COLLISION_FUNC[_PAIR]
        collision_driver._COLLISION_FUNC[_PAIR] = collide
        try:
            yield
        finally:
            collision_driver._COLLISION_FUNC[_PAIR] = stock


def heights_over_ground(
    points: Float[Array, "K 3"], up: Float[Array, " 3"], height: Float[Array, ""]
) -> Float[Array, " K"]:
    """Heights of points in a frame whose origin is at `height` and sees the world's up axis."""
    return _dot(points, up) + height


def choose_rule(
    points: Float[Array, "K 3"], skin: Float[Array, ""], polygons: HullPolygons | None
) -> Rule:
    """The rule of a body: C MuJoCo's where it has polygons, else the skin's."""
    return skin_rule(points, skin) if polygons is None else polygon_rule(polygons)


def skin_rule(points: Float[Array, "K 3"], depth: Float[Array, ""]) -> Rule:
    """The deepest point and those below ground at most `depth` above it, thinned to four.

    Points above ground would carry no force, yet could displace ones that do: the chosen four then
    alternate from step to step and the object never comes to rest.
    """

    def rule(up, heights):
        lowest = heights.min()
        near = heights < jnp.minimum(lowest + depth, 0.0)
        return largest_quad(points, near | (heights <= lowest), _first_max(-heights), up)

    return rule


def polygon_rule(polygons: HullPolygons) -> Rule:
    """C MuJoCo 4's rule: at the deepest point, corners of the polygon that faces down most.

    Of that polygon up to four corners become contacts, the deepest among them; which ones depends
    on the shape alone (see `hull.contact_corners`). The rule was found by comparing contacts of the
    two engines on tilted prisms; the tests repeat the comparison.
    """

    def rule(up, heights):
        deepest = _first_max(-heights)
        entries = polygons.start[deepest] + jnp.arange(polygons.window)
        # Clipped by the gather; entries past the count are masked.
        downward = _dot(jnp.asarray(polygons.normals)[entries], up)
        past = jnp.arange(polygons.window) >= polygons.count[deepest]
        entry = entries[_first_max(jnp.where(past, -jnp.inf, -downward))]
        index = jnp.asarray(polygons.contacts)[entry].astype(jnp.int32)
        distinct = jnp.tril(index == index[:, None], -1).sum(axis=1) == 0
        return index, distinct

    return rule


def largest_quad(
    points: Float[Array, "N 3"],
    allowed: Bool[Array, " N"],
    first: Int[Array, ""],
    normal: Float[Array, " 3"],
) -> tuple[Int[Array, " 4"], Bool[Array, " 4"]]:
    """Greedy choice of up to four allowed points around `first` that span a large area.

    Args:
        points: in any frame.
        allowed: points to choose from; holds `first`.
        first: index that is always kept.
        normal: direction along which areas are seen, in the same frame.

    Returns:
        Indices, and which of them are distinct choices.
    """
    forbidden = jnp.where(allowed, 0.0, -jnp.inf)
    a = points[first]
    from_a = points - a
    second = _first_max(_dot(from_a * from_a, jnp.ones(3)) + forbidden)
    b = points[second]
    # Signed area of (a, b, p), seen along the normal: the largest on each side of the line ab.
    area = _dot(from_a, jnp.cross(normal, b - a))
    third = _first_max(area + forbidden)
    fourth = _first_max(-area + forbidden)
    index = jnp.stack([first, second, third, fourth])
    new_second = second != first
    # Where only two points touch, the second one's own area is zero up to rounding, of either sign.
    beside = jnp.stack([third, fourth]) != second
    valid = jnp.stack(
        [
            jnp.array(True),
            new_second,
            new_second & beside[0] & (area[third] > 0),
            new_second & beside[1] & (area[fourth] < 0),
        ]
    )
    return index, valid


def _dot(points: Float[Array, "N 3"], vector: Float[Array, " 3"]) -> Float[Array, " N"]:
    """`points @ vector`, written out: as one fused loop it costs a CPU half of the product."""
    return points[:, 0] * vector[0] + points[:, 1] * vector[1] + points[:, 2] * vector[2]


def _first_max(values: Float[Array, " N"]) -> Int[Array, ""]:
    """`jnp.argmax` from two plain reductions, which CPUs vectorise: a third off the whole step."""
    last = values.shape[0] - 1
    at_max = values == values.max()
    return jnp.where(at_max, jnp.arange(last + 1), last).min()
