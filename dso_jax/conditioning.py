"""Prepared images -> what the flow attends to: DINOv2's features, normalised (spec: trellis, 5).

Shapes: B images of E x E pixels, S = 1 + registers + patches tokens, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8
from PIL import Image

from dso_jax.background import IMAGENET_MEAN, IMAGENET_STD
from dso_jax.generation import batches
from dso_jax.generation.batches import Progress
from dso_jax.models import DINOv2Config, apply_dinov2
from dso_jax.models.layers import Dtype

BATCH = 16  # images a network call: one shape, so one compilation
NORM_EPS = 1e-5
# fp32 products out of three of bf16 parts: half the time of DINOv2 on an H200. The error was 2e-4,
# a tenth of what rounding the result to bf16 adds, and is less since the convolution is exact.
THREE_PARTS = "BF16_BF16_F32_X3"


def encode(
    config: DINOv2Config,
    params: dict | Sequence[dict],
    images: UInt8[np.ndarray, "B E E 3"] | Sequence[Image.Image],
    *,
    batch: int = BATCH,
    dtype: Dtype = jnp.float32,
    result: Dtype = jnp.float32,
    groups: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "B S D"]:
    """Conditions of images, on the host; `features` is the same on the device.

    Args:
      params: the encoder's, or a copy for each device, see `batches.copies`.
      images: as `images.prepare` makes them, or pictures; of whatever size, they are brought to
        the encoder's.
      dtype: of the encoder's blocks; the rest is fp32.
      result: type to which conditions are rounded on the device, before they are copied. A GPU
        computes those of bf16 with `THREE_PARTS`.
      groups: as in `batches.run`.
      progress: called with the number of images that have just finished.
    """
    pixels = _squares(images, config.image_size)
    types = jnp.dtype(dtype).name, jnp.dtype(result).name
    rough = types == ("float32", "bfloat16") and jax.default_backend() == "gpu"
    apply = _compiled(config, *types, THREE_PARTS if rough else "highest")
    copies = [params] if isinstance(params, dict) else params
    functions = [functools.partial(apply, one) for one in copies]
    return batches.run(functions, pixels, size=batch, groups=groups, progress=progress)


def features(
    config: DINOv2Config,
    params: dict,
    images: UInt8[Array, "B E E 3"],
    *,
    dtype: Dtype = jnp.float32,
    precision: str = "highest",
) -> Float32[Array, "B S D"]:
    """Tokens [CLS, registers, patches] before DINOv2's final norm, each normalised without affine.

    A pure function for use inside `jax.jit`; `dtype` and `precision` as in `apply_dinov2`.
    """
    scaled = images.astype(jnp.float32) / 255
    normal = (scaled - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
    pixels = jnp.moveaxis(normal, -1, 1)
    tokens = apply_dinov2(config, params, pixels, dtype=dtype, precision=precision)
    variance = jnp.var(tokens, axis=-1, keepdims=True)  # in two passes; the default takes one
    return jax.nn.standardize(tokens, variance=variance, epsilon=NORM_EPS)


def unconditional(conditions: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """What guidance leads away from: zeros, not the features of a black image."""
    return jnp.zeros_like(conditions)


@functools.cache
def _compiled(
    config: DINOv2Config, dtype: str, result: str, precision: str
) -> Callable[[dict, jax.Array], jax.Array]:
    def run(params: dict, x: jax.Array) -> jax.Array:
        return features(config, params, x, dtype=dtype, precision=precision).astype(result)

    return jax.jit(run)


def _squares(images: np.ndarray | Sequence[Image.Image], edge: int) -> UInt8[np.ndarray, "B E E 3"]:
    """All of them; what needs no scaling is not copied."""
    if (
        isinstance(images, np.ndarray)
        and images.dtype == np.uint8
        and images.shape[1:] == (edge, edge, 3)
    ):
        return images
    return np.stack([_square(image, edge) for image in images])


def _square(image: np.ndarray | Image.Image, edge: int) -> UInt8[np.ndarray, "E E 3"]:
    """RGB pixels at the encoder's size, scaled as upstream scales."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:  # 0 to 1 would pass as nearly black
            raise TypeError(f"an image has type {image.dtype}, expected uint8 from 0 to 255")
        if image.shape == (edge, edge, 3):
            return image
        image = Image.fromarray(image)
    # Upstream scales first: an RGBA picture's colours are weighted by alpha, then alpha is dropped.
    return np.asarray(image.resize((edge, edge), Image.Resampling.LANCZOS).convert("RGB"))
