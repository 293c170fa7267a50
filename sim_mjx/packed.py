"""A body as one row of bytes: how it comes from a process, and waits until a block is complete.

A `RigidBody` is nine arrays, each behind a view of its own, and a few objects more. With tens of
thousands of those alive, Python's garbage collector would spend more time on walking them than all
else takes; at bytes it does not look. And rows of one layout are joined without making any array
for each.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sim_mjx.bodies import ARRAYS, POLYGON_ARRAYS, HullPolygons, Provenance, RigidBody


class PackedBody(NamedTuple):
    """One body.

    Attributes:
        layout: names, types and shapes of its arrays, and the window of its polygons: a text, the
            same for all bodies of a shape bucket.
        row: the arrays one after another.
        origin: fields of its `Provenance`, or nothing.
    """

    layout: str
    row: bytes
    origin: tuple[Any, ...]


def pack(body: RigidBody) -> PackedBody:
    """A batch of one as a row.

    Raises:
        ValueError: it is not a batch of one.
    """
    if len(body) != 1:
        raise ValueError(f"pack: expected one body, got {len(body)}")
    arrays = {name: np.asarray(getattr(body, name)) for name in ARRAYS}
    window = 0
    if body.polygons is not None:
        arrays |= {name: np.asarray(getattr(body.polygons, name)) for name in POLYGON_ARRAYS}
        window = body.polygons.window
    fields = [(name, array.dtype.str, array.shape[1:]) for name, array in arrays.items()]
    row = b"".join(array.tobytes() for array in arrays.values())
    origin = dataclasses.astuple(body.provenance[0]) if body.provenance else ()
    return PackedBody(repr((fields, window)), row, origin)


def unpack(bodies: Sequence[PackedBody]) -> RigidBody:
    """Bodies of one layout as a batch.

    Raises:
        ValueError: of several layouts, or none.
    """
    layouts = {body.layout for body in bodies}
    if len(layouts) != 1:
        raise ValueError(f"unpack: expected bodies of one layout, got {len(layouts)}")
    dtype, window = _parsed(layouts.pop())
    rows = np.frombuffer(b"".join([body.row for body in bodies]), dtype)
    arrays = {name: np.array(rows[name]) for name in dtype.names or ()}  # own, and aligned
    origins = [body.origin for body in bodies]
    table = {name: arrays.pop(name) for name in POLYGON_ARRAYS if name in arrays}
    return RigidBody(
        **arrays,
        polygons=HullPolygons(**table, window=window) if table else None,
        provenance=tuple(Provenance(*origin) for origin in origins) if any(origins) else (),
    )


def by_layout(bodies: Iterable[PackedBody | None]) -> list[tuple[list[int], RigidBody]]:
    """Batches of all bodies that can share one, in order of their first.

    Args:
        bodies: None where there is none.

    Returns:
        Of each batch the positions of its bodies, and the batch.
    """
    found: dict[str, list[tuple[int, PackedBody]]] = collections.defaultdict(list)
    for position, body in enumerate(bodies):
        if body is not None:
            found[body.layout].append((position, body))
    return [([i for i, _ in same], unpack([body for _, body in same])) for same in found.values()]


@functools.cache
def _parsed(layout: str) -> tuple[np.dtype, int]:
    fields, window = ast.literal_eval(layout)
    return np.dtype(fields), window
