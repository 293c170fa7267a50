"""Folders that appear whole under their name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from weight_port.errors import WeightError


def check_new(path: str | Path) -> Path:
    """`path`, if a folder can be made there; for a refusal before any work.

    Raises:
      WeightError: something is there already, or the folder around it is missing.
    """
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return path  # an empty folder is replaced
    if os.path.lexists(path):
        raise WeightError(f"{path}: is there already; remove it or choose another place")
    if not path.absolute().parent.is_dir():
        raise WeightError(f"{path}: no folder {path.parent}")
    return path


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path` to fill; it gets its name when the block ends well.

    After an error nothing is left; after a kill the hidden temporary folder, which goes when a
    folder of that name is made again. Of two that make the same folder at once, the second is
    refused.

    Raises:
      WeightError: as `check_new`.
    """
    path = check_new(path).absolute()
    _remove_abandoned(path)
    # Not `tempfile`: it makes the folder private, whatever the user's umask says.
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    mark = os.open(temporary, os.O_RDONLY)
    try:
        _lock(mark)
        yield temporary
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise WeightError(f"{path}: somebody else made it meanwhile") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(mark)


def _remove_abandoned(path: Path) -> None:
    """Removes temporary folders of `path` whose process is gone, gigabytes perhaps."""
    ours = re.compile(rf"\.{re.escape(path.name)}-[0-9a-f]{{8}}\.tmp")
    for entry in path.parent.iterdir():
        if not ours.fullmatch(entry.name):
            continue
        try:
            mark = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # no folder, gone just now, or not ours to open
            continue
        try:
            if _lock(mark):
                shutil.rmtree(entry, ignore_errors=True)
        finally:
            os.close(mark)


def _lock(mark: int) -> bool:
    """Whether an open folder is this process's alone; a lock ends with its process, however."""
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody else's, or a file system that has no locks
        return False
    return True
