"""One file to a body or a reason, and the loop of a worker process around it.

A worker imports numpy, scipy and trimesh, never JAX.
"""

from __future__ import annotations

import abc
import hashlib
import os
import pathlib
import pickle
import signal
import struct
import sys
from typing import BinaryIO, Generic, TypeVar

from sim_mjx import mesh_files, meshes
from sim_mjx.bodies import BodyError, RigidBody
from sim_mjx.cache import BodyCache
from sim_mjx.margin import with_margin
from sim_mjx.packed import PackedBody, pack
from sim_mjx.protocol import Protocol

Made = TypeVar("Made")

_LENGTH = struct.Struct("<Q")


class FileWork(abc.ABC, Generic[Made]):
    """What is made of a file's bytes, or why nothing is; whatever the file holds."""

    @abc.abstractmethod
    def make(self, path: pathlib.Path, data: bytes, digest: str) -> Made:
        """The work itself.

        Raises:
            BodyError: the contents cannot be used.
        """

    def __call__(self, path: pathlib.Path) -> tuple[str, Made | None, str, str]:
        """Digest, what was made, reason and message: `prepare.Prepared` behind the path."""
        digest = ""
        try:
            data = mesh_files.read_bytes(path)
            digest = hashlib.sha256(data).hexdigest()
            made = self.make(path, data, digest)
        except BodyError as error:
            message = str(error).removeprefix(f"{path}: ")
            return digest, None, error.reason, f"{path}: {message}"
        except OSError as error:
            return digest, None, "unreadable", f"{path}: {error.strerror or error}"
        except MemoryError:
            return digest, None, "crashed", f"{path}: out of memory"
        return digest, made, "", ""


class Preparer(FileWork[PackedBody]):
    """Makes the bodies of files under one protocol."""

    def __init__(self, protocol: Protocol, cache: pathlib.Path | None = None):
        self._protocol = protocol
        self._cache = None if cache is None else BodyCache(cache, protocol)

    def make(self, path: pathlib.Path, data: bytes, digest: str) -> PackedBody:
        """A body, from the cache if it is there."""
        kind = mesh_files.kind_of(path)
        cache = self._cache if mesh_files.is_whole(kind, data) else None
        kept = cache.load(kind, digest, str(path)) if cache else None
        if isinstance(kept, RigidBody):
            return pack(with_margin(kept))
        if kept is not None:
            reason, message = kept
            raise BodyError(reason, message)
        try:
            mesh = meshes.mesh_from_bytes(path, data, digest)
            body = with_margin(meshes.body_from_triangles(mesh, self._protocol))
        except BodyError as error:
            if cache and error.reason != "too_large":  # a matter of this machine's memory
                cache.store(kind, digest, str(path), (error.reason, str(error)))
            raise
        if cache:
            cache.store(kind, digest, str(path), body)
        return pack(body)


def send(stream: BinaryIO, message: bytes) -> None:
    """Writes one framed message."""
    stream.write(_LENGTH.pack(len(message)) + message)
    stream.flush()


def receive(stream: BinaryIO) -> bytes | None:
    """Reads one framed message, or None where the other side has gone."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(header)
    message = stream.read(length)
    return message if len(message) == length else None


def serve() -> None:
    """Answers lists of paths on standard input, path by path, until the input ends.

    The first message holds the maker of the function that answers, and the limits.
    """
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a parser prints must not end up between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; we end with our input
    first = receive(requests)
    if first is None:
        return
    settings = pickle.loads(first)
    work = settings["make"]()
    _limit_memory(settings["memory_bytes"])
    send(answers, b"ready")
    while (request := receive(requests)) is not None:
        for path in pickle.loads(request):
            # The default action of the alarm ends the process, in whatever C code it hangs, and
            # even when the parent is gone.
            signal.setitimer(signal.ITIMER_REAL, settings["seconds"])
            outcome = pickle.dumps(work(path), pickle.HIGHEST_PROTOCOL)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            try:
                send(answers, outcome)
            except BrokenPipeError:
                return


def _limit_memory(size: int) -> None:
    import resource  # not on every system

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        size = min(size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (size, hard))
