"""Files to bodies with the device's help: the processes only read, weld and scale.

A drop-in for `prepare.prepare` where the cores cannot keep up with the device. Bodies have support
points instead of hulls, see `sim_mjx.device_bodies`; what the device cannot make is made here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from sim_mjx.device_bodies import MAX_POINTS, bodies_on_device
from sim_mjx.packed import PackedBody, pack
from sim_mjx.prepare import Limits, Prepared, work_on_files
from sim_mjx.prepare_one import Preparer
from sim_mjx.protocol import Protocol
from sim_mjx.surfaces import Surface, SurfaceReader

# Files whose bodies are made together, enough to fill the batches of most buckets.
_WINDOW, _WINDOW_BYTES = 2048, 2**30


def prepare_on_device(
    paths: Iterable[str | os.PathLike],
    protocol: Protocol,
    *,
    workers: int | None = None,
    limits: Limits | None = None,
    max_points: int = MAX_POINTS,
) -> Generator[Prepared, None, None]:
    """Makes the body of every file, in order; arguments and errors as in `prepare.prepare`.

    Args:
        paths: mesh files.
        protocol: its `inertia` is `legacy`, `exact` or `convex`.
        workers: processes that read files.
        limits: time and memory that one file may take.
        max_points: support points of a body.

    Yields:
        One entry a path. Bodies that fell back to the host have hulls and polygons.

    Raises:
        ValueError: another inertia mode.
        WorkerError: the worker processes cannot be started.
    """
    read = functools.partial(SurfaceReader, protocol)
    on_host = Preparer(protocol)
    with contextlib.closing(work_on_files(paths, read, workers, limits)) as rows:
        start = 0
        while window := _window(rows):
            surfaces = [surface for _, (_, surface, _, _) in window if surface is not None]
            made: dict[int, PackedBody] = {}
            for index, bodies in bodies_on_device(surfaces, protocol, max_points=max_points):
                made.update({i: pack(bodies[k]) for k, i in enumerate(index)})
            order = itertools.count()
            for offset, (path, (digest, surface, reason, message)) in enumerate(window):
                entry = (digest, None, reason, message)
                if surface is not None:
                    body = made.pop(next(order), None)
                    entry = on_host(path) if body is None else (digest, body, "", "")
                yield Prepared(start + offset, path, *entry)
            start += len(window)


def _window(rows: Iterator[tuple[Any, tuple[str, Surface | None, str, str]]]) -> list:
    """The next files, until there are many or they are large."""
    window, held = [], 0
    while len(window) < _WINDOW and held < _WINDOW_BYTES and (row := next(rows, None)) is not None:
        window.append(row)
        surface = row[1][1]
        held += 0 if surface is None else surface.vertices.nbytes + surface.triangles.nbytes
    return window
