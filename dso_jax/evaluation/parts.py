"""Finished blocks of an evaluation, so that a killed one goes on where it was.

A block's name tells everything that decides its numbers (the files with their sizes and times, the
settings, the versions), so nothing need be checked when one is found, and what belongs to other
settings is simply not looked at.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dso_jax.atomic import write_atomic

Columns = dict[str, np.ndarray]


class Parts:
    """Blocks in a folder.

    Args:
        folder: made when the first block is written.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def get(self, origin: dict[str, Any], work: Callable[[], Columns]) -> Columns:
        """What `work` returns, from the disk if it was done before.

        Args:
            origin: everything that decides the result, as JSON values.
            work: makes arrays of numbers, truth values or text.
        """
        text = json.dumps(origin, sort_keys=True, default=str)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return dict(stored)
        except (FileNotFoundError, zipfile.BadZipFile):
            pass
        columns = work()
        self.folder.mkdir(exist_ok=True)
        write_atomic(path, lambda temporary: _write(temporary, columns))
        return columns

    def discard(self) -> None:
        """Removes all blocks."""
        shutil.rmtree(self.folder, ignore_errors=True)


def stamp(paths: Iterable[pathlib.Path]) -> str:
    """Digest of names, sizes and times of files."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
            line = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        except OSError:  # gone since it was listed
            line = f"{path}\0gone\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _write(path: pathlib.Path, columns: Columns) -> None:
    plain = {
        name: np.asarray(values, np.str_ if values.dtype == object else None)
        for name, values in columns.items()
    }
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **plain)
