"""OBJ text to triangles: `v` and `f` lines, everything else is looks.

All vertex lines are parsed in one call, and all face lines in another, which makes this several
times faster than a general reader. Faces come in the order, and polygons split into the triangles,
that trimesh gives them, because sums over triangles, and so the last bits of a body, depend on it.

Legend: N vertices, F triangles, L lines, T numbers in all lines, n bytes.
"""

from __future__ import annotations

import re
import warnings

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

_NEWLINE, _TAB, _BLANK, _SLASH, _HASH = b"\n\t /#"


def parse_obj(data: bytes) -> tuple[Float[np.ndarray, "N 3"], Int[np.ndarray, "F 3"]]:
    """Vertices and triangles of the whole file; what it does not need it does not look at.

    Raises:
        ValueError: a vertex or face line that is none.
    """
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    if b"\\" in data:
        data = re.sub(rb"\\\r?\n", b" ", data)
    text = np.frombuffer(data + b"\n", np.uint8)
    ends = np.flatnonzero(text == _NEWLINE)
    begins = np.concatenate([[0], ends[:-1] + 1])
    first = text[begins]
    if ((first == _BLANK) | (first == _TAB)).any():
        return parse_obj(re.sub(rb"(?m)^[ \t]+", b"", data))
    second = text[np.minimum(begins + 1, ends)]
    letter = np.where((second == _BLANK) | (second == _TAB), first, 0)
    is_vertex, is_face = letter == ord("v"), letter == ord("f")
    if not is_vertex.any():
        raise ValueError("no vertex lines")
    numbers, counts = _numbers(text, begins, ends, is_vertex, np.float64, "vertex")
    if len(counts) and counts.min() < 3:
        raise ValueError("a vertex with fewer than three coordinates")
    vertices = numbers[(np.cumsum(counts) - counts)[:, None] + np.arange(3)]
    corners, sizes = _numbers(text, begins, ends, is_face, np.int64, "face")
    # Negative indices count back from the last vertex that came before the face.
    before = np.repeat(np.cumsum(is_vertex)[is_face], sizes)
    corners = np.where(corners < 0, before + corners, corners - 1)
    if len(corners) and not 0 <= corners.min() <= corners.max() < len(vertices):
        raise ValueError("a face names a vertex that is not there")
    return vertices, _triangles(corners, sizes)


def _numbers(
    text: UInt8[np.ndarray, " n"],
    begins: Int[np.ndarray, " L"],
    ends: Int[np.ndarray, " L"],
    chosen: Bool[np.ndarray, " L"],
    dtype: type,
    name: str,
) -> tuple[np.ndarray, Int[np.ndarray, " _"]]:
    """The numbers on the chosen lines, and how many are on each."""
    if not chosen.any():
        return np.zeros(0, dtype), np.zeros(0, np.int64)
    lengths = ends - begins + 1
    part = text[np.repeat(chosen, lengths)]
    lengths = lengths[chosen]
    first = np.cumsum(lengths) - lengths
    part[first] = _BLANK  # the letter
    if (part == _HASH).any():
        part[_behind(part == _HASH, first)] = _BLANK  # remarks, up to the end of the line
    gap = part <= _BLANK
    starts = ~gap
    starts[1:] &= gap[:-1]
    if (part == _SLASH).any():
        # Texture and normal: from a word's first slash on.
        part[_behind(part == _SLASH, np.flatnonzero(starts)) & ~gap] = _BLANK
    counts = np.add.reduceat(starts, first, dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # text that is no number
        try:
            numbers = np.fromstring(part.tobytes(), dtype, sep=" ")
        except DeprecationWarning as error:
            raise ValueError(f"a {name} line that holds more than numbers") from error
    if len(numbers) != counts.sum():
        raise ValueError(f"a {name} line that holds more than numbers")
    return numbers, counts


def _behind(mark: Bool[np.ndarray, " n"], starts: Int[np.ndarray, " _"]) -> Bool[np.ndarray, " n"]:
    """Whether a mark stands at or before each place, since the last start."""
    marks = np.cumsum(mark)
    before = np.zeros(len(mark), np.int64)
    before[starts] = marks[starts] - mark[starts]
    return marks > np.maximum.accumulate(before)


def _triangles(
    corners: Int[np.ndarray, " T"], sizes: Int[np.ndarray, " L"]
) -> Int[np.ndarray, "F 3"]:
    if len(sizes) and (sizes == 3).all():
        return corners.reshape(-1, 3)
    if len(sizes) and (sizes == 4).all():
        quads = corners.reshape(-1, 4)
        return np.concatenate([quads[:, [0, 1, 2]], quads[:, [2, 3, 0]]])
    first = np.cumsum(sizes) - sizes
    fans = np.maximum(sizes - 2, 0)  # faces of two corners are lines
    owner = np.repeat(np.arange(len(sizes)), fans)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(fans) - fans, fans)
    turn = step[:, None] + [0, 1, 2]
    turn[:, 0] = 0
    turn[(sizes[owner] == 4) & (step == 1)] = [2, 3, 0]
    return corners[first[owner][:, None] + turn]
