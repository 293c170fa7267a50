"""Distances to the true objects, under the names that a result gives them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from dso_jax.evaluation.files import Bench
from dso_jax.evaluation.geometry import FINE, GeometryConfig
from dso_jax.evaluation.parts import Columns

Paths = Sequence[pathlib.Path | None]


def columns(
    paths: Paths,
    truths: Paths,
    config: GeometryConfig,
    bench: Bench,
    title: str = "geometry",
    *,
    fine: bool = False,
) -> Columns:
    """cd, f_score, cd_floor and geometry_reason of every mesh, each (N,); NaN without a pair.

    Args:
        paths: the meshes, None where there is none.
        truths: what each should look like, None where nobody knows.
        config: the numbers of the measure.
        bench: where it is done.
        title: of the stage.
        fine: also with `FINE`'s points and threshold, in columns that end in `_fine`.
    """
    found = _measured(paths, truths, config, bench, title)
    if not fine:
        return found
    sharper = dataclasses.replace(config, points=FINE.points, threshold=FINE.threshold)
    more = _measured(paths, truths, sharper, bench, f"{title}, fine")
    return found | {f"{name}_fine": more[name] for name in ("cd", "f_score", "cd_floor")}


def _measured(
    paths: Paths, truths: Paths, config: GeometryConfig, bench: Bench, title: str
) -> Columns:
    pairs = zip(paths, truths, strict=True)
    paired = [truth if path is not None else None for path, truth in pairs]
    found = bench.geometry([path or pathlib.Path() for path in paths], paired, config, title)
    return {
        "cd": found["chamfer"],
        "f_score": found["f_score"],
        "cd_floor": found["self_chamfer"],
        "geometry_reason": found["geometry_reason"],
    }
