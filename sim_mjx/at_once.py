"""An executor without a thread, for where another one would be of no use."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any


class AtOnce(concurrent.futures.Executor):
    """Does what it is given in the caller's thread, before `submit` returns; so it raises there."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future:
        done: concurrent.futures.Future = concurrent.futures.Future()
        done.set_result(fn(*args, **kwargs))
        return done
