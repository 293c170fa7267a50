"""Small shaded pictures of objects on the ground, drawn with numpy.

An orthographic camera looks down on the origin of the ground z = 0. A surface is drawn by covering
every triangle with points at most a pixel apart and keeping the nearest at each pixel: no GPU, no
window system, and tens of milliseconds for an object of 32^3 voxels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy import ndimage
from skimage import measure

UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])  # the quaternion of the start pose
LIGHT = np.array([-0.25, -0.85, 1.0]) / np.linalg.norm([-0.25, -0.85, 1.0])
AMBIENT = 0.5
CREASE = np.cos(np.radians(35))
SHADOW = 0.38  # darkest shadow, as opacity
SHADOW_GRAIN = 2  # fine pixels to a pixel of the shadow, which is blurred anyway
OVERLAP = 1.2  # closer than a pixel apart, or some pixels fall between the points
LOGIT_RANGE = 4.0  # beyond this a logit says no more about where the surface is


class Surface(NamedTuple):
    """A triangle mesh in units of the unit cube [-0.5, 0.5]^3, z up."""

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]


@dataclass(frozen=True)
class Camera:
    """Where the picture is taken from, and how much of the ground it covers."""

    azimuth: float = 35.0  # degrees around z from the y axis
    elevation: float = 18.0  # degrees above the ground
    extent: float = 1.3  # width and height of the picture, in units of the unit cube
    size: int = 200  # pixels
    supersample: int = 2  # each pixel is the mean of this many squared

    @property
    def towards(self) -> Float[np.ndarray, " 3"]:
        """The direction from the scene to the camera."""
        a, e = np.radians([self.azimuth, self.elevation])
        return np.array([np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), np.sin(e)])

    def project(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Column, row (in fine pixels) and distance towards the camera of world points."""
        a = np.radians(self.azimuth)
        right = np.array([np.cos(a), np.sin(a), 0])
        up = np.cross(self.towards, right)
        fine = self.size * self.supersample
        scale = fine / self.extent
        # The ground's origin sits low in the picture: nearly everything is above it.
        column = fine / 2 + points @ right * scale
        row = fine * 0.8 - points @ up * scale
        return np.stack([column, row, points @ self.towards * scale], axis=-1)


def surface_of_logits(logits: Float[np.ndarray, "R R R"]) -> Surface | None:
    """The surface where occupancy logits cross zero, or None if nothing is occupied."""
    clipped = np.clip(np.asarray(logits, np.float32), -LOGIT_RANGE, LOGIT_RANGE)
    if not (clipped > 0).any():
        return None
    padded = np.pad(clipped, 1, constant_values=-LOGIT_RANGE)  # closes what touches the border
    vertices, faces, _, _ = measure.marching_cubes(padded, 0.0)
    return Surface((vertices - 0.5) / clipped.shape[0] - 0.5, faces.astype(np.int64))


def turned(surface: Surface, quaternion: Float[np.ndarray, " 4"] = UPRIGHT) -> Surface:
    """The surface turned by a unit quaternion (w, x, y, z), then put on the ground."""
    w, *xyz = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    twice = 2 * np.cross(xyz, surface.vertices)
    vertices = surface.vertices + w * twice + np.cross(xyz, twice)
    low, high = vertices.min(0), vertices.max(0)
    middle = (low + high) / 2
    return Surface(vertices - [middle[0], middle[1], low[2]], surface.faces)


def draw(
    surface: Surface | None, colour: tuple[int, int, int], camera: Camera | None = None
) -> UInt8[np.ndarray, "S S 4"]:
    """Draws a surface that lies on the ground, with its shadow; the rest is transparent.

    Args:
        surface: in world coordinates, as `turned` gives it; None draws the empty ground.
        colour: of the surface in full light, 0-255.
        camera: how it is seen; `Camera()` by default.
    """
    camera = camera or Camera()
    fine = camera.size * camera.supersample
    canvas = np.zeros((fine, fine, 4), np.float32)
    if surface is not None:
        corners = surface.vertices[surface.faces]
        outward = _outward(corners)
        canvas[..., 3] = _shadow(corners[outward @ LIGHT > 0], camera)
        # Both sides are drawn: not every surface is closed, or wound alike. From the back it is lit
        # as if that were its front.
        side = np.where(outward @ camera.towards < 0, -1.0, 1.0)
        normals = _normals(surface, outward) * side[:, None, None]
        light = AMBIENT + (1 - AMBIENT) * np.clip(normals @ LIGHT, 0, 1)
        seen = _cover(np.concatenate([camera.project(corners), light[..., None]], axis=2))
        column, row, depth, light = seen.T
        drawn = (column >= 0) & (column < fine) & (row >= 0) & (row < fine)
        pixel = row[drawn].astype(int) * fine + column[drawn].astype(int)
        order = np.argsort(depth[drawn])  # the nearest is written last and stays
        shade = np.zeros(fine * fine, np.float32)
        shade[pixel[order]] = light[drawn][order]
        shade = shade.reshape(fine, fine, 1)
        lit = shade[..., 0] > 0
        canvas[..., :3] = shade * (np.asarray(colour, np.float32) / 255)
        canvas[lit, 3] = 1
    return _shrink(canvas, camera.supersample)


