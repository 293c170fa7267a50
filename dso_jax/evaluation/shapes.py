"""Many files' shapes on all cores: what the guards compare, and whether meshes are closed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from dso_jax.evaluation.file_work import ShapeWork
from dso_jax.evaluation.geometry import UpAxis
from dso_jax.evaluation.parts import Columns
from dso_jax.evaluation.shape import Shape
from sim_mjx.prepare import Limits, work_on_files

LIMITS = Limits(seconds=120.0)
# Field of a shape -> column.
COLUMNS = {field.name: field.name for field in dataclasses.fields(Shape)} | {
    "slenderness": "height"
}
WATERTIGHT = "watertight"


def measure_shapes(
    paths: Sequence[pathlib.Path],
    *,
    up: UpAxis = "auto",
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Columns:
    """`COLUMNS` and `watertight` of every file, each (N,); NaN for what has no shape."""
    names = (*COLUMNS.values(), WATERTIGHT)
    columns = {name: np.full(len(paths), np.nan) for name in names}
    make = functools.partial(ShapeWork, up)
    with contextlib.closing(work_on_files(paths, make, workers, LIMITS)) as rows:
        for row, (_, (_, made, _, _)) in enumerate(rows):
            if made is not None:
                found, closed = made
                for field, name in COLUMNS.items():
                    columns[name][row] = getattr(found, field)
                columns[WATERTIGHT][row] = closed
            if progress is not None:
                progress(1)
    return columns


def shape_of(columns: Columns, row: int) -> Shape | None:
    """The shape in a row of `measure_shapes`, or None."""
    if not np.isfinite(columns["volume"][row]):
        return None
    values = {field: columns[name][row].item() for field, name in COLUMNS.items()}
    return Shape(**{**values, "components": int(values["components"])})
