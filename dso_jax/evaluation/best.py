"""Best of N: what sampling N times and keeping what the simulator likes best gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from dso_jax.evaluation import summary
from dso_jax.evaluation.baselines import best_of
from dso_jax.evaluation.parts import Columns

NAME = "best-of-n"
# Standing comes before any margin.
_STANDS = 1000.0


def tables(columns: Columns) -> dict[str, Any]:
    """`best of 1`, 2, 4, ... and of all samples -> the table of the chosen ones.

    The scorer is the one that labels preference data: what stands wins, then the larger margin.
    """
    groups = np.array(
        [f"{o}\0{v}" for o, v in zip(columns["object"], columns["view"], strict=True)], str
    )
    scores = np.where(columns["stable"], _STANDS, 0.0) + columns["margin_deg"]
    most = int(np.unique(groups, return_counts=True)[1].max())
    counts = sorted({2**k for k in range(most.bit_length())} | {most})
    chosen = {}
    for count in counts:
        rows = np.zeros(len(groups), bool)
        rows[best_of(scores, groups, count)] = True
        chosen[f"best of {count}"] = summary.table(columns, rows)
    return chosen