def png(pixels: UInt8[np.ndarray, "H W C"]) -> bytes:
    """Encodes RGB or RGBA pixels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _cover(corners: Float[np.ndarray, "F 3 D"]) -> Float[np.ndarray, "n D"]:
    """Points on every triangle, at most a pixel apart in the first two of their D coordinates.

    Each triangle is covered by rows along its longest edge, so that slivers take few points.
    """
    corners = corners.astype(np.float32)  # a thousandth of a pixel
    flat = corners[..., :2]
    edges = np.roll(flat, -1, axis=1) - flat  # from corner k to the next
    lengths = np.sqrt((edges**2).sum(2))
    longest = lengths.argmax(1)
    turned = np.take_along_axis(corners, ((longest[:, None] + np.arange(3)) % 3)[..., None], axis=1)
    base = lengths.max(1, initial=0)
    twice_area = np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0])
    height = twice_area / np.maximum(base, 1e-9)
    columns, rows = (np.ceil(np.maximum(x, 1) * OVERLAP).astype(int) + 1 for x in (base, height))
    count = columns * rows
    owner = np.repeat(np.arange(len(corners), dtype=np.int32), count)
    first = (np.cumsum(count) - count).astype(np.int32)
    place = np.arange(len(owner), dtype=np.int32) - first[owner]
    row = place // columns.astype(np.int32)[owner]
    column = place - row * columns.astype(np.int32)[owner]
    up = row.astype(np.float32) * (1 / (rows - 1)).astype(np.float32)[owner]
    along = column.astype(np.float32) * (1 / (columns - 1)).astype(np.float32)[owner] * (1 - up)
    a, b, c = (turned[:, k].T for k in range(3))
    return (a[:, owner] + (b - a)[:, owner] * along + (c - a)[:, owner] * up).T


def _outward(corners: Float[np.ndarray, "F 3 3"]) -> Float[np.ndarray, "F 3"]:
    """Normals of the triangles, as long as twice their area, pointing out of the solid."""
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    volume = np.einsum("fi,fi->", corners.mean(1), normals)
    return np.copysign(1, volume) * normals


def _normals(surface: Surface, outward: Float[np.ndarray, "F 3"]) -> Float[np.ndarray, "F 3 3"]:
    """Unit normals of each triangle's corners: smooth over the surface, but not over its creases.

    A vertex takes the area-weighted mean of its triangles', except in a triangle that is turned
    against that mean by more than a crease.
    """
    index, count = surface.faces.ravel(), len(surface.vertices)
    total = np.stack(
        [np.bincount(index, np.repeat(outward[:, k], 3), count) for k in range(3)], axis=1
    )
    smooth = _unit(total)[surface.faces]
    flat = _unit(outward)[:, None]
    return np.where((smooth * flat).sum(2, keepdims=True) < CREASE, flat, smooth)


def _unit(vectors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _shadow(lit: Float[np.ndarray, "F 3 3"], camera: Camera) -> Float[np.ndarray, "fine fine"]:
    """Opacity of the shadow: the triangles that face the light, laid on the ground and blurred."""
    laid = camera.project(lit - lit[..., 2:] / LIGHT[2] * LIGHT)[..., :2] / SHADOW_GRAIN
    size = -(-camera.size * camera.supersample // SHADOW_GRAIN)
    points = _cover(laid)
    column, row = points[((points >= 0) & (points < size)).all(1)].astype(int).T
    mask = np.zeros((size, size), np.float32)
    mask[row, column] = SHADOW
    fine = camera.size * camera.supersample
    mask = np.kron(mask, np.ones((SHADOW_GRAIN, SHADOW_GRAIN), np.float32))[:fine, :fine]
    return ndimage.gaussian_filter(mask, 1.5 * camera.supersample)


def _shrink(canvas: np.ndarray, factor: int) -> np.ndarray:
    """Averages blocks of pixels; colour counts by opacity, so edges do not darken."""
    size = canvas.shape[0] // factor
    blocks = canvas.reshape(size, factor, size, factor, 4)
    alpha = blocks[..., 3].mean((1, 3))
    colour = (blocks[..., :3] * blocks[..., 3:]).mean((1, 3)) / np.maximum(alpha, 1e-6)[..., None]
    out = np.concatenate([colour, alpha[..., None]], axis=2)
    return np.round(255 * np.clip(out, 0, 1)).astype(np.uint8)
