"""Stop rules: a run that goes bad while its own loss looks good is saved and stopped.

A preference loss falls just as well when the policy flees from losers and takes its winners along
(spec of the reference: DRO is unbounded below). These rules look at what the loss does not show.
They read the log alone, so every process and every resumed run decides alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dso_jax.config import GuardConfig


def reason_to_stop(config: GuardConfig, rows: Sequence[dict[str, Any]]) -> str | None:
    """Why the run must stop; None if it may go on.

    Args:
        config: the rules.
        rows: lines of metrics.jsonl so far; a rule reads means over the last `window` lines of
            training whose numbers are finite, and waits until there are as many.
    """
    lines: list[dict[str, Any]] = []
    for row in reversed(rows):
        if len(lines) == config.window:
            break
        if row["kind"] == "train" and None not in (row["loss_win"], row["ref_distance"]):
            lines.append(row)
    if len(lines) < config.window:
        return None

    def mean(name: str) -> float:
        return sum(row[name] for row in lines) / len(lines)

    over = f"over {config.window} lines of the log"
    rise = mean("win_drift") / (mean("loss_win") - mean("win_drift"))
    if config.max_win_rise is not None and rise > config.max_win_rise:
        return (
            f"the winners' error is {100 * rise:.1f} % above the reference's {over}, more than "
            f"guard.max_win_rise {config.max_win_rise} allows"
        )
    distance = mean("ref_distance")
    if config.max_ref_distance is not None and distance > config.max_ref_distance:
        return (
            f"the squared distance from the reference is {distance:.4g} {over}, more than "
            f"guard.max_ref_distance {config.max_ref_distance} allows"
        )
    return None
