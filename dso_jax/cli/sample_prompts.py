"""One picture -> what the flow attends to: DINOv2's features, or the toybox's own tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from dso_jax import background, conditioning, images, pretrained, toybox
from dso_jax.errors import UsageError
from dso_jax.pretrained import hub, image_encoder, pipeline

TOYBOX = "toybox:"  # and a seed: the picture of that object, as the toybox draws it
Pixels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Conditioning:
    """What a generator says about its conditions, read before its weights.

    Attributes:
      base: its name.
      channels: of its conditions.
      encoder: the image encoder that it names, if any.
    """

    base: str
    channels: int
    encoder: str | None


def conditioning_of(base: str) -> Conditioning:
    """Looks into a generator's folder.

    Raises:
      UsageError: no such generator, or one that is conditioned on text.
    """
    folder = pretrained.resolve(base)
    arguments = pipeline.arguments(folder)
    if "text_cond_model" in arguments:
        raise UsageError(
            f"base {base}: is conditioned on text; expected a generator that takes pictures, such "
            f"as {', '.join([*hub.EMBEDDED, 'TRELLIS-image-large'])}"
        )
    channels = pretrained.flow_config(base).cond_channels
    encoder = arguments.get("image_cond_model")
    return Conditioning(base, channels, encoder if isinstance(encoder, str) else None)


def read(name: str, remover: str | None) -> Pixels:
    """The pixels of a picture file, cut out and cropped, or those of `toybox:SEED`.

    A file of the size that the toybox renders is left as it is.

    Args:
      remover: `rembg`, or the path of a U2-Net `.onnx`; None takes rembg if it is installed.

    Raises:
      UsageError: names the file, and why it cannot be used.
    """
    if name.startswith(TOYBOX):
        return _drawn(name)
    picture = images.open_image(name)
    if picture.size == (toybox.IMAGE_SIZE, toybox.IMAGE_SIZE):
        return np.asarray(picture.convert("RGB"))
    return images.prepare(picture, _remover(remover), name=name)


def condition(
    pixels: Pixels, name: str, wanted: Conditioning, encoder: str | None
) -> Float[np.ndarray, "1 S D"]:
    """The condition of one picture.

    Args:
      name: of the picture, for messages.
      wanted: by the generator.
      encoder: as `pretrained.load_image_encoder` takes it; None takes the one that is named.

    Raises:
      UsageError: the picture is not one of this generator's, or the encoder cannot be had or does
        not fit.
    """
    small = pixels.shape[:2] == (toybox.IMAGE_SIZE, toybox.IMAGE_SIZE)
    if wanted.channels == toybox.COND_CHANNELS:
        if not small:
            raise UsageError(
                f"{name}: the toybox's generator knows its own pictures alone; expected "
                f"{TOYBOX}SEED or a {toybox.IMAGE_SIZE} x {toybox.IMAGE_SIZE} picture that the "
                "toybox rendered (for photographs, see --base)"
            )
        return toybox.condition(pixels[None].astype(np.float32) / 255)
    if small:
        raise UsageError(f"{name}: a picture for --base toybox, too small for {wanted.base}")
    encoder = encoder or wanted.encoder or image_encoder.DEFAULT
    config, params = pretrained.load_image_encoder(encoder)
    if config.width != wanted.channels:
        raise UsageError(
            f"encoder {encoder}: gives {config.width} channels, but {wanted.base} takes "
            f"{wanted.channels}"
        )
    return conditioning.encode(config, params, pixels[None], batch=1)


def _remover(choice: str | None) -> background.Remover | None:
    if choice == "rembg":
        return background.rembg_session()
    return background.find(choice)


def _drawn(name: str) -> Pixels:
    digits = name.removeprefix(TOYBOX)
    if not digits.isdecimal():
        raise UsageError(f"{name}: expected {TOYBOX}SEED with a whole number, such as {TOYBOX}3")
    solid = toybox.make_objects([int(digits)])
    # In bytes, as a PNG has it: the drawn picture and its file are then one prompt.
    return toybox.image_to_uint8(toybox.render(solid))[0]
