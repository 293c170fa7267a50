"""The same meshes in other engines: do they say the same, and where do they not?"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dso_jax.evaluation.drops import Drops
from dso_jax.evaluation.intervals import Bootstrap
from dso_jax.evaluation.parts import Columns
from dso_jax.evaluation.summary import as_dict
from sim_mjx import engines
from sim_mjx.engines import Engine, EngineError
from sim_mjx.protocol import Protocol
from sim_mjx.rest import INVALID

LEGACY, SAPIEN = "legacy", "sapien"
NAMES = (*engines.NAMES, LEGACY, SAPIEN)
SAPIEN_VERSION = "3.0.3"
LISTED = 100  # disagreements that are named


def task(name: str, protocol: Protocol) -> Drops:
    """How an engine of `NAMES` drops.

    `legacy` is C MuJoCo as DSO's released evaluation sets it up: y-up meshes mirrored, legacy
    inertia, ten seconds to the end, every turn counted.

    Raises:
        EngineError: there is no such engine here.
    """
    if name == LEGACY:
        changed = dataclasses.replace(
            protocol, inertia="legacy", up_turn="swap", early_stop=False, measure="rotation"
        )
        return Drops(changed, engines.resolve("mujoco"))
    if name == SAPIEN:
        return Drops(protocol, _sapien())
    if name not in engines.NAMES:
        raise EngineError(f"engine {name!r}: expected one of {', '.join(NAMES)}")
    return Drops(protocol, engines.resolve(name))


def _sapien() -> Engine:
    if importlib.util.find_spec("sapien") is None:
        raise EngineError(
            f"engine sapien: sapien is not installed; pip install sapien=={SAPIEN_VERSION}"
        )
    from sim_mjx import sapien_engine

    version = importlib.metadata.version("sapien")
    # No close calls: what PhysX says is asked for, not what C would.
    return Engine(SAPIEN, f"{version} physx", "cpu", engines.CPU_BLOCK, True, sapien_engine.drop)


def tables(
    names: Sequence[str], protocol: Protocol, first: Columns, drop: Callable[[str, Drops], Columns]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is reported of other engines: a table of each, and its tilts.

    Args:
        names: of `NAMES`.
        protocol: of the evaluation.
        first: of the evaluation.
        drop: a name and how it drops -> its own status, stable and tilt_deg.
    """
    found, tilts = {}, {}
    for name in names:
        how = task(name, protocol)
        other = drop(name, how)
        record = {**how.engine.record(), "protocol": how.protocol.hash()}
        found[name] = record | compare(first, other, first["path"], first["object"])
        tilts[name] = other["tilt_deg"]
    return found, tilts


def compare(
    first: Columns, other: Columns, paths: np.ndarray, groups: np.ndarray
) -> dict[str, Any]:
    """Confusion matrix of two engines' labels, and where they differ.

    Args:
        first, other: as `drops.drop` returns them.
        paths: of the meshes, for the list.
        groups: their objects, for the interval.

    Returns:
        meshes (with a label in both), stand_stand, stand_fall (stands in the first, falls in the
        other), fall_stand, fall_fall, agreement {value, low, high}, tilt_p99_deg (99 % of the tilts
        of what stands in both differ by less), disagreements [{path, tilt_deg, other_tilt_deg}].
    """
    both = (first["status"] != INVALID) & (other["status"] != INVALID)
    a, b = first["stable"].astype(bool), other["stable"].astype(bool)
    counts = {
        f"{'stand' if x else 'fall'}_{'stand' if y else 'fall'}": int(
            (both & (a == x) & (b == y)).sum()
        )
        for x in (True, False)
        for y in (True, False)
    }
    agreement = Bootstrap(groups).means(np.where(both, a == b, np.nan)[:, None])[0]
    difference = np.abs(first["tilt_deg"] - other["tilt_deg"])
    upright = difference[both & a & b]
    rows = np.flatnonzero(both & (a != b))
    rows = rows[np.argsort(-difference[rows], kind="stable")][:LISTED]
    return {
        "meshes": int(both.sum()),
        **counts,
        "agreement": as_dict(agreement),
        "tilt_p99_deg": float(np.quantile(upright, 0.99)) if len(upright) else np.nan,
        "disagreements": [
            {
                "path": str(paths[row]),
                "tilt_deg": float(first["tilt_deg"][row]),
                "other_tilt_deg": float(other["tilt_deg"][row]),
            }
            for row in rows
        ],
    }
