"""The guards on every mesh that has a counterpart before post-training, and their verdict."""

from __future__ import annotations

from typing import Any

import numpy as np

from dso_jax.evaluation import guards, shapes
from dso_jax.evaluation.parts import Columns
from dso_jax.evaluation.result import BEFORE
from dso_jax.evaluation.shape import Shape
from dso_jax.evaluation.summary import before_columns


def judge(columns: Columns) -> tuple[dict[str, Any], np.ndarray]:
    """The verdict as JSON has it, and (N,) the names of the guards that fire on each mesh.

    A mesh that could not be simulated or measured counts as empty output. What was no shape before
    either is not compared.
    """
    fired = np.full(len(columns["path"]), "", object)
    if f"{BEFORE}path" not in columns or "volume" not in columns:
        missing = "--before" if f"{BEFORE}path" not in columns else "shapes"
        text = f"guards: not judged without {missing}, for they compare with the base's samples"
        return {"judged": False, "ok": None, "text": text}, fired
    references = before_columns(columns)
    findings = []
    for row in range(len(fired)):
        reference = shapes.shape_of(references, row)
        if reference is None:
            continue
        findings.append(guards.check(_sample(columns, row), reference))
        fired[row] = " ".join(name for name, found in findings[-1].items() if found.fires)
    if not findings:
        text = "guards: not judged, for no mesh had a shape before"
        return {"judged": False, "ok": None, "text": text}, fired
    found = guards.verdict(findings)
    listed = {guard.name: guard for guard in guards.GUARDS}
    return {
        "judged": True,
        "ok": not found.suspects,
        "text": str(found),
        "pairs": found.pairs,
        "tolerated": guards.TOLERATED,
        "suspects": list(found.suspects),
        "guards": {
            name: {
                "share": share,
                "label": listed[name].label if name in listed else "Empty output",
                "why": listed[name].why if name in listed else "nothing that has a shape came out",
            }
            for name, share in found.shares.items()
        },
    }, fired


def _sample(columns: Columns, row: int) -> Shape | None:
    if columns["status"][row] == "invalid":
        return None
    return shapes.shape_of(columns, row)
