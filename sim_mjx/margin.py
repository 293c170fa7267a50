"""The static margin: how far an object at its start pose is from tipping, in closed form.

Standing on the ground, an object tips over an edge of its support polygon (the convex hull of the
points that touch) once it is turned about that edge until the centre of mass is above it. The
margin is the smallest such angle: atan(distance of the projected centre of mass to the edge over
its height). It reads no simulation, so it checks labels independently.

Legend: B objects, K support points.
"""

from __future__ import annotations

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
    points = bodies.body_points()
    com = np.asarray(bodies.com, np.float64)
    size = bodies.size()
    return np.array([_margin(p, c, touch * s) for p, c, s in zip(points, com, size, strict=True)])


def _margin(points: Float[np.ndarray, "K 3"], com: Float[np.ndarray, " 3"], depth: float) -> float:
    ground = points[:, 2].min()
    feet = points[points[:, 2] <= ground + depth, :2]
    distance = distance_inside(feet, com[:2])
    return float(np.degrees(np.arctan2(max(distance, 0.0), com[2] - ground)))


def distance_inside(feet: Float[np.ndarray, "K 2"], point: Float[np.ndarray, " 2"]) -> float:
    """Distance from `point` to the nearest edge of the feet's convex hull, negative outside.

    A hull without area supports nothing but itself: 0.
    """
    if len(feet) < 3:
        return 0.0
    try:
        # Rows (unit normal, offset): normal . x + offset <= 0 inside.
        edges = ConvexHull(feet).equations
    except QhullError:
        return 0.0
    return float(-(edges[:, :2] @ point + edges[:, 2]).max())
