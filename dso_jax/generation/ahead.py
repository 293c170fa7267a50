"""Work that is done in a thread while the one who needs it is still busy with the last."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(
    items: Generator[T, None, None], stop: threading.Event | None = None
) -> Generator[T, None, None]:
    """The same items, in order; the next one is being made before it is asked for.

    Args:
        items: used by one other thread, and closed in the end.
        stop: set as soon as no more will be taken; who makes an item may then give up. Closing this
            generator waits for that.

    Raises:
        Exception: whatever making an item raises, when its turn has come.
    """
    end = object()
    with contextlib.closing(items), ThreadPoolExecutor(1, "ahead") as pool:
        try:
            following = pool.submit(next, items, end)
            while (item := following.result()) is not end:
                following = pool.submit(next, items, end)
                yield item  # type: ignore[misc]
        finally:
            if stop is not None:
                stop.set()
