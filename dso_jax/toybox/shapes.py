"""Solid primitives on the voxel grid, and the rasteriser that unites them.

Object frame, in voxels: origin on the ground under the middle of the grid, x right, y back, z up.
Voxel [i, j, k] has its centre at (i + 1/2 - 16, j + 1/2 - 16, k + 1/2 - GROUND).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float

RESOLUTION = 32
GROUND = 2  # index of the lowest occupied layer of every object: one free layer more than needed
LEAN_START = 2.5  # below this height feet are not sheared, so their outline stays as drawn
LEAN_HEIGHT = 26.0  # a lean is the sideways shift, in voxels, at this height

Point = tuple[float, float, float]
Coordinate = Float[np.ndarray, "x y z"]
Bounds = tuple[Point, Point]

_CENTRES_XY = np.arange(RESOLUTION, dtype=np.float32) + 0.5 - RESOLUTION / 2
_CENTRES_Z = np.arange(RESOLUTION, dtype=np.float32) + 0.5 - GROUND


class Part(Protocol):
    """A closed solid: an axis-aligned bound and a membership test on broadcastable coordinates."""

    def bounds(self) -> Bounds: ...

    def inside(self, x: Coordinate, y: Coordinate, z: Coordinate) -> Bool[np.ndarray, "x y z"]: ...


@dataclass(frozen=True)
class Box:
    """A box with half extents `half`, turned by `yaw` radians about its vertical axis.

    `rake` shears it: its top lies that many voxels further back (+y) than its middle.
    """

    centre: Point
    half: Point
    yaw: float = 0.0
    rake: float = 0.0

    def bounds(self) -> Bounds:
        cos, sin = abs(math.cos(self.yaw)), abs(math.sin(self.yaw))
        hx, hy, hz = self.half
        return _around(self.centre, (hx * cos + hy * sin, hx * sin + hy * cos + abs(self.rake), hz))

    def inside(self, x, y, z):
        dx, dy, dz = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        if self.rake:
            dy = dy - self.rake * dz / self.half[2]
        if self.yaw:
            cos, sin = math.cos(self.yaw), math.sin(self.yaw)
            dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
        hx, hy, hz = self.half
        return (abs(dx) <= hx) & (abs(dy) <= hy) & (abs(dz) <= hz)


@dataclass(frozen=True)
class Ellipsoid:
    centre: Point
    radii: Point

    def bounds(self) -> Bounds:
        return _around(self.centre, self.radii)

    def inside(self, x, y, z):
        (cx, cy, cz), (rx, ry, rz) = self.centre, self.radii
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 <= 1.0


@dataclass(frozen=True)
class Capsule:
    """Points within a radius of segment a-b; the radius runs linearly from `ra` to `rb`."""

    a: Point
    b: Point
    ra: float
    rb: float

    def bounds(self) -> Bounds:
        r = max(self.ra, self.rb)
        low = tuple(min(p, q) - r for p, q in zip(self.a, self.b, strict=True))
        high = tuple(max(p, q) + r for p, q in zip(self.a, self.b, strict=True))
        return low, high  # pyright: ignore[reportReturnType]

    def inside(self, x, y, z):
        ax, ay, az = self.a
        ux, uy, uz = (q - p for p, q in zip(self.a, self.b, strict=True))
        dx, dy, dz = x - ax, y - ay, z - az
        s = (dx * ux + dy * uy + dz * uz) / (ux * ux + uy * uy + uz * uz)
        s = np.clip(s, 0.0, 1.0)
        squared = (dx - s * ux) ** 2 + (dy - s * uy) ** 2 + (dz - s * uz) ** 2
        return squared <= (self.ra + s * (self.rb - self.ra)) ** 2


@dataclass(frozen=True)
class Frustum:
    """An upright cone section with flat ends: centre (x, y), heights z0 < z1, radii r0, r1."""

    x: float
    y: float
    z0: float
    z1: float
    r0: float
    r1: float

    def bounds(self) -> Bounds:
        r = max(self.r0, self.r1)
        return (self.x - r, self.y - r, self.z0), (self.x + r, self.y + r, self.z1)

    def inside(self, x, y, z):
        radius = self.r0 + (self.r1 - self.r0) * (z - self.z0) / (self.z1 - self.z0)
        disc = (x - self.x) ** 2 + (y - self.y) ** 2 <= np.maximum(radius, 0.0) ** 2
        return disc & (z >= self.z0) & (z <= self.z1)


@dataclass(frozen=True)
class Ring:
    """A torus standing upright in the vertical plane at azimuth `yaw` (a handle)."""

    centre: Point
    radius: float
    thickness: float
    yaw: float = 0.0

    def bounds(self) -> Bounds:
        r = self.radius + self.thickness
        return _around(self.centre, (r, r, r))

    def inside(self, x, y, z):
        dx, dy, dz = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        along, across = cos * dx + sin * dy, cos * dy - sin * dx
        rim = np.sqrt(along**2 + dz**2) - self.radius
        return rim**2 + across**2 <= self.thickness**2


def rasterise(
    parts: list[Part], lean: tuple[float, float] = (0.0, 0.0), shift: tuple[float, float] = (0, 0)
) -> Bool[np.ndarray, "32 32 32"]:
    """The union of `parts`, cut at the ground.

    Args:
      parts: solids in the object frame.
      lean: sideways shift (x, y) of the body in voxels at LEAN_HEIGHT, growing linearly.
      shift: sideways shift (x, y) of the whole object, in voxels.
    """
    solid = np.zeros((RESOLUTION,) * 3, dtype=bool)
    rise = np.maximum(_CENTRES_Z - LEAN_START, 0.0) / LEAN_HEIGHT
    offset = [rise * lean[axis] + shift[axis] for axis in (0, 1)]
    for part in parts:
        low, high = part.bounds()
        bottom, top = _span(_CENTRES_Z, max(low[2], 0.0), high[2])
        window = [slice(bottom, top)]
        for axis in (1, 0):
            moved = offset[axis][bottom:top]
            if moved.size == 0:
                break
            span = _span(_CENTRES_XY, low[axis] + moved.min(), high[axis] + moved.max())
            window.insert(0, slice(*span))
        else:
            ix, iy, iz = window
            x = _CENTRES_XY[ix, None, None] - offset[0][None, None, iz]
            y = _CENTRES_XY[None, iy, None] - offset[1][None, None, iz]
            solid[ix, iy, iz] |= part.inside(x, y, _CENTRES_Z[None, None, iz])
    return solid


def _span(centres: np.ndarray, low: float, high: float) -> tuple[int, int]:
    return int(np.searchsorted(centres, low - 1e-4)), int(np.searchsorted(centres, high + 1e-4))


def _around(centre: Point, half: Point) -> Bounds:
    low = (centre[0] - half[0], centre[1] - half[1], centre[2] - half[2])
    return low, (centre[0] + half[0], centre[1] + half[1], centre[2] + half[2])
