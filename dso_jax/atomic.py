"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    Readers see the old file or the complete new one. The data reach the disk before the name does,
    so that a crash cannot leave an empty file under the final name.
    """
    with _filled(path, write) as temporary:
        temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or, if killed meanwhile, leave the old one."""
    write_atomic(path, lambda temporary: _put(temporary, text))


def write_once(path: Path, text: str) -> bool:
    """Write a whole text file unless there is one; of several processes one alone succeeds.

    Returns:
        Whether this call wrote it.
    """
    with _filled(path, lambda temporary: _put(temporary, text)) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: the last of those at the same time stays
            if path.exists():
                return False
            temporary.replace(path)
    return True


@contextmanager
def _filled(path: Path, write: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary file beside `path`, on the disk; removed afterwards if it is still there."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes the file private
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
