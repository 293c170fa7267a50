"""A picture of the first objects of a dataset: prompt, start pose, rest pose, label."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from dso_jax.atomic import write_atomic
from dso_jax.report import pictures
from dso_jax.report.gallery import FALLS, STANDS, START

OBJECTS = 12
_COLUMNS = 3
_TILE = 150
_FINEST = 32
_LINE = 30  # of text below each object
_GAP = 12
_GROUND, _INK = (247, 247, 245), (40, 42, 46)


@dataclass(frozen=True)
class Entry:
    """One object of the sheet.

    Attributes:
      image: (h,w,3) of its prompt, uint8 or in [0, 1].
      logits: its occupancy.
      quaternion: (4,) wxyz at rest; NaN where it has no label.
      stands: its label.
      text: what to write below.
    """

    image: np.ndarray
    logits: Float[np.ndarray, "R R R"]
    quaternion: Float[np.ndarray, " 4"]
    stands: bool
    text: str


def write(path: Path, entries: Sequence[Entry], title: str) -> None:
    """Writes the sheet as a PNG file.

    Raises:
      OSError: the file cannot be written.
    """
    data = io.BytesIO()
    _draw(entries, title).save(data, "PNG", optimize=True)
    write_atomic(path, lambda part: _put(part, data.getvalue()))


def _draw(entries: Sequence[Entry], title: str) -> Image.Image:
    width, height = 3 * _TILE + _GAP, _TILE + _LINE + _GAP
    rows = -(-len(entries) // _COLUMNS)
    columns = min(len(entries), _COLUMNS)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + 2 * _LINE), _GROUND)
    text = ImageDraw.Draw(sheet)
    heading, small = ImageFont.load_default(18), ImageFont.load_default(14)
    text.text((_GAP, _GAP), title, _INK, heading)
    for place, entry in enumerate(entries):
        row, column = divmod(place, _COLUMNS)
        x, y = _GAP + column * width, 2 * _LINE + row * height
        for turn, tile in enumerate(_tiles(entry)):
            sheet.paste(tile, (x + turn * _TILE, y), tile)
        text.text((x, y + _TILE + 4), entry.text, _INK, small)
    return sheet


def _tiles(entry: Entry) -> list[Image.Image]:
    """Prompt, start and rest."""
    image = entry.image
    if image.dtype != np.uint8:
        image = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    side = _TILE - _GAP
    prompt = Image.new("RGBA", (_TILE, _TILE))
    prompt.paste(Image.fromarray(image).resize((side, side)), (0, _GAP // 2))
    surface = pictures.surface_of_logits(_coarse(entry.logits))
    camera = pictures.Camera(size=_TILE)
    drawn = [pictures.draw(surface and pictures.turned(surface), START, camera)]
    if surface is not None and np.isfinite(entry.quaternion).all():
        colour = STANDS if entry.stands else FALLS
        drawn.append(pictures.draw(pictures.turned(surface, entry.quaternion), colour, camera))
    return [prompt, *map(Image.fromarray, drawn)]


def _coarse(logits: Float[np.ndarray, "R R R"]) -> np.ndarray:
    """A grid no finer than a tile can show; what is drawn of noise at 64^3 would take minutes."""
    while len(logits) > _FINEST and len(logits) % 2 == 0:
        half = len(logits) // 2
        logits = logits.reshape(half, 2, half, 2, half, 2).max((1, 3, 5))
    return logits


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)
