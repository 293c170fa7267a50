"""The paper's baselines as files: every mesh cut flat, or laid into its best pose.

They are meshes like any other afterwards, and judged as such.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from dso_jax.evaluation.file_work import AlterWork
from dso_jax.evaluation.geometry import UpAxis
from sim_mjx.prepare import Limits, work_on_files

LIMITS = Limits(seconds=120.0)


def alter(
    name: str,
    paths: Sequence[pathlib.Path],
    files: Sequence[pathlib.Path],
    *,
    up: UpAxis = "auto",
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Writes the changed meshes.

    Args:
        name: one of `file_work.CHANGES`.
        paths: meshes.
        files: where each goes, `.ply`.
        up: the meshes' up axis; that of what is written is z.

    Returns:
        (N,) why a file was not written: empty where it was.
    """
    reasons = np.full(len(paths), "", object)
    make = functools.partial(AlterWork, name, up)
    with contextlib.closing(work_on_files(paths, make, workers, LIMITS)) as rows:
        for row, (_, (_, made, reason, _)) in enumerate(rows):
            reasons[row] = reason
            if made is not None:
                files[row].write_bytes(made)
            if progress is not None:
                progress(1)
    return reasons
