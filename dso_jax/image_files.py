"""Many image files: found, and read on a pool of threads that runs ahead of whoever uses them."""

from __future__ import annotations

import glob
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dso_jax.background import Remover
from dso_jax.errors import UsageError
from dso_jax.images import open_image, prepare
from sim_mjx.sizes import cores

# What is looked for in folders; a file that is named may have any suffix.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".tga", ".jp2", ".avif"),
)
_AHEAD = 2  # images a worker, so that none waits for a slow consumer's next request

Read = Callable[[Path], UInt8[np.ndarray, "h w 3"]]


@dataclass(frozen=True)
class Picture:
    """One file: its pixels, or why there are none.

    Attributes:
      pixels: None where the file cannot be used.
      error: one line that names the file; empty where there are pixels.
    """

    path: Path
    pixels: UInt8[np.ndarray, "h w 3"] | None
    error: str = ""


def find(patterns: Sequence[str]) -> list[Path]:
    """Files for paths, globs and folders (searched recursively), each once, in order.

    Raises:
      UsageError: a path or pattern names nothing, or a folder holds no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES)
            missing = f"{pattern}: no image in this folder ({' '.join(SUFFIXES)})"
        else:
            names = [pattern] if path.is_file() else sorted(glob.glob(pattern, recursive=True))
            inside = map(Path, names)
            missing = f"{pattern}: no such file, folder or match"
        files = [one for one in inside if one.is_file()]
        if not files:
            raise UsageError(missing)
        found.update(dict.fromkeys(files))
    return list(found)


def prepared(remover: Remover | None = None) -> Read:
    """Reads a file as `images.prepare` prepares it.

    Args:
      remover: called by several threads at once.
    """

    def read(path: Path) -> UInt8[np.ndarray, "518 518 3"]:
        return prepare(open_image(path), remover, name=str(path))

    return read


def read_all(
    paths: Iterable[Path | str], read: Read, *, workers: int | None = None
) -> Generator[Picture, None, None]:
    """Read files on a pool of threads; results come in the order of `paths`.

    Decoding and scaling release the interpreter lock, so threads scale with the cores. At most
    `2 * workers` images are held; a worker needs about 16 bytes a pixel of its file.

    Args:
      paths: taken as there is room for more.
      read: a file's pixels; what it raises as UsageError is the file's `error`.
      workers: threads; by default one for each core this process may use.
    """
    workers = workers or cores()
    todo = iter(paths)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    waiting: deque[Future[Picture]] = deque()
    try:
        while True:
            for path in islice(todo, _AHEAD * workers - len(waiting)):
                waiting.append(pool.submit(_read_one, Path(path), read))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_one(path: Path, read: Read) -> Picture:
    try:
        return Picture(path, read(path))
    except UsageError as error:
        return Picture(path, None, str(error))
