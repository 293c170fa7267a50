"""The labelling job: mesh files in, one row of a parquet table a file.

Every file gets a row. Contents that cannot be simulated make an `invalid` row with a reason, and
the rest goes on. Files are read and dropped block by block, grouped by shape bucket.
"""

from __future__ import annotations

import collections
import glob
import importlib.metadata
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sim_mjx import margin, meshes, referee
from sim_mjx.bodies import BodyError, RigidBody, concatenate
from sim_mjx.drop import drop
from sim_mjx.protocol import Protocol
from sim_mjx.rest import INVALID

Engine = Literal["mjx", "mujoco"]
# Stage (`read` or `drop`) and how many files have just passed it.
Progress = Callable[[str, int], None]

# Files held in memory at once; large enough that every bucket fills its slots.
BLOCK = 8192

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
        ("protocol", pa.string()),  # hash
        ("engine", pa.string()),
        ("engine_version", pa.string()),
        ("device", pa.string()),
    ]
)


class LabelError(ValueError):
    """Arguments of a labelling job that cannot be used."""


def expand_paths(patterns: Sequence[str]) -> list[pathlib.Path]:
    """Files for paths, globs and folders (searched recursively), each file once, in order.

    Raises:
        LabelError: a path or pattern names nothing, or a folder holds no mesh file.
    """
    found: dict[pathlib.Path, None] = {}
    for pattern in patterns:
        path = pathlib.Path(pattern)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if _is_mesh(p))
            missing = f"{pattern}: no mesh file in this folder ({', '.join(meshes.UP_AXIS)})"
        elif path.is_file():
            files, missing = [path], ""
        else:
            matches = sorted(glob.glob(pattern, recursive=True))
            files = [pathlib.Path(p) for p in matches if os.path.isfile(p)]
            missing = f"{pattern}: no such file, folder or match"
        if not files:
            raise LabelError(missing)
        found.update(dict.fromkeys(files))
    return list(found)


def label_files(
    paths: Iterable[pathlib.Path],
    protocol: Protocol,
    *,
    engine: Engine = "mjx",
    progress: Progress | None = None,
) -> pa.Table:
    """Labels files, in order, under one protocol.

    Args:
        paths: mesh files.
        protocol: what is simulated and what counts as stable.
        engine: `mjx`, or `mujoco` for C MuJoCo.
        progress: called while files are read and while objects come to rest.

    Returns:
        A table with `SCHEMA`, one row a file; the protocol's fields are in the schema's metadata.
    """
    paths = list(paths)
    report = progress or (lambda stage, count: None)
    constant = {"protocol": protocol.hash(), **engine_record(engine)}
    rows: list[dict[str, Any]] = []
    for start in range(0, len(paths), BLOCK):
        block = _label_block(paths[start : start + BLOCK], protocol, engine, report)
        rows.extend({**row, **constant} for row in block)
    metadata = {"protocol": json.dumps(protocol.to_dict(), sort_keys=True)}
    return pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))


def engine_record(engine: Engine) -> dict[str, str]:
    """Engine, its versions and its device, as stored with each label."""
    version = importlib.metadata.version
    if engine == "mujoco":
        return {"engine": engine, "engine_version": version("mujoco"), "device": "cpu"}
    versions = f"{version('mujoco-mjx')} jax {jax.__version__}"
    device = jax.devices()[0]
    return {"engine": engine, "engine_version": versions, "device": device.device_kind}


def write_labels(table: pa.Table, path: pathlib.Path) -> None:
    """Writes the table so that `path` holds either the whole of it or what it held before."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        pq.write_table(table, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _label_block(
    paths: list[pathlib.Path], protocol: Protocol, engine: Engine, report: Progress
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"path": str(path)} for path in paths]
    groups: dict[Any, list[tuple[int, RigidBody]]] = collections.defaultdict(list)
    for i, path in enumerate(paths):
        try:
            body = meshes.body_from_mesh(path, protocol)
        except BodyError as error:
            rows[i].update(status=INVALID, reason=error.reason, sha256=meshes.sha256(path))
            report("drop", 1)
        except OSError:
            rows[i].update(status=INVALID, reason="unreadable")
            report("drop", 1)
        else:
            groups[body.points.shape].append((i, body))
        report("read", 1)
    simulate = drop if engine == "mjx" else referee.drop
    for members in groups.values():
        bodies = concatenate([body for _, body in members])
        rest = simulate(bodies, protocol, progress=lambda count: report("drop", count))
        stable, margins = rest.stable(protocol), margin.static_margin_deg(bodies)
        for k, (i, _) in enumerate(members):
            origin = bodies.provenance[k]
            valid = rest.status[k] != INVALID
            rows[i].update(
                sha256=origin.sha256,
                status=rest.status[k],
                reason=rest.reason[k],
                stable=bool(stable[k]) if valid else None,
                tilt_deg=_number(rest.tilt_deg[k]),
                rotation_deg=_number(rest.rotation_deg[k]),
                margin_deg=float(margins[k]),
                steps=int(rest.steps[k]),
                points=origin.hull_points,
                mass=float(bodies.mass[k]),
                inertia=origin.inertia,
                inertia_fallback=origin.fallback,
            )
    return rows


def _number(value: np.floating) -> float | None:
    """Null rather than NaN, so that readers need not know which one means "no label"."""
    return float(value) if math.isfinite(value) else None


def _is_mesh(path: pathlib.Path) -> bool:
    return path.is_file() and path.suffix.lower().lstrip(".") in meshes.UP_AXIS
