"""The tables of the paper's baselines: what flat cuts, best poses and best-of-N would give."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dso_jax.evaluation import best, distances, summary
from dso_jax.evaluation.drops import Drops
from dso_jax.evaluation.file_work import CHANGES
from dso_jax.evaluation.files import Bench
from dso_jax.evaluation.geometry import GeometryConfig
from dso_jax.evaluation.parts import Columns
from dso_jax.evaluation.result import BEFORE

NAMES = (*CHANGES, best.NAME)
AS_IS, AFTER = "as it is", "after training"


def tables(
    names: Sequence[str],
    columns: Columns,
    truths: Sequence[pathlib.Path | None],
    task: Drops,
    config: GeometryConfig,
    bench: Bench,
) -> dict[str, Any]:
    """Name of a baseline -> its table; `AS_IS` stands first, and `AFTER` last.

    They are what one can do without training, so where there are meshes before post-training, it
    is done to those.

    Args:
        names: of `NAMES`.
        columns: of the evaluation.
        truths: what each mesh should look like. If that is known of none, distances are to the
            mesh itself: what the change costs.
        task: how the changed meshes are dropped; they are not perturbed.
        config: of the distances.
        bench: where it is done.
    """
    after = None
    if f"{BEFORE}path" in columns:
        after = summary.table(columns)
        rows = np.flatnonzero(columns[f"{BEFORE}path"] != "")
        truths = [truths[row] for row in rows.tolist()]
        earlier = summary.before_columns(columns)
        columns = {name: values[rows] for name, values in earlier.items()}
    paths = [pathlib.Path(path) for path in columns["path"]]
    first = dict(columns)
    if not any(truths):
        truths = list(paths)
        first |= distances.columns(paths, truths, config, bench, "geometry of originals")
    found: dict[str, Any] = {AS_IS: summary.table(first)}
    upright = dataclasses.replace(task, perturbations=())
    # The changed meshes are written z up.
    turned = dataclasses.replace(config, generated_up="z")
    for name in names:
        if name == best.NAME:
            found |= best.tables(first)
            continue
        changed, reasons = bench.alter(name, paths, config.generated_up)
        dropped = bench.drop(changed, upright, f"drop {name}")
        dropped["reason"] = np.where(reasons == "", dropped["reason"], reasons)
        given = [None if why else path for path, why in zip(changed, reasons, strict=True)]
        dropped |= distances.columns(given, truths, turned, bench, f"geometry {name}")
        dropped["object"] = columns["object"]
        invalid = dropped["status"] == "invalid"
        why = collections.Counter(dropped["reason"][invalid]).most_common()
        found[name] = {**summary.table(dropped), "reasons": dict(why)}
    return found if after is None else found | {AFTER: after}
