"""Numbers of a comparison of methods: rates with intervals, paired differences and guards.

Works on the columns of an evaluation, one entry a sample, in the same order for every method (same
object, same noise): object, tilt_deg, status, stable, iou, footprint, volume, height, components,
empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dso_jax.statistics import Interval, grouped_mean, paired_difference

Columns = Mapping[str, np.ndarray]
BASE = "base"


@dataclass(frozen=True)
class Guard:
    """A quantity that must stay near the base's: stability must not be bought with it.

    Attributes:
        column: of the evaluation.
        label: for people.
        relative: whether the change is the ratio to the base's mean, or the difference from it.
        low, high: bounds of the change; None leaves that side open.
    """

    column: str
    label: str
    relative: bool
    low: float | None
    high: float | None

    def check(self, base: Columns, tuned: Columns) -> dict:
        """Means of both, the change, the bounds, and whether the change lies within them."""
        before, after = (float(np.nanmean(c[self.column])) for c in (base, tuned))
        change = after / before if self.relative else after - before
        passes = (self.low is None or change >= self.low) and (
            self.high is None or change <= self.high
        )
        bounds = {"low": self.low, "high": self.high, "relative": self.relative}
        values = {"base": before, "value": after, "change": change}
        return {"label": self.label, **values, **bounds, "passes": bool(passes)}


GUARDS = (
    Guard("iou", "IoU with the true object", relative=False, low=-0.02, high=None),
    Guard("footprint", "footprint area", relative=True, low=None, high=1.3),
    Guard("volume", "volume", relative=True, low=0.85, high=1.15),
    Guard("height", "height", relative=True, low=0.95, high=1.05),
    Guard("components", "separate parts", relative=False, low=None, high=0.1),
    Guard("empty", "empty outputs", relative=False, low=None, high=0.01),
)


def summarise(columns: Columns, base: Columns) -> dict:
    """Summary of one method against the base; of the base itself if both are the same object.

    An invalid sample (empty, flat) does not stand: it counts as fallen in the rate, and apart in
    `invalid_percent`; tilts are over the valid ones.
    """
    _check_pairs(columns, base)
    stable, objects = stands(columns), columns["object"]
    tilt = columns["tilt_deg"][columns["status"] != "invalid"]
    numbers = {
        "stable_percent": percent(grouped_mean(stable, objects)),
        "tilt_mean_deg": float(np.mean(tilt)) if tilt.size else None,
        "tilt_median_deg": float(np.median(tilt)) if tilt.size else None,
        "iou": float(np.nanmean(columns["iou"])),
        "invalid_percent": float(100 * np.mean(columns["status"] == "invalid")),
    }
    if columns is base:
        return numbers
    before = stands(base)
    return numbers | {
        "difference_points": percent(paired_difference(before, stable, objects)),
        "fixed": int((~before & stable).sum()),
        "broken": int((before & ~stable).sum()),
        "guards": {guard.column: guard.check(base, columns) for guard in GUARDS},
    }


def compare(seeds: Mapping[int, Mapping[str, Columns]]) -> dict:
    """Summaries of every method, pooled over seeds and for each seed.

    Args:
        seeds: seed -> method -> columns; `base` and the same methods for each seed.

    Returns:
        `methods` (method -> summary over the samples of all seeds, still resampled by object),
        `runs` (one summary for each seed and method), `objects` and `samples` (numbers a method).
    """
    names = list(next(iter(seeds.values())))
    pooled = {
        name: _concatenate([by_method[name] for by_method in seeds.values()]) for name in names
    }
    runs = [
        {"seed": seed, "method": name, **summarise(by_method[name], by_method[BASE])}
        for seed, by_method in seeds.items()
        for name in names
    ]
    return {
        "objects": len(np.unique(pooled[BASE]["object"])),
        "samples": len(pooled[BASE]["object"]),
        "methods": {name: summarise(pooled[name], pooled[BASE]) for name in names},
        "runs": runs,
    }


def verdict(methods: Mapping[str, dict]) -> str:
    """One sentence: how often the base's objects stand, and what the best method makes of it."""
    tuned = {name: numbers for name, numbers in methods.items() if name != BASE}
    best = max(tuned, key=lambda name: tuned[name]["difference_points"]["mean"])
    gain = tuned[best]["difference_points"]
    before, after = (methods[name]["stable_percent"]["mean"] for name in (BASE, best))
    return (
        f"{after:.1f} % of what the generator makes for held-out objects stands after "
        f"{best.upper()}; before, {before:.1f} %. That is {gain['mean']:+.1f} points "
        f"(95 % interval {gain['low']:+.1f} to {gain['high']:+.1f})."
    )


def stands(columns: Columns) -> np.ndarray:
    """(N,) bool: stable and valid."""
    return columns["stable"].astype(bool) & (columns["status"] != "invalid")


def percent(interval: Interval) -> dict[str, float]:
    """An interval of a rate as plain numbers in per cent."""
    return {name: 100 * value for name, value in interval._asdict().items()}


def _concatenate(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _check_pairs(columns: Columns, base: Columns) -> None:
    for key in ("object", "sample", "seed"):
        if not np.array_equal(columns[key], base[key]):
            raise ValueError(f"the samples of a method and of the base differ in {key!r}")
