"""Pictures for the tests of image prompts, and what becomes of them by a second hand."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def reference(picture: Image.Image) -> np.ndarray:
    """spec/trellis.md, section 5, written straight down for an RGBA picture."""
    pixels = np.array(picture)
    rows, columns = np.nonzero(pixels[:, :, 3] > 204)
    x0, x1, y0, y1 = columns.min(), columns.max(), rows.min(), rows.max()
    side = int(1.2 * max(x1 - x0, y1 - y0))
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
    left, top = round(float(centre_x - side // 2)), round(float(centre_y - side // 2))
    square = np.zeros((2 * (side // 2), 2 * (side // 2), 4), np.uint8)
    for y in range(len(square)):
        if 0 <= top + y < len(pixels):
            for_x = np.arange(len(square))
            inside = (for_x + left >= 0) & (for_x + left < pixels.shape[1])
            square[y, for_x[inside]] = pixels[top + y, for_x[inside] + left]
    premultiplied = Image.fromarray(square).convert("RGBa")
    scaled = premultiplied.resize((518, 518), Image.Resampling.LANCZOS).convert("RGBA")
    unit = np.array(scaled).astype(np.float32) / 255
    return (unit[:, :, :3] * unit[:, :, 3:4] * 255).astype(np.uint8)


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def cutout(height: int, width: int, box: tuple[int, int, int, int], seed: int = 0) -> Image.Image:
    """Noise in colour and alpha; alpha exceeds 204 only inside `box` (x0, y0, x1, y1 inclusive)."""
    pixels = noise(height, width, 4, seed)
    x0, y0, x1, y1 = box
    alpha = pixels[..., 3] % 205
    inner = slice(y0, y1 + 1), slice(x0, x1 + 1)
    alpha[inner] = pixels[inner][..., 3]
    alpha[y0, x0] = alpha[y1, x1] = 205
    pixels[..., 3] = alpha
    return Image.fromarray(pixels)


def saved(folder: Path, picture: Image.Image, name: str = "picture.png", **options) -> Path:
    path = folder / name
    picture.save(path, **options)
    return path


class Keyed:
    """A remover for tests: noise as alpha, and it remembers what it was shown."""

    def __init__(self):
        self.seen: list[Image.Image] = []

    def __call__(self, image: Image.Image, /) -> Image.Image:
        self.seen.append(image)
        result = image.copy()
        result.putalpha(Image.fromarray(noise(image.height, image.width, 1, seed=9)[..., 0]))
        return result


def png16(kind: int, pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads but does not write."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )
