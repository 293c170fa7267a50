"""RigidBody: a batch of different objects, ready to be dropped.

Contact with a plane only ever sees the convex hull, so support points and, optionally, the hull's
polygons stand for the whole shape.

Legend: B objects, K support points (a bucket size), V entries of the flat polygon table.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from sim_mjx import rotations


class BodyError(ValueError):
    """An object that cannot be simulated.

    Attributes:
        reason: short code that is stored with the `invalid` label.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a body came from and how it was made.

    Attributes:
        source: path or description of the input.
        sha256: digest of the input file's bytes, empty for bodies made in memory.
        inertia: the mode that made mass and inertia, as in `protocol.InertiaMode`.
        fallback: why `inertia` is not the mode that was asked for, or None.
        hull_points: vertices that matter before reduction to support points.
        components: connected solid parts, where they were counted.
        volume: volume behind the mass, m^3.
        margin_deg: `margin.static_margin` of the start pose, where whoever made the body found it.
        tip_azimuth_deg: the way it would tip, likewise; None where the feet span no area.
    """

    source: str = ""
    sha256: str = ""
    inertia: str = ""
    fallback: str | None = None
    hull_points: int = 0
    components: int | None = None
    volume: float = 0.0
    margin_deg: float | None = None
    tip_azimuth_deg: float | None = None


@dataclasses.dataclass(frozen=True)
class HullPolygons:
    """Per point, the flat hull faces that meet there (for C MuJoCo 4's contact rule).

    Point k meets the entries start[k] : start[k] + count[k]; unused entries are zero. An entry
    also holds the corners of its polygon that become contacts when k is the deepest point: they
    depend on polygon and point alone, not on the pose.

    Attributes:
        start: first entry of each point.
        count: entries of each point.
        normals: outward unit normals of the polygons, in the inertial frame.
        contacts: up to four point indices with the point itself first, repeated where fewer; two
            bytes each, since they are most of what travels to an accelerator.
        window: upper bound of `count`, the same for a bucket; a shape of the program.
    """

    start: Int[np.ndarray, "B K"]
    count: Int[np.ndarray, "B K"]
    normals: Float[np.ndarray, "B V 3"]
    contacts: Int[np.ndarray, "B V 4"]
    window: int


@dataclasses.dataclass(frozen=True)
class RigidBody:
    """A batch of rigid bodies. The body frame is the upright start frame: z up.

    Attributes:
        points: support points in the inertial frame (origin at the centre of mass, principal axes),
            padded by repeating real points.
        mass: kg.
        com: centre of mass in the body frame, m.
        inertia: principal moments about the centre of mass, kg m^2.
        inertia_quat: wxyz, takes inertial-frame vectors to the body frame.
        polygons: the hull's polygons, or None for bodies that only have points.
        provenance: one entry an object; not part of the numbers that JAX sees.
    """

    points: Float[np.ndarray, "B K 3"]
    mass: Float[np.ndarray, " B"]
    com: Float[np.ndarray, "B 3"]
    inertia: Float[np.ndarray, "B 3"]
    inertia_quat: Float[np.ndarray, "B 4"]
    polygons: HullPolygons | None = None
    provenance: tuple[Provenance, ...] = ()

    def __len__(self) -> int:
        return self.mass.shape[0]

    def __getitem__(self, index) -> RigidBody:
        """Selects objects by slice, integer (kept as a batch of one), mask or index array."""
        if isinstance(index, int | np.integer):
            count = len(self)
            if not -count <= index < count:
                raise IndexError(f"object {index} of a batch of {count}")
            index = slice(index % count, index % count + 1)
        chosen = np.arange(len(self))[index]
        provenance = tuple(self.provenance[i] for i in chosen) if self.provenance else ()
        return _map(lambda leaf: leaf[chosen], self, provenance=provenance)

    def body_points(self) -> Float[np.ndarray, "B K 3"]:
        """Support points in the body frame, float64."""
        matrix = rotations.to_matrix(np.asarray(self.inertia_quat))
        # Small products by BLAS: a fourth of the time of einsum.
        points = np.asarray(self.points, np.float64) @ matrix.transpose(0, 2, 1)
        points += np.asarray(self.com, np.float64)[:, None]
        return points

    def box(self) -> tuple[Float[np.ndarray, "B 3"], Float[np.ndarray, "B 3"]]:
        """Lowest and highest coordinates in the body frame, m."""
        matrix = rotations.to_matrix(np.asarray(self.inertia_quat))
        # By axis: a sixth of the time of reducing `body_points`.
        points = matrix @ np.asarray(self.points, np.float64).transpose(0, 2, 1)
        com = np.asarray(self.com, np.float64)
        return points.min(axis=2) + com, points.max(axis=2) + com

    def size(self) -> Float[np.ndarray, " B"]:
        """Object size: the longest side of the bounding box in the body frame, m."""
        low, high = self.box()
        return (high - low).max(axis=1)


def concatenate(batches: Sequence[RigidBody]) -> RigidBody:
    """Joins batches of one shape bucket.

    Raises:
        ValueError: if the batches differ in bucket, or if there is none.
    """
    if not batches:
        raise ValueError("concatenate: expected at least one batch of bodies")
    if len({_shape_bucket(batch) for batch in batches}) > 1:
        raise ValueError("concatenate: bodies are of different shape buckets")
    entries = [batch.provenance or (Provenance(),) * len(batch) for batch in batches]
    provenance = tuple(itertools.chain.from_iterable(entries))
    return _map(lambda *leaves: np.concatenate(leaves), *batches, provenance=provenance)


ARRAYS = ("points", "mass", "com", "inertia", "inertia_quat")
POLYGON_ARRAYS = ("start", "count", "normals", "contacts")


def _map(function: Callable, first: RigidBody, *others: RigidBody, provenance) -> RigidBody:
    """`first` with `function` applied to its arrays and those of `others` of the same bucket."""
    # Not jax.tree.map: the processes that prepare bodies do without JAX.
    batches = (first, *others)
    changed = {n: function(*(getattr(b, n) for b in batches)) for n in ARRAYS}
    polygons = first.polygons
    if polygons is not None:
        tables = [b.polygons for b in batches]
        new = {n: function(*(getattr(t, n) for t in tables)) for n in POLYGON_ARRAYS}
        polygons = dataclasses.replace(polygons, **new)
    return dataclasses.replace(first, **changed, polygons=polygons, provenance=provenance)


def _shape_bucket(body: RigidBody) -> tuple:
    """What two batches must share to be joined."""
    shapes = tuple(getattr(body, name).shape[1:] for name in ARRAYS)
    table = body.polygons
    if table is None:
        return shapes
    return (*shapes, table.window, *(getattr(table, n).shape[1:] for n in POLYGON_ARRAYS))
