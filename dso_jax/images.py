"""Image files -> the square pictures on black that TRELLIS is conditioned on (its preprocessing).

An image with transparency is used as it is; any other first loses its background to a `Remover`.
The object is then cropped with a margin, scaled to 518 x 518 and laid on black. The numbers are
TRELLIS's (`preprocess_image`), and so is every rounding: pixels are equal to upstream's. Two things
upstream leaves out: EXIF orientation is applied to all images, and transparency counts in every
mode that has it (palettes, grey with alpha), not in RGBA alone.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from dso_jax.background import Remover
from dso_jax.errors import UsageError

SIZE = 518  # edge of a prepared image: 37 patches of 14
MAX_PIXELS = 89_478_485  # a file may hold: where Pillow begins to suspect a decompression bomb
_MAX_SIDE = 13_376  # of a crop: where Pillow is sure of one; enough for any square file
_MARGIN = 1.2  # side of the crop / extent of the object
_REMOVER_SIDE = 1024  # the longer side of what a remover gets to see, at most
_MASK = [255 * (alpha > 204) for alpha in range(256)]  # 0.8 * 255: what counts as the object
# Pillow reads more, but hands PostScript and metafiles to other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")
# What Pillow's decoders were seen to raise for damaged files, and what it names itself.
_DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def open_image(path: Path | str) -> Image.Image:
    """Decode a file: 8 bits a channel, upright, RGBA if it has transparency and RGB otherwise.

    Of an animation the first frame counts; colour profiles are ignored, as upstream does.

    Raises:
      UsageError: names the file that is missing, damaged, too large or of an unusable kind.
    """
    try:
        with Image.open(path, formats=_FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            file.load()
            ImageOps.exif_transpose(file, in_place=True)
            return _eight_bits(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UsageError(
            f"{path}: more than {MAX_PIXELS // 10**6} million pixels; scale it down first"
        ) from None
    except UnidentifiedImageError:
        raise UsageError(
            f"{path}: damaged, or not an image of a known format ({', '.join(_FORMATS)})"
        ) from None
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read as an image ({reason})") from error


def prepare(
    image: Image.Image, remover: Remover | None = None, *, name: str = "image"
) -> UInt8[np.ndarray, "518 518 3"]:
    """Cut the object out, crop it with a margin, scale it, and lay it on black.

    Args:
      image: RGB or RGBA, as `open_image` returns it.
      remover: used where no pixel is transparent.
      name: of the image, for messages.

    Raises:
      UsageError: nothing is transparent and there is no remover that works, or nothing (or next
        to nothing) is left of the object.
    """
    return _compose(_crop(_cut_out(image, remover, name), name))


def _eight_bits(image: Image.Image) -> Image.Image:
    """RGB or RGBA of any mode; of 16 bits the upper 8 count, as in Pillow's 16-bit RGB."""
    if image.mode.startswith("I"):  # grey of 16 or 32 bits, which Pillow would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("grey values outside 0 .. 65535")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels, expected 8 or 16 bits a channel")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _cut_out(image: Image.Image, remover: Remover | None, name: str) -> Image.Image:
    """RGBA; a remover's colours are already multiplied by alpha, which then enters twice."""
    if image.mode == "RGBA" and np.asarray(image.getchannel("A")).min() < 255:
        return image
    if remover is None:
        raise UsageError(
            f"{name}: has no transparent background, and there is no background remover; cut the "
            "object out, give a U2-Net .onnx file, or install rembg"
        )
    image = image.convert("RGB")
    scale = _REMOVER_SIDE / max(image.size)
    if scale < 1:
        width, height = (max(1, int(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    try:
        return remover(image)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _crop(cutout: Image.Image, name: str) -> Image.Image:
    """The square around the mask; it may leave the image, where all is transparent."""
    box = cutout.getchannel("A").point(_MASK).getbbox()
    if box is None:
        raise UsageError(f"{name}: no object: alpha is nowhere above 204 of 255")
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1  # pixels of the mask
    half = int(max(right - left, bottom - top) * _MARGIN) // 2
    if half == 0:
        raise UsageError(f"{name}: the object is less than 3 pixels across")
    if 2 * half > _MAX_SIDE:  # a long strip of a file, but a square crop
        raise UsageError(f"{name}: a crop of {2 * half} pixels square; scale the image down first")
    # A centre may lie between two pixels: rounded half to even, as Pillow's crop does. Not that
    # crop itself, which suspects a bomb earlier.
    x, y = round((left + right) / 2 - half), round((top + bottom) / 2 - half)
    square = Image.new("RGBA", (2 * half, 2 * half))
    square.paste(cutout, (-x, -y))
    return square


def _compose(square: Image.Image) -> UInt8[np.ndarray, "518 518 3"]:
    """Scaled, on black. Pillow weights colours by alpha while it scales RGBA."""
    scaled = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS), np.float32) / 255
    return (scaled[..., :3] * scaled[..., 3:] * 255).astype(np.uint8)  # truncated, as upstream
