"""What a labelling job does with every file, and the columns that come of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import pyarrow as pa

from sim_mjx.engines import Engine
from sim_mjx.perturb import Perturbation
from sim_mjx.protocol import Protocol, ProtocolError
from sim_mjx.surfaces import INERTIA_MODES

# What has happened and to how many files: they were `read`, an engine has finished with them
# (`drop`), or the row is made, and it is one of the other four.
Stage = Literal["read", "drop", "stable", "unstable", "moving", "invalid", "adjudicated"]
Progress = Callable[[Stage, int], None]
# Where bodies are made: see `prepare.prepare` and `prepare_device.prepare_on_device`.
Preparation = Literal["host", "device"]

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("status", pa.string()),  # rest, moving or invalid
        ("reason", pa.string()),  # why it is invalid
        ("stable", pa.bool_()),  # null where invalid
        ("tilt_deg", pa.float64()),
        ("rotation_deg", pa.float64()),
        ("margin_deg", pa.float64()),  # static tipping margin at the start pose
        ("steps", pa.int64()),
        ("points", pa.int64()),  # hull vertices
        ("mass", pa.float64()),
        ("inertia", pa.string()),  # how mass properties were made
        ("inertia_fallback", pa.string()),  # why not as the protocol says
        ("adjudicated", pa.bool_()),  # the label is C MuJoCo's, the engine's was close
        ("tilt_first_deg", pa.float64()),  # the engine's own tilt where C decided
        ("protocol", pa.string()),  # hash
        ("engine", pa.string()),
        ("engine_version", pa.string()),
        ("device", pa.string()),
    ]
)
# Further columns of a job with perturbed starts.
PERTURBED = pa.schema(
    [
        ("survival", pa.float64()),  # part of the starts that ended upright
        ("starts", pa.int64()),  # valid starts
        ("tip_direction_deg", pa.float64()),  # where it fell, on average
        ("tip_agreement", pa.float64()),  # 1 where all falls went the same way
        ("margin_direction_deg", pa.float64()),  # where it would tip first, from the static margin
    ]
)


@dataclasses.dataclass(frozen=True)
class Task:
    """What is done with every file.

    Attributes:
        protocol: what is simulated and what counts as stable.
        engine: what simulates it.
        adjudicate: whether close calls of a single-precision engine go to C MuJoCo.
        perturbation: starts to try beside the upright one, or None.
        preparation: `host` makes whole hulls by qhull; `device` has JAX choose support points.
    """

    protocol: Protocol
    engine: Engine
    adjudicate: bool = True
    perturbation: Perturbation | None = None
    preparation: Preparation = "host"

    def __post_init__(self) -> None:
        if self.preparation == "device" and self.protocol.inertia not in INERTIA_MODES:
            raise ProtocolError(
                f"protocol.inertia: {self.protocol.inertia!r} is not made on the device; prepare "
                f"on the host, or choose {', '.join(INERTIA_MODES)}"
            )

    def schema(self) -> pa.Schema:
        """The table's columns."""
        extra = [] if self.perturbation is None else list(PERTURBED)
        return pa.schema([*SCHEMA, *extra])
