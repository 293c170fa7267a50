"""Pictures of every mesh in an evaluation: how it starts and rests, and what it stands on.

Meshes are read again from where they lay, in several processes; one that is gone or has changed
into something unreadable is a card without pictures.
"""

from __future__ import annotations

import concurrent.futures
import io
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from dso_jax.report import pictures
from dso_jax.report.gallery import FALLS, STANDS, START
from dso_jax.report.pictures import Camera, Surface
from sim_mjx import margin, meshes
from sim_mjx.bodies import BodyError
from sim_mjx.explain import Footing
from sim_mjx.protocol import Protocol

CAMERA = Camera(size=168, extent=1.5)  # pixels
QUALITY = 72  # of WebP; the pictures of a thousand pairs then take 10 MB
FEW = 24  # meshes that are drawn sooner than other processes start

_log = logging.getLogger(__name__)


class Task(NamedTuple):
    """A mesh to draw: where it lies, how it was put down, and how it ended."""

    path: str
    protocol: Protocol
    quaternion: Float[np.ndarray, " 4"]
    stable: bool


class Drawing(NamedTuple):
    """One mesh.

    Attributes:
        start, rest: pictures as WebP files.
        footing: what it is put down on.
        outline: its convex hull from above, counter-clockwise.
    """

    start: bytes
    rest: bytes
    footing: Footing
    outline: Float[np.ndarray, "m 2"]


def draw_all(
    tasks: Sequence[Task | None],
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[Drawing | None]:
    """Draws meshes; None where there is nothing to draw, or where a file cannot be read.

    Args:
        tasks: the meshes.
        workers: processes.
        progress: told of every one that is done.
    """
    if workers < 2 or sum(task is not None for task in tasks) <= FEW:
        return _gathered(map(_draw, tasks), progress)
    # A forked child would inherit the threads of JAX in an unknown state.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        return _gathered(pool.map(_draw, tasks, chunksize=4), progress)


def _gathered(
    drawings: Iterator[Drawing | str | None], progress: Callable[[int], None] | None
) -> list[Drawing | None]:
    found: list[Drawing | None] = []
    failures: list[str] = []
    for drawing in drawings:
        if isinstance(drawing, str):
            failures.append(drawing)
            drawing = None
        found.append(drawing)
        if progress is not None:
            progress(1)
    if failures:
        _log.warning("no picture of %d meshes, the first is %s", len(failures), failures[0])
    return found


def _draw(task: Task | None) -> Drawing | str | None:
    """The drawing, or why there is none."""
    if task is None:
        return None
    try:
        mesh = meshes.load_mesh(Path(task.path))
        body = meshes.body_from_triangles(mesh, task.protocol)
    except (BodyError, OSError) as error:
        return f"{task.path}: {error}"
    vertices = meshes.start_vertices(mesh, task.protocol)
    unit = Surface(vertices / np.ptp(vertices, axis=0).max(), mesh.triangles)
    start = pictures.draw(pictures.turned(unit), START, CAMERA)
    colour = STANDS if task.stable else FALLS
    rest = pictures.draw(pictures.turned(unit, task.quaternion), colour, CAMERA)
    points, com = body.body_points()[0], np.asarray(body.com[0])
    size = float(body.size()[0])
    touching, corners = margin.footprint(points, margin.TOUCH * size)
    _, outline = margin.footprint(points, 2 * size)  # all points
    return Drawing(_webp(start), _webp(rest), Footing(touching, corners, com), outline)


def _webp(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()
