"""One file to a body or a reason, and the loop of a worker process around it.

A worker imports numpy, scipy and trimesh, never JAX.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import signal
import struct
import sys
from typing import BinaryIO

from sim_mjx import meshes
from sim_mjx.bodies import BodyError, RigidBody
from sim_mjx.protocol import Protocol

# sha256, body, reason, message: the fields of `prepare.Prepared` behind the path.
Outcome = tuple[str, RigidBody | None, str, str]

_LENGTH = struct.Struct("<Q")


def prepare_file(
    path: pathlib.Path, protocol: Protocol, cache: pathlib.Path | None = None
) -> Outcome:
    """A body, or why there is none; whatever the file holds."""
    try:
        body = meshes.body_from_mesh(path, protocol)
    except BodyError as error:
        return meshes.sha256(path), None, error.reason, str(error)
    except OSError as error:
        return "", None, "unreadable", f"{path}: {error.strerror or error}"
    except MemoryError:
        return "", None, "crashed", f"{path}: out of memory"
    return body.provenance[0].sha256, body, "", ""


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
    """Answers paths on standard input with outcomes on standard output until the input ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a parser prints must not end up between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; we end with our input
    first = receive(requests)
    if first is None:
        return
    settings = pickle.loads(first)
    _limit_memory(settings["memory_bytes"])
    send(answers, b"ready")
    while (request := receive(requests)) is not None:
        # The default action of the alarm ends the process, in whatever C code it hangs, and even
        # when the parent is gone.
        signal.setitimer(signal.ITIMER_REAL, settings["seconds"])
        outcome = prepare_file(pickle.loads(request), settings["protocol"], settings["cache"])
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        try:
            send(answers, pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL))
        except BrokenPipeError:
            return


def _limit_memory(size: int) -> None:
    import resource  # not on every system

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        size = min(size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (size, hard))
