"""The prompts that a command line asks for: checked before a generator is loaded, read after."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from dso_jax import background, conditioning, image_files, images, pretrained, toybox
from dso_jax.cli import sample_prompts
from dso_jax.errors import UsageError
from dso_jax.generation import batches
from dso_jax.generation.prompt_sources import FileSource, Source, ToyboxSource, name_files
from dso_jax.pretrained import image_encoder

_TRIED = 8  # pictures that are read before the generator is loaded, until one can be used


class Opened(NamedTuple):
    """Prompts that are there.

    Attributes:
      load: makes them ready, with the image encoder on the devices, for conditions of a type.
      origin: what decides their conditions, JSON values.
    """

    load: Callable[[np.dtype], Source]
    origin: dict[str, Any]


def open_source(base: str, options: argparse.Namespace) -> Opened:
    """Finds the pictures and tries the first ones.

    Raises:
      UsageError: they are missing, have the same name, or none of the first can be used; or the
        generator takes other prompts.
    """
    files = [] if options.images is None else image_files.find(options.images)
    name_files(files, by_folder=options.views)
    wanted = sample_prompts.conditioning_of(base)
    own = wanted.channels == toybox.COND_CHANNELS
    if options.prompts is not None:
        if not own:
            raise UsageError(f"generate: --prompts toybox is for --base toybox, not {base}")
        return Opened(lambda _: ToyboxSource("preference", options.prompts), {"encoder": "toybox"})
    read = _rendered if own else image_files.prepared(_remover(options.remover))
    _try(files, read)
    encoder = "toybox" if own else options.encoder or wanted.encoder or image_encoder.DEFAULT

    def load(dtype: np.dtype) -> FileSource:
        encode, edge, condition = _own_encoder() if own else _dinov2(encoder, wanted, dtype)
        return FileSource(
            files,
            read,
            encode,
            image_shape=(edge, edge, 3),
            condition_shape=condition,
            by_folder=options.views,
        )

    return Opened(load, {"encoder": encoder})


def _try(files: list[Path], read: image_files.Read) -> None:
    """Refuses pictures of which none can be used, before gigabytes are loaded for them."""
    reason = ""
    for picture in image_files.read_all(files[:_TRIED], read):
        if picture.pixels is not None:
            return
        reason = reason or picture.error
    several = f"; none of the first {min(len(files), _TRIED)} of {len(files)} pictures can be used"
    raise UsageError(f"generate: {reason}{several if len(files) > 1 else ''}")


def _rendered(path: Path) -> UInt8[np.ndarray, "32 32 3"]:
    """A picture that the toybox rendered."""
    picture = images.open_image(path)
    edge = toybox.IMAGE_SIZE
    if picture.size != (edge, edge):
        raise UsageError(
            f"{path}: {picture.width} x {picture.height} pixels; the toybox's generator knows its "
            f"own {edge} x {edge} pictures alone (for photographs, see --base)"
        )
    return np.asarray(picture.convert("RGB"))


def _own_encoder():
    def encode(pixels: UInt8[np.ndarray, "m 32 32 3"], _) -> Float[np.ndarray, "m S D"]:
        return toybox.condition(pixels.astype(np.float32) / 255)

    return encode, toybox.IMAGE_SIZE, (toybox.COND_TOKENS, toybox.COND_CHANNELS)


def _dinov2(name: str, wanted: sample_prompts.Conditioning, dtype: np.dtype):
    import jax

    config, params = pretrained.load_image_encoder(name)
    if config.width != wanted.channels:
        raise UsageError(
            f"encoder {name}: gives {config.width} channels, but {wanted.base} takes "
            f"{wanted.channels}"
        )
    copies = batches.copies(params, jax.local_devices())
    tokens = 1 + config.num_registers + (config.image_size // config.patch_size) ** 2

    def encode(pixels: UInt8[np.ndarray, "m E E 3"], groups: Sequence[int]):
        return conditioning.encode(config, copies, pixels, result=dtype, groups=groups)

    return encode, images.SIZE, (tokens, config.width)


def _remover(choice: str | None) -> background.Remover | None:
    """One for a pool of threads, each of which takes one core."""
    if choice == "rembg":
        return background.rembg_session()
    if choice is not None:
        return background.u2net(choice, threads=1)
    return background.find()
