"""Pictures of voxel objects, and the fixed patch tokens that condition the toybox flow.

One orthographic camera per view looks at the middle of the grid from ELEVATION_DEG above. Rays are
the same for all objects: a picture is one gather of precomputed cells per step along the rays.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dso_jax.toybox.shapes import RESOLUTION

IMAGE_SIZE = 32
VIEW_AZIMUTHS_DEG = (35.0, -35.0, 125.0, -125.0)  # of the camera, from the front (-y) to the right
ELEVATION_DEG = 20.0
PIXEL_PITCH = 1.13  # voxels per pixel: no object reaches the edge of its picture
RAY_STEPS = 64
RAY_STEP = 0.65  # voxels; the rays span a little more than any object's depth

PATCH = 8
POSITION_CHANNELS = 16
COND_TOKENS = (IMAGE_SIZE // PATCH) ** 2
COND_CHANNELS = PATCH * PATCH * 3 + POSITION_CHANNELS
PIXEL_MEAN, PIXEL_STD = 0.08, 0.2  # over the training objects' pictures, rounded

# Two lamps, in camera axes (right, up, towards the camera): one per colour channel.
_LAMPS = np.array([[0.75, 0.35, 0.56], [-0.45, 0.78, 0.43]], dtype=np.float32)
_AMBIENT = 0.25
_BATCH = 256

_PAD = 2  # empty cells around the grid: the reach of the ball that normals are taken from
_STRIDES = np.array([(RESOLUTION + 2 * _PAD) ** 2, RESOLUTION + 2 * _PAD, 1])
_OFFSETS = np.indices((2 * _PAD + 1,) * 3).reshape(3, -1).T - _PAD
_OFFSETS = _OFFSETS[(_OFFSETS**2).sum(axis=1) <= _PAD**2 + 1]
_BALL = _OFFSETS.astype(np.float32)
_BALL_CELLS = _OFFSETS @ _STRIDES


def render(
    occupancy: Bool[np.ndarray, "n 32 32 32"] | UInt8[np.ndarray, "n 32 32 32"], view: int = 0
) -> Float[np.ndarray, "n 32 32 3"]:
    """Pictures in [0, 1] on black: red and green are Lambert shading by two lamps, blue is depth.

    Args:
      occupancy: solid voxels [x, y, z], z up; non-zero is occupied.
      view: index into VIEW_AZIMUTHS_DEG.

    Raises:
      ValueError: on a wrong shape or an unknown view.
    """
    solid = np.asarray(occupancy) > 0
    if solid.ndim != 4 or solid.shape[1:] != (RESOLUTION,) * 3:
        raise ValueError(f"occupancy: expected shape (N, 32, 32, 32), got {solid.shape}")
    if not 0 <= view < len(VIEW_AZIMUTHS_DEG):
        raise ValueError(f"view: expected 0..{len(VIEW_AZIMUTHS_DEG) - 1}, got {view}")
    images = np.zeros((len(solid), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    for start in range(0, len(solid), _BATCH):
        images[start : start + _BATCH] = _render_batch(solid[start : start + _BATCH], view)
    return images


def condition(images: Float[np.ndarray, "n 32 32 3"]) -> Float[np.ndarray, "n 16 208"]:
    """Tokens for cross-attention: standardised 8x8 patches, then sinusoids of their position."""
    images = np.asarray(images, dtype=np.float32)
    side = IMAGE_SIZE // PATCH
    patches = images.reshape(-1, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(len(images), COND_TOKENS, -1)
    position = np.broadcast_to(_positions(), (len(images), COND_TOKENS, POSITION_CHANNELS))
    return np.concatenate([(patches - PIXEL_MEAN) / PIXEL_STD, position], axis=-1)


def image_to_uint8(images: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Images in [0, 1] as bytes, for PIL and reports."""
    return np.round(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)


def _render_batch(solid: Bool[np.ndarray, "n 32 32 32"], view: int) -> np.ndarray:
    camera = _camera(view)
    # Objects run along the fast axis: every gathered ray sample is then one contiguous row.
    padded = np.pad(solid.view(np.uint8), ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (_PAD, _PAD)))
    cells = np.ascontiguousarray(padded.reshape(len(solid), -1).T)  # (cells, n)
    nearest = np.zeros((IMAGE_SIZE**2, len(solid)), dtype=np.uint8)  # steps left at the first hit
    for step, row in enumerate(camera.rays.T):
        np.maximum(nearest, cells[row] * np.uint8(RAY_STEPS - step), out=nearest)
    pixel, n = np.nonzero(nearest)
    left = nearest[pixel, n]
    hit = camera.rays[pixel, RAY_STEPS - left]

    # The normal points away from the mass in a small ball around the voxel that was hit.
    near = cells[hit[:, None] + _BALL_CELLS, n[:, None]]
    normal = -(near.astype(np.float32) @ _BALL)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    shade = np.maximum(normal @ (_LAMPS @ camera.axes).T, 0.0)
    image = np.zeros((len(solid), IMAGE_SIZE**2, 3), dtype=np.float32)
    image[n, pixel, :2] = _AMBIENT + (1.0 - _AMBIENT) * shade
    image[n, pixel, 2] = left / RAY_STEPS
    return image.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3)


class _Camera(NamedTuple):
    rays: Int[np.ndarray, "pixels steps"]  # padded cell of every step, nearest first
    axes: Float[np.ndarray, "3 3"]  # rows: right, up, towards the camera


@functools.cache
def _camera(view: int) -> _Camera:
    azimuth, elevation = np.radians(VIEW_AZIMUTHS_DEG[view]), np.radians(ELEVATION_DEG)
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    flat = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    towards = np.cos(elevation) * flat + np.array([0.0, 0.0, np.sin(elevation)])
    up = np.cross(towards, right)

    offset = (np.arange(IMAGE_SIZE) + 0.5 - IMAGE_SIZE / 2) * PIXEL_PITCH
    depth = (np.arange(RAY_STEPS) + 0.5 - RAY_STEPS / 2) * RAY_STEP
    point = (
        RESOLUTION / 2
        - offset[:, None, None, None] * up  # rows run downwards
        + offset[None, :, None, None] * right
        - depth[None, None, :, None] * towards
    )
    voxel = np.floor(point).astype(np.int64)
    inside = ((voxel >= 0) & (voxel < RESOLUTION)).all(axis=-1)
    cell = np.where(inside, (voxel + _PAD) @ _STRIDES, 0)  # cell 0 is padding, so always empty
    axes = np.stack([right, up, towards]).astype(np.float32)
    return _Camera(cell.reshape(IMAGE_SIZE**2, RAY_STEPS), axes)


@functools.cache
def _positions() -> Float[np.ndarray, "16 16"]:
    """Sine and cosine of each patch's row and column at four frequencies."""
    side = IMAGE_SIZE // PATCH
    place = (np.arange(side) + 0.5) / side
    angle = np.pi * place[:, None] * 2.0 ** np.arange(POSITION_CHANNELS // 4)
    wave = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)
    rows = np.repeat(wave, side, axis=0)
    columns = np.tile(wave, (side, 1))
    return np.concatenate([rows, columns], axis=-1)
