"""Pictures of voxel objects, and the fixed patch tokens that condition the toybox flow.

One orthographic camera per view looks at the middle of the grid from ELEVATION_DEG above. Rays are
the same for all objects, so a picture is one gather of precomputed voxel indices and an argmax.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from dso_jax.toybox.shapes import RESOLUTION

IMAGE_SIZE = 32
VIEW_AZIMUTHS_DEG = (35.0, -35.0, 125.0, -125.0)  # of the camera, from the front (-y) to the right
ELEVATION_DEG = 20.0
PIXEL_PITCH = 1.06  # voxels per pixel: a 28 voxel object seen from above still fits
RAY_STEPS = 72
RAY_STEP = 0.6  # voxels

PATCH = 8
POSITION_CHANNELS = 16
COND_TOKENS = (IMAGE_SIZE // PATCH) ** 2
COND_CHANNELS = PATCH * PATCH * 3 + POSITION_CHANNELS
PIXEL_MEAN, PIXEL_STD = 0.18, 0.28  # over the training objects' pictures, rounded

# Two lamps, in camera axes (right, up, towards the camera): one per colour channel.
_LAMPS = np.array([[0.75, 0.35, 0.56], [-0.45, 0.78, 0.43]], dtype=np.float32)
_AMBIENT = 0.25
_BATCH = 256


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
    rays, axes = _camera(view)
    flat = np.zeros((len(solid), RESOLUTION**3 + 1), dtype=bool)  # the last cell: outside the grid
    flat[:, :-1] = solid.reshape(len(solid), -1)
    along = np.take(flat, rays, axis=1)  # (n, pixels, steps)
    first = along.argmax(axis=2)
    n, pixel = np.nonzero(np.take_along_axis(along, first[..., None], axis=2)[..., 0])
    step = first[n, pixel]
    x, y, z = np.unravel_index(rays[pixel, step], (RESOLUTION,) * 3)

    density = ndimage.uniform_filter(solid.astype(np.float32), size=(1, 3, 3, 3), mode="constant")
    density = np.pad(density, ((0, 0), (1, 1), (1, 1), (1, 1)))
    x, y, z = x + 1, y + 1, z + 1
    gradient = np.stack(
        [
            density[n, x - 1, y, z] - density[n, x + 1, y, z],
            density[n, x, y - 1, z] - density[n, x, y + 1, z],
            density[n, x, y, z - 1] - density[n, x, y, z + 1],
        ],
        axis=-1,
    )
    normal = gradient / np.maximum(np.linalg.norm(gradient, axis=-1, keepdims=True), 1e-6)
    shade = np.maximum(normal @ axes.T @ _LAMPS.T, 0.0)  # (hits, 2)
    depth = 1.0 - step / RAY_STEPS
    image = np.zeros((len(solid), IMAGE_SIZE**2, 3), dtype=np.float32)
    image[n, pixel, :2] = _AMBIENT + (1.0 - _AMBIENT) * shade
    image[n, pixel, 2] = depth
    return image.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3)


@functools.cache
def _camera(view: int) -> tuple[Int[np.ndarray, "pixels steps"], Float[np.ndarray, "3 3"]]:
    """Flat voxel index at every step of every pixel's ray, and the rows (right, up, towards)."""
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
    cell = np.floor(point).astype(np.int64)
    inside = ((cell >= 0) & (cell < RESOLUTION)).all(axis=-1)
    index = (cell[..., 0] * RESOLUTION + cell[..., 1]) * RESOLUTION + cell[..., 2]
    index = np.where(inside, index, RESOLUTION**3).reshape(IMAGE_SIZE**2, RAY_STEPS)
    return index.astype(np.int32), np.stack([right, up, towards]).astype(np.float32)


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
