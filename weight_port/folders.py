"""Folders that appear whole under their name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
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

    After an error nothing is left; after a kill, only the hidden temporary folder. Of two that
    make the same folder at once, the second is refused.

    Raises:
      WeightError: as `check_new`.
    """
    path = check_new(path).absolute()
    # Not `tempfile`: it makes the folder private, whatever the user's umask says.
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise WeightError(f"{path}: somebody else made it meanwhile") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
