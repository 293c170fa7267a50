"""Who else is at work in a folder; the system forgets a process that dies."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nobody knows of the others
    fcntl = None


class SharedLock:
    """A share in a folder, held until this object is gone.

    Advice only: it keeps nobody out. It is on the folder itself, so that no file is left behind.

    Attributes:
        alone: whether no other process had a share when this one came. False where the file system
            cannot tell.
    """

    def __init__(self, folder: Path) -> None:
        self.alone = False
        if fcntl is None:
            return
        handle = os.open(folder, os.O_RDONLY)
        weakref.finalize(self, os.close, handle)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.alone = True
            except BlockingIOError:
                pass
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # some network file systems have no locks, or none on folders
            self.alone = False
