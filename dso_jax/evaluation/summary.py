"""From the columns of an evaluation to its table: every measure with an interval over objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from dso_jax.evaluation.intervals import Bootstrap
from dso_jax.evaluation.labels import SURVIVAL
from dso_jax.evaluation.parts import Columns
from dso_jax.evaluation.result import BEFORE
from dso_jax.statistics import Interval

# Columns that are averaged as they are, over what could be simulated or measured.
MEANS = (
    *("tilt_deg", "rotation_deg", "margin_deg", "margin_mm"),
    *("cd", "f_score", "cd_fine", "f_score_fine", "iou"),
    *("plate", "footprint", "volume", "height", "watertight"),
)
MEDIANS = ("tilt_deg", "rotation_deg")
Table = dict[str, dict[str, float]]


def measures(columns: Mapping[str, np.ndarray]) -> dict[str, Float[np.ndarray, " n"]]:
    """What is averaged: name -> one number a mesh, NaN where it does not count.

    output          a mesh that could be simulated came out
    stable          of these, it stands
    stable_of_all   the same with what did not come out counted as fallen
    moving          of these, still moving at the end
    several_parts   of those measured, more than one component
    """
    valid = columns["status"] != "invalid"
    nan = np.full(len(valid), np.nan)
    found = {
        "output": valid.astype(float),
        "stable": np.where(valid, columns["stable"], nan),
        "stable_of_all": (valid & columns["stable"]).astype(float),
        "moving": np.where(valid, columns["moving"], nan),
    }
    named = [name for name in MEANS if name in columns]
    named += [name for name in columns if name.startswith(SURVIVAL)]
    found |= {name: columns[name].astype(float) for name in named}
    if "components" in columns:
        parts = columns["components"].astype(float)
        found["several_parts"] = np.where(np.isfinite(parts), parts > 1, nan)
    return found


def table(columns: Mapping[str, np.ndarray], rows: Bool[np.ndarray, " n"] | None = None) -> Table:
    """Name -> value, low, high; medians end in `_median`.

    Args:
        columns: as `Result.columns`.
        rows: that count; None takes all.
    """
    chosen = np.ones(len(columns["status"]), bool) if rows is None else rows
    found = {name: values[chosen] for name, values in measures(columns).items()}
    bootstrap = Bootstrap(columns["object"][chosen])
    intervals = dict(zip(found, bootstrap.means(np.stack([*found.values()], axis=1)), strict=True))
    for name in MEDIANS:
        intervals[f"{name}_median"] = bootstrap.median(columns[name][chosen].astype(float))
    return {name: as_dict(interval) for name, interval in intervals.items()}


def change(columns: Mapping[str, np.ndarray]) -> Table:
    """Mean of after - before over the meshes that have a value on both sides."""
    after, before = measures(columns), measures(before_columns(columns))
    paired = columns[f"{BEFORE}path"] != ""
    names = [name for name in after if name in before]
    values = np.stack([(after[name] - before[name])[paired] for name in names], axis=1)
    intervals = Bootstrap(columns["object"][paired]).means(values)
    return {name: as_dict(one) for name, one in zip(names, intervals, strict=True)}


def before_columns(columns: Mapping[str, np.ndarray]) -> Columns:
    """What the columns say of the meshes before, under the names of those after."""
    found = {
        name.removeprefix(BEFORE): values
        for name, values in columns.items()
        if name.startswith(BEFORE)
    }
    return {**found, **{name: columns[name] for name in ("object", "view", "sample", "category")}}


def categories(columns: Mapping[str, np.ndarray]) -> dict[str, Table]:
    """A table for each category, if there are several, the largest first."""
    names, count = np.unique(columns["category"].astype(str), return_counts=True)
    if len(names) < 2:
        return {}
    ordered = names[np.argsort(-count, kind="stable")]
    return {
        name or "none": {
            "meshes": {"value": int((columns["category"] == name).sum())},
            **table(columns, columns["category"] == name),
        }
        for name in ordered
    }


def survival_curve(found: Table, upright: str = "stable") -> dict[str, list]:
    """Survival against the largest angle of the starts; angle 0 is the drop from upright."""
    thetas = sorted(float(name.removeprefix(SURVIVAL)) for name in found if SURVIVAL in name)
    names = [upright, *(f"{SURVIVAL}{theta:g}" for theta in thetas)]
    ends: dict[str, list] = {
        end: [found[n][end] for n in names] for end in ("value", "low", "high")
    }
    return {"theta": [0.0, *thetas], **ends}


def as_dict(interval: Interval) -> dict[str, Any]:
    """An interval as JSON has it."""
    return {"value": interval.mean, "low": interval.low, "high": interval.high}
