"""How far two engines' labels agree: by class, outside the band, and every miss by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from benchmarks.agreement_sets import MeshSet
from sim_mjx.protocol import Protocol
from sim_mjx.rest import INVALID, Rest

BAND_DEG = (15.0, 25.0)
PROTOCOL = Protocol()


@dataclasses.dataclass(frozen=True)
class Labels:
    """What one engine says of a set; NaN and False where it refused a mesh."""

    rotation_deg: Float[np.ndarray, " B"]
    tilt_deg: Float[np.ndarray, " B"]
    stable: Bool[np.ndarray, " B"]
    status: np.ndarray

    @classmethod
    def of(cls, rest: Rest) -> Labels:
        """Of a drop."""
        return cls(rest.rotation_deg, rest.tilt_deg, rest.stable(PROTOCOL), rest.status)

    @property
    def valid(self) -> Bool[np.ndarray, " B"]:
        """Where there is a label."""
        return self.status != INVALID


def compare(meshes: MeshSet, ours: Labels, referee: Labels) -> dict[str, Any]:
    """Agreement with a referee, whose labels are the truth and whose angles set the band."""
    valid = ours.valid & referee.valid
    same = ours.stable == referee.stable
    band = (referee.rotation_deg >= BAND_DEG[0]) & (referee.rotation_deg <= BAND_DEG[1])
    counted = valid & ~band & ~meshes.split
    stand = referee.stable
    both = valid & ours.stable & stand
    difference = np.abs(ours.tilt_deg - referee.tilt_deg)[both]
    return {
        "standing": share(same, counted & stand),
        "falling": share(same, counted & ~stand),
        "everything": share(same, valid),
        "everything_standing": share(same, valid & stand),
        "everything_falling": share(same, valid & ~stand),
        "in_band": int((valid & band).sum()),
        "version_split": int((valid & meshes.split).sum()),
        "tilt_difference_deg_where_both_stand": {
            "median": float(np.median(difference)),
            "p99": float(np.quantile(difference, 0.99)),
            "max": float(difference.max()),
        },
        "refused_by_one": [meshes.ids[i] for i in np.flatnonzero(ours.valid != referee.valid)],
        "misses": [
            {
                "id": meshes.ids[i],
                "family": meshes.families[i],
                "counted": bool(counted[i]),
                "ours_deg": round(float(ours.rotation_deg[i]), 3),
                "c_deg": round(float(referee.rotation_deg[i]), 3),
                "ours_status": str(ours.status[i]),
                "c_status": str(referee.status[i]),
                "version_split": bool(meshes.split[i]),
            }
            for i in np.flatnonzero(valid & ~same)
        ],
    }


def share(good: Bool[np.ndarray, " B"], among: Bool[np.ndarray, " B"]) -> dict[str, Any]:
    """How many of some are good."""
    count, agree = int(among.sum()), int((good & among).sum())
    return {"count": count, "agree": agree, "percent": 100 * agree / count if count else None}


def families(meshes: MeshSet, ours: Labels, referee: Labels) -> dict[str, dict[str, Any]]:
    """Per family: how many there are, fall and still move, and how many labels agree."""
    kinds = np.array(meshes.families)
    found = {}
    for kind in dict.fromkeys(meshes.families):
        here = (kinds == kind) & referee.valid & ours.valid
        found[kind] = {
            "count": int((kinds == kind).sum()),
            "falling": int((here & ~referee.stable).sum()),
            "moving": int((here & (referee.status == "moving")).sum()),
            "agree": int((here & (ours.stable == referee.stable)).sum()),
        }
    return found
