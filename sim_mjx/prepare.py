"""Files to bodies on all cores, in order, while the consumer does something else.

Every file gives one `Prepared`: a body, or a reason. Work is done by processes of their own
(`sim_mjx.worker_pool`), so that a file that crashes a parser, eats memory or never ends costs one
row and not the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import pickle
from collections.abc import Callable, Generator, Iterable

from sim_mjx.bodies import RigidBody
from sim_mjx.cache import CacheError, check_folder
from sim_mjx.packed import PackedBody, unpack
from sim_mjx.prepare_one import FileWork, Made, Preparer
from sim_mjx.protocol import Protocol
from sim_mjx.worker import Failure, WorkerError
from sim_mjx.worker_pool import Limits, WorkerPool

__all__ = ["CacheError", "Limits", "Prepared", "WorkerError", "prepare"]
# Files that a worker has before it: a body from the cache takes less time than a message does.
_SENT = 16


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What became of one file.

    Attributes:
        index: position among the paths.
        path: the file.
        sha256: digest of its bytes, empty if they could not be read.
        packed: the body, as it waits; None if there is none.
        reason: why there is no body: a `BodyError` code, `unreadable`, `crashed` or `timeout`;
            empty where there is one.
        message: one line for people, empty where there is a body.
    """

    index: int
    path: pathlib.Path
    sha256: str
    packed: PackedBody | None
    reason: str
    message: str

    @property
    def body(self) -> RigidBody | None:
        """A batch of one, made whenever it is asked for, or None."""
        return None if self.packed is None else unpack([self.packed])


def prepare(
    paths: Iterable[str | os.PathLike],
    protocol: Protocol,
    *,
    workers: int | None = None,
    cache: pathlib.Path | None = None,
    limits: Limits | None = None,
) -> Generator[Prepared, None, None]:
    """Makes the body of every file, in order.

    Preparation runs ahead of the consumer by a bounded number of files and bytes, from the first
    `next` on. Closing the iterator ends the processes.

    Args:
        paths: mesh files; read lazily.
        protocol: only its body fields matter, see `sim_mjx.cache`.
        workers: processes; None takes one a core, 0 works in this process, without limits.
        cache: folder of bodies made before, see `sim_mjx.cache`.
        limits: time and memory that one file may take.

    Yields:
        One entry a path.

    Raises:
        CacheError: the cache's folder cannot be used.
        WorkerError: the worker processes cannot be started.
    """
    if cache is not None:
        check_folder(cache)
    make = functools.partial(Preparer, protocol, cache)
    with contextlib.closing(work_on_files(paths, make, workers, limits)) as rows:
        for index, (path, outcome) in enumerate(rows):
            yield Prepared(index, path, *outcome)


def work_on_files(
    paths: Iterable[str | os.PathLike],
    make: Callable[[], FileWork[Made]],
    workers: int | None,
    limits: Limits | None,
) -> Generator[tuple[pathlib.Path, tuple[str, Made | None, str, str]], None, None]:
    """Does `make()` on every file, in order; see `prepare` for the arguments.

    Yields:
        The path; the file's digest, what was made of it, and the reason and message if nothing was.
    """
    files = map(pathlib.Path, paths)
    if workers == 0:
        work = make()
        yield from ((path, work(path)) for path in files)
        return
    with WorkerPool(files, make, workers, limits or Limits(), _SENT) as pool:
        for path, answer in pool:
            if isinstance(answer, Failure):
                yield path, ("", None, answer.reason, f"{path}: {answer.message}")
            else:
                yield path, pickle.loads(answer)
