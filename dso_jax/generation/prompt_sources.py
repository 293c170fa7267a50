"""Where the prompts of a dataset come from, a block at a time: drawn, or read from image files.

All names are known at once, so that the work can be shared out; pictures are made or read when
their block is due, a little ahead of whoever uses them.

Shapes: P prompts, m of a block, S condition tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8

from dso_jax import image_files, toybox
from dso_jax.errors import UsageError
from dso_jax.generation.prompts import toybox_names, toybox_prompts

Pixels = UInt8[np.ndarray, "m h w 3"]


@dataclass(frozen=True)
class Loaded:
    """The pictures of a block.

    Attributes:
      rows: (m,) which prompts they are; those that cannot be used are left out.
      images: (m,h,w,3) uint8, or floats in [0, 1].
      problems: one line for each prompt that was left out, with the name of its file.
    """

    rows: np.ndarray
    images: np.ndarray
    problems: tuple[str, ...] = ()


class Source(Protocol):
    """P prompts.

    Attributes:
      objects: (P,) name of the object that each image shows.
      views: (P,) which image of that object.
      condition_shape: (S, D).
      image_shape: (h, w, 3).
    """

    objects: np.ndarray
    views: np.ndarray
    condition_shape: tuple[int, ...]
    image_shape: tuple[int, ...]

    def load(self, blocks: Iterable[np.ndarray]) -> Generator[Loaded, None, None]:
        """The pictures of each block of rows, in order; takes the next one when it has room."""
        ...

    def conditions(self, images: np.ndarray, groups: Sequence[int]) -> Float[np.ndarray, "m S D"]:
        """What the flow attends to for these pictures, of several blocks perhaps.

        Args:
          groups: how many pictures each block has: to the bit, no block depends on another.
        """
        ...


class ToyboxSource:
    """The first objects of a split of the toybox, each seen from one view."""

    condition_shape: tuple[int, ...] = toybox.COND_TOKENS, toybox.COND_CHANNELS
    image_shape: tuple[int, ...] = toybox.IMAGE_SIZE, toybox.IMAGE_SIZE, 3

    def __init__(self, split: str, count: int, view: int = 0) -> None:
        self._split = split
        self._view = view
        self.objects = toybox_names(toybox.split(split, count))
        self.views = np.full(count, view)

    def load(self, blocks: Iterable[np.ndarray]) -> Generator[Loaded, None, None]:
        """See `Source.load`."""
        for rows in blocks:
            first = int(rows[0])
            drawn = toybox_prompts(self._split, len(rows), first=first, view=self._view)
            yield Loaded(rows, drawn.images)

    def conditions(self, images: np.ndarray, groups: Sequence[int]) -> Float[np.ndarray, "m S D"]:
        """See `Source.conditions`."""
        return np.concatenate([toybox.condition(one) for one in np.split(images, _ends(groups))])


class FileSource:
    """Image files.

    Args:
      files: of the images.
      read: a file's pixels, all files' of one shape.
      encode: pixels, and how many of them each block has -> conditions.
      image_shape, condition_shape: of what these two give.
      by_folder: whether the files of one folder are views of one object; otherwise each file shows
        an object of its own.

    Raises:
      UsageError: two files would have one name.
    """

    def __init__(
        self,
        files: Sequence[Path],
        read: image_files.Read,
        encode: Callable[[Pixels, Sequence[int]], Float[np.ndarray, "m S D"]],
        *,
        image_shape: tuple[int, ...],
        condition_shape: tuple[int, ...],
        by_folder: bool = False,
    ) -> None:
        self.image_shape, self.condition_shape = image_shape, condition_shape
        self._files, self._read, self._encode = list(files), read, encode
        self.objects, self.views = name_files(files, by_folder=by_folder)

    def load(self, blocks: Iterable[np.ndarray]) -> Generator[Loaded, None, None]:
        """See `Source.load`."""
        asked: deque[np.ndarray] = deque()

        def paths() -> Iterator[Path]:
            for rows in blocks:
                asked.append(rows)
                yield from (self._files[row] for row in rows)

        pictures = image_files.read_all(paths(), self._read)
        try:
            while first := next(pictures, None):
                rows = asked.popleft()
                block = [first, *islice(pictures, len(rows) - 1)]
                usable = [one.pixels for one in block if one.pixels is not None]
                yield Loaded(
                    rows=rows[[one.pixels is not None for one in block]],
                    images=np.stack(usable)
                    if usable
                    else np.zeros((0, *self.image_shape), np.uint8),
                    problems=tuple(one.error for one in block if one.pixels is None),
                )
        finally:
            pictures.close()

    def conditions(self, images: np.ndarray, groups: Sequence[int]) -> Float[np.ndarray, "m S D"]:
        """See `Source.conditions`."""
        return self._encode(images, groups)


def _ends(groups: Sequence[int]) -> np.ndarray:
    """Where all groups but the last end."""
    return np.cumsum(groups)[:-1]


def name_files(files: Sequence[Path], *, by_folder: bool) -> tuple[np.ndarray, np.ndarray]:
    """(P,) names of the objects that files show, and (P,) which view of it each is.

    Names are paths below the folder that all files have in common, without suffix, as
    CATEGORY/OBJECT where they are in folders. The views of a folder are the numbers that its files
    are called by, or else their places in order.

    Raises:
      UsageError: two files would have one name.
    """
    paths = [path.absolute() for path in files]
    common = Path(*_common([path.parent.parts for path in paths]))
    if by_folder:
        # With all views in one folder, that folder is the object.
        top = common.parent if any(path.parent == common for path in paths) else common
        objects = [_name(path.parent.relative_to(top)) for path in paths]
        views = _view_numbers(paths)
    else:
        objects = [_name(path.relative_to(common).with_suffix("")) for path in paths]
        views = [0] * len(paths)
    seen: dict[tuple[str, int], Path] = {}
    for name, view, path in zip(objects, views, files, strict=True):
        if (name, view) in seen:
            other = seen[name, view]
            raise UsageError(f"{path}: would have the same name, {name}, as {other}; rename one")
        seen[name, view] = path
    return np.array(objects), np.array(views)


def fingerprint(source: Source) -> str:
    """sha256 of the names of all prompts, in order."""
    names = zip(source.objects.tolist(), source.views.tolist(), strict=True)
    text = "\n".join(f"{name}/{view}" for name, view in names)
    return hashlib.sha256(text.encode()).hexdigest()


def _name(path: Path) -> str:
    """At most one folder, as DSO's layout has it."""
    first, *rest = path.parts
    return f"{first}/{'_'.join(rest)}" if rest else first


def _common(parts: Sequence[tuple[str, ...]]) -> list[str]:
    """The folders that all paths begin with."""
    return [level[0] for level in _while_alike(zip(*parts, strict=False))]


def _while_alike(levels: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    for level in levels:
        if len(set(level)) > 1:
            return
        yield level


def _view_numbers(paths: Sequence[Path]) -> list[int]:
    folders: dict[Path, list[Path]] = {}
    for path in sorted(paths):
        folders.setdefault(path.parent, []).append(path)
    numbers = {}
    for inside in folders.values():
        named = all(path.stem.isdecimal() for path in inside)
        for place, path in enumerate(inside):
            numbers[path] = int(path.stem) if named else place
    return [numbers[path] for path in paths]
