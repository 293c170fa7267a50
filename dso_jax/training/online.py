"""Batches on the devices, with conditions as they are stored or computed from images there.

A stored condition is 2.8 MB, the image it comes from 0.8 MB; computing it takes about 3 % of what a
pair costs in the step. Nothing learns through it, so it is a program of its own before the step.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, UInt8

from dso_jax import conditioning, pretrained, toybox
from dso_jax.config import Config
from dso_jax.dataset.store import Dataset
from dso_jax.errors import UsageError
from dso_jax.models import DINOv2Config
from dso_jax.pretrained import image_encoder
from dso_jax.training import sharding

logger = logging.getLogger(__name__)
ONLINE = "online"
AT_ONCE = 4  # images a device encodes together: without cuDNN, attention keeps its weights
Encoder = tuple[DINOv2Config, dict] | Literal["toybox"]
Feed = Callable[[dict], dict]


def open_dataset(config: Config) -> Dataset:
    """`config.data`, with images in the place of conditions if these are computed online."""
    return Dataset(config.data, images=config.conditions == ONLINE)


def load_encoder(
    config: Config, dataset: Dataset, mesh: Mesh, given: Encoder | None = None
) -> Encoder | None:
    """The image encoder, whole on every device; None where conditions are stored.

    Args:
        config: may name it.
        dataset: may say through which one its samples were made.
        mesh: its devices.
        given: one that is loaded already.

    Raises:
        UsageError: it is nowhere, or cannot be read.
    """
    if config.conditions != ONLINE:
        return None
    if given is not None:
        return given
    made_with = dataset.meta.get("encoder")
    name = config.image_encoder or made_with or image_encoder.DEFAULT
    if made_with not in (None, name):
        meta = dataset.folder / "meta.json"
        logger.warning(
            "%s: the samples were made through encoder %s, not %s", meta, made_with, name
        )
    if name == "toybox":
        return "toybox"
    return pretrained.load_image_encoder(name, sharding=sharding.replicated(mesh))


def check_fit(dataset: Dataset, encoder: Encoder | None, base: Any) -> None:
    """Refuse conditions, or images, that are not what the generator, or the encoder, takes.

    Raises:
        UsageError: naming meta.json or the encoder, and both sizes.
    """
    meta, channels = dataset.folder / "meta.json", base.flow_config.cond_channels
    shape = dataset.condition_shape
    if encoder is None:
        if shape[-1] != channels:
            raise UsageError(
                f"{meta}: condition_shape is {shape}, {base.name} takes {channels} channels"
            )
        return
    if isinstance(encoder, str):
        edge, width = toybox.IMAGE_SIZE, toybox.COND_CHANNELS
    else:
        edge, width = encoder[0].image_size, encoder[0].width
    if shape != (edge, edge, 3):
        raise UsageError(f"{meta}: image_shape is {shape}, the encoder takes {(edge, edge, 3)}")
    if width != channels:
        raise UsageError(
            f"the image encoder gives conditions of {width} channels, {base.name} takes {channels}"
        )


def make_feed(config: Config, encoder: Encoder | None, mesh: Mesh) -> Feed:
    """The function from a batch of `data.batches` to the step's, spread over the devices."""
    if encoder is None:
        return functools.partial(sharding.to_device, mesh=mesh)
    if isinstance(encoder, str):
        return functools.partial(_toybox_feed, mesh=mesh)
    network, params = encoder
    spread, everywhere = sharding.by_example(mesh), sharding.replicated(mesh)
    params = sharding.place(params, everywhere)

    @functools.partial(jax.jit, in_shardings=(everywhere, spread), out_shardings=spread)
    def encode(params: dict, images: UInt8[Array, "B E E 3"]) -> Float32[Array, "B S D"]:
        parts = _parts(len(images) // mesh.devices.size)
        # Every `parts`-th image, so that none changes its device.
        groups = images.reshape(-1, parts, *images.shape[1:]).swapaxes(0, 1)
        dtype = jnp.dtype(config.system.dtype)
        features = functools.partial(conditioning.features, network, params, dtype=dtype)
        found = jax.lax.map(features, groups)
        return found.swapaxes(0, 1).reshape(-1, *found.shape[2:])

    def feed(batch: dict) -> dict:
        placed = sharding.to_device(batch, mesh)
        return placed | {"cond": encode(params, placed["cond"])}

    return feed


def _toybox_feed(batch: dict, mesh: Mesh) -> dict:
    """The toybox's encoder is a few lines of numpy."""
    pixels = batch["cond"].astype(np.float32) / 255
    return sharding.to_device(batch | {"cond": toybox.condition(pixels)}, mesh)


def _parts(images: int) -> int:
    """Into how many equal groups, of at most `AT_ONCE`, a device's images are split."""
    return next(n for n in range(1, images + 1) if images % n == 0 and images // n <= AT_ONCE)
