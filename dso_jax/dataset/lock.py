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

    Advice only: it keeps nobody out, but who comes while the first is still alone waits until that
    one calls `share`. It is on the folder itself, so that no file is left behind.

    Attributes:
        alone: whether no other process had a share when this one came. False where the file system
            cannot tell.
    """

    def __init__(self, folder: Path) -> None:
        self.alone = False
        if fcntl is None:
            return
        self._handle = os.open(folder, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.alone = True
        except BlockingIOError:
            fcntl.flock(self._handle, fcntl.LOCK_SH)
        except OSError:  # some network file systems have no locks, or none on folders
            pass

    def share(self) -> None:
        """Lets others in, if this one was the first."""
        if fcntl is not None and self.alone:
            fcntl.flock(self._handle, fcntl.LOCK_SH)
