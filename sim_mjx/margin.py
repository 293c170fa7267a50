"""The static margin: how far an object at its start pose is from tipping, in closed form.

Standing on the ground, an object tips over an edge of its support polygon (the convex hull of the
points that touch) once it is turned about that edge until the centre of mass is above it. The
margin is the smallest such angle: atan(distance of the projected centre of mass to the edge over
its height). It reads no simulation, so it checks labels independently.

Legend: B objects, K support points.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy.spatial import ConvexHull, QhullError

from sim_mjx.bodies import RigidBody

# Points this close to the ground touch it, in object sizes: the depth of the contact skin.
TOUCH = 1e-3


def static_margin_deg(bodies: RigidBody, *, touch: float = TOUCH) -> Float[np.ndarray, " B"]:
    """Smallest tipping angle at the start pose, degrees; 0 where the centre of mass is outside.

    Args:
        bodies: upright in their start pose.
        touch: height over the lowest point, in object sizes, up to which points touch the ground.
    """
    return static_margin(bodies, touch=touch)[0]


def static_margin(
    bodies: RigidBody, *, touch: float = TOUCH
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """The margin and the way the object would go: see `static_margin_deg`.

    Returns:
        The margin, degrees, and the azimuth of the outward normal of the edge that it tips over,
        degrees in (-180, 180] from the body's x axis towards y; NaN where the feet span no area.
    """
    points = bodies.body_points()
    com = np.asarray(bodies.com, np.float64)
    size = (points.max(axis=1) - points.min(axis=1)).max(axis=1)
    both = [_margin(p, c, touch * s) for p, c, s in zip(points, com, size, strict=True)]
    margin, azimuth = np.array(both, np.float64).reshape(-1, 2).T
    return margin, azimuth


def with_margin(body: RigidBody) -> RigidBody:
    """One body whose provenance tells its margin."""
    (origin,) = body.provenance
    if origin.margin_deg is not None:
        return body
    (margin,), (azimuth,) = static_margin(body)
    told = dataclasses.replace(
        origin,
        margin_deg=float(margin),
        tip_azimuth_deg=None if np.isnan(azimuth) else float(azimuth),
    )
    return dataclasses.replace(body, provenance=(told,))


def told_margin(bodies: RigidBody) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """`static_margin` of bodies in the start pose that they were made in, from their provenance."""
    if not all(origin.margin_deg is not None for origin in bodies.provenance):
        return static_margin(bodies)
    margins = [origin.margin_deg for origin in bodies.provenance]
    azimuths = [origin.tip_azimuth_deg for origin in bodies.provenance]
    return np.array(margins, np.float64), np.array(azimuths, np.float64)


def footprint(
    points: Float[np.ndarray, "K 3"], depth: float
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "m 2"]]:
    """The points within `depth` of the lowest one, and the corners of their hull on the ground.

    The corners are in order around the footprint, counter-clockwise; there are none where the
    points span no area.
    """
    touching = np.unique(points[points[:, 2] <= points[:, 2].min() + depth], axis=0)
    hull = _hull(touching[:, :2])
    corners = np.zeros((0, 2)) if hull is None else touching[hull.vertices, :2]
    return touching, corners


def _margin(
    points: Float[np.ndarray, "K 3"], com: Float[np.ndarray, " 3"], depth: float
) -> tuple[float, float]:
    ground = points[:, 2].min()
    feet = points[points[:, 2] <= ground + depth, :2]
    distance, azimuth = _nearest_edge(feet, com[:2])
    return float(np.degrees(np.arctan2(max(distance, 0.0), com[2] - ground))), azimuth


def distance_inside(feet: Float[np.ndarray, "K 2"], point: Float[np.ndarray, " 2"]) -> float:
    """Distance from `point` to the nearest edge of the feet's convex hull, negative outside.

    A hull without area supports nothing but itself: 0.
    """
    return _nearest_edge(feet, point)[0]


def _nearest_edge(
    feet: Float[np.ndarray, "K 2"], point: Float[np.ndarray, " 2"]
) -> tuple[float, float]:
    hull = _hull(feet)
    if hull is None:
        return 0.0, np.nan
    # Rows (unit normal, offset): normal . x + offset <= 0 inside.
    edges = hull.equations
    outside = edges[:, :2] @ point + edges[:, 2]
    nearest = outside.argmax()
    normal = edges[nearest, :2]
    return float(-outside[nearest]), float(np.degrees(np.arctan2(normal[1], normal[0])))


def _hull(flat: Float[np.ndarray, "K 2"]) -> ConvexHull | None:
    """The convex hull of points in a plane, or None if they span no area."""
    if len(flat) < 3:
        return None
    try:
        return ConvexHull(flat)
    except QhullError:
        return None
