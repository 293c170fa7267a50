"""`dso label --explain`: one object replayed, as a card on the terminal and as a picture."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import pathlib
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from dso_jax.atomic import write_atomic
from dso_jax.errors import UsageError


class Subject(NamedTuple):
    """What to replay: a file, and its row if it comes from a table of labels."""

    path: pathlib.Path
    row: dict[str, Any] | None
    protocol: dict[str, Any] | None


def main(options: argparse.Namespace) -> int:
    """Replays `options.explain`; prints a card and writes a picture if `--out` names one.

    Raises:
        UsageError: there is no such object, it cannot be read, or has no body.
    """
    picture = None if options.out is None else _picture(options.out)
    subject = _subject(options.explain)
    if options.paths:
        raise UsageError(f"label: --explain replays one object; {options.paths[0]} is too much")

    # Simulation libraries take seconds to import; typing mistakes need not wait.
    from dso_jax.report.drop_card import drop_card
    from dso_jax.report.pictures import Surface
    from sim_mjx import engines, meshes
    from sim_mjx.bodies import BodyError
    from sim_mjx.explain import explain
    from sim_mjx.protocol import Protocol, ProtocolError
    from sim_mjx.worker import WorkerError

    logging.getLogger("trimesh").setLevel(logging.ERROR)  # it tells of every texture
    try:
        if subject.protocol is None:
            protocol = Protocol.resolve(options.protocol)
        else:
            protocol = Protocol.from_dict(subject.protocol, options.explain)
        if options.up is not None:
            protocol = dataclasses.replace(protocol, up=options.up)
        name, step = options.engine, options.mjx_step
        if subject.row is not None:
            name = subject.row["engine"]
            step = "stock" if subject.row["engine_version"].endswith("stock") else "slim"
        explanation = explain(subject.path, protocol, engines.resolve(name, step))
    except BodyError as error:
        raise UsageError(f"label: {error} ({error.reason})") from error
    except (ProtocolError, engines.EngineError, WorkerError) as error:
        raise UsageError(f"label: {error}") from error
    except OSError as error:
        raise UsageError(f"label: {subject.path}: cannot read: {error.strerror}") from error
    if picture is not None:
        mesh = meshes.load_mesh(subject.path)
        surface = Surface(meshes.start_vertices(mesh, protocol), mesh.triangles)
        card = drop_card(explanation, surface)
        _save(picture, card)
    console = Console()
    console.print(_card(explanation, subject.row))
    console.print(_variants(explanation))
    if picture is not None:
        console.print(f"picture in {picture}")
    return 0


def _card(explanation, row: dict[str, Any] | None) -> Table:
    rest, protocol = explanation.rest, explanation.protocol
    card = Table(title=str(explanation.path), show_header=False)
    label = {None: "no label", True: "stable", False: "unstable"}[explanation.stable]
    who = ", settled by C MuJoCo" if explanation.adjudicated else ""
    card.add_row("label", f"{label} ({rest.reason[0] or rest.status[0]}{who})")
    distance = explanation.angle_deg - protocol.threshold_deg
    side = "above" if distance >= 0 else "below"
    distance = f"{abs(distance):.2f} deg {side} the threshold"
    card.add_row(protocol.measure, f"{_degrees(explanation.angle_deg)}, {distance}")
    card.add_row("tilt", f"{_degrees(rest.tilt_deg[0])} after {rest.steps[0]} steps")
    if row is not None:
        stored = {None: "no label", True: "stable", False: "unstable"}[row["stable"]]
        angle = math.nan if row["tilt_deg"] is None else row["tilt_deg"]
        same = "" if row["sha256"] == explanation.body.provenance[0].sha256 else "; FILE CHANGED"
        card.add_row("the row", f"{stored}, tilt {_degrees(angle)}{same}")
    direction = explanation.margin_direction_deg
    towards = "" if math.isnan(direction) else f" towards {direction:.0f} deg from x"
    card.add_row("margin", f"{_degrees(explanation.margin_deg)}{towards}")
    for name, footing in (("stands on", explanation.start), ("rests on", explanation.end)):
        corners = len(footing.corners)
        shape = f"a polygon of {corners} corners" if corners else "no area"
        card.add_row(name, f"{shape}, points that touch: {len(footing.points)}")
    survival = ", ".join(f"{100 * rate:.0f} % at {t:g}" for t, rate in explanation.survival.items())
    card.add_row("survives", f"{survival} rad")
    origin = explanation.body.provenance[0]
    fallback = f" ({origin.fallback})" if origin.fallback else ""
    mass = float(explanation.body.mass[0])
    card.add_row(
        "body", f"{origin.hull_points} hull points, {mass:.4g} kg by {origin.inertia}{fallback}"
    )
    return card


def _variants(explanation) -> Table:
    table = Table("choice", explanation.protocol.measure, "label", "flips", "note")
    for variant in explanation.variants:
        label = {None: "", True: "stable", False: "unstable"}[variant.stable]
        flips = "FLIPS" if variant.flips else ""
        table.add_row(variant.choice, _degrees(variant.angle_deg), label, flips, variant.note)
    return table


def _degrees(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f} deg"


def _subject(what: str) -> Subject:
    name, colon, number = what.rpartition(":")
    if not colon or not name.endswith(".parquet"):
        path = pathlib.Path(what)
        if path.suffix == ".parquet":
            raise UsageError(f"label: --explain {what}: which row? write {what}:ROW")
        if not path.is_file():
            raise UsageError(f"label: --explain {what}: no such file")
        return Subject(path, None, None)
    if not number.isdigit():
        raise UsageError(f"label: --explain {what}: expected TABLE.parquet:ROW")
    try:
        table = pq.read_table(name)
        stored = (table.schema.metadata or {})[b"protocol"]
    except KeyError:
        raise UsageError(f"label: --explain {what}: {name} is not a table of labels") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"label: --explain {what}: cannot read {name}: {error}") from error
    if int(number) >= len(table):
        raise UsageError(f"label: --explain {what}: expected a row in 0..{len(table) - 1}")
    row = table.slice(int(number), 1).to_pylist()[0]
    return Subject(pathlib.Path(row["path"]), row, json.loads(stored))


def _picture(name: str) -> pathlib.Path:
    path = pathlib.Path(name)
    if path.suffix != ".png":
        raise UsageError(f"label: --out {name}: --explain writes a .png file")
    if not path.parent.is_dir():
        raise UsageError(f"label: --out {name}: no folder {path.parent}")
    return path


def _save(path: pathlib.Path, card: bytes) -> None:
    def write(temporary: pathlib.Path) -> None:
        temporary.write_bytes(card)

    write_atomic(path, write)
