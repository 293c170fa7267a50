"""What `dso check` says of an object: a card on the terminal, or the same as plain values."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from dso_jax.evaluation.check import Check, Outcome

COLOURS = {"stands": "green", "falls": "red", "depends": "yellow"}
MILLIMETRES = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "in": 25.4}
WORDS = {None: "no end", True: "stands", False: "FALLS"}
# Of `Faults`, what is not as it should be, and how to say it.
FAULTS = {
    "holes": "holes: {} ({open_edges} open edges)",
    "crowded_edges": "edges with more than two triangles: {}",
    "mixed_edges": "edges whose triangles are wound against each other: {}",
    "inside_out": "parts that are inside out: {}",
    "inner_shells": "inner shells, which are doubled walls or hidden parts: {}",
    "crumbs": "crumbs, parts shorter than 1 % of the object: {}",
    "degenerate": "triangles without area: {}",
    "doubled": "triangles that repeat another: {}",
}
DOUBTS = {
    "not_closed": "open surface",
    "mixed_winding": "mixed winding",
    "no_volume": "encloses nothing",
    "negative_volume": "inside out",
    "no_inertia": "impossible inertia",
}


def show(found: Check, unit: str | None, picture: Path | None) -> None:
    """Prints the card.

    Args:
        found: the object.
        unit: of the file, None if it is not known.
        picture: where its picture is, if there is one.
    """
    console, shown = Console(highlight=False), found.shown
    colour = COLOURS[found.verdict]
    console.print(f"[bold]{escape(str(shown.path))}[/]  [bold {colour}]{found.verdict}[/]")
    console.print(_sentence(found, unit))
    table = Table("inside", "verdict", "tilt", "margin", "at rest", "CoM height", "note")
    for mode, one in found.outcomes.items():
        bold = "bold" if one is shown else None
        table.add_row(mode, *_cells(found, one), style=bold)
    console.print(table)
    for line in _faults(found):
        console.print(line)
    label, measure = found.label, found.label.protocol.measure
    said = {None: "no label", True: "stable", False: "unstable"}[label.stable]
    console.print(
        f"dso label says: {said}, {measure} {_degrees(label.angle_deg)}, "
        f"{label.protocol.inertia} mass, protocol {label.protocol.hash()}"
    )
    if picture is not None:
        console.print(f"picture in {escape(str(picture))}")


def _cells(found: Check, one: Outcome) -> list[str]:
    if one.doubt:
        return ["", "", "", "", "", DOUBTS.get(one.doubt, one.doubt)]
    height = (one.start.com[2] - one.start.points[:, 2].min()) * found.unit
    notes = ["shown"] if one is found.shown else []
    notes += ["still moving"] if one.rest.status[0] == "moving" else []
    return [
        WORDS[one.stable],
        _degrees(one.angle_deg),
        _degrees(one.margin_deg),
        _degrees(one.settled_deg) if one.stable else "",
        f"{height:.3g}",
        ", ".join(notes),
    ]


def _sentence(found: Check, unit: str | None) -> str:
    shown, unit = found.shown, unit or "units of the file"
    heading = found.heading(shown.azimuth_deg)
    towards = f" towards {heading}" if heading else ""
    if shown.stable:
        ways = f", most easily{towards}" if towards else ""
        text = (
            f"It takes {_degrees(shown.settled_deg)} to tip it{ways}; its centre of mass is "
            f"{shown.distance * found.unit:.3g} {unit} inside the edge of what it stands on."
        )
    else:
        text = f"It falls{towards} and ends {_degrees(shown.angle_deg)} from upright."
        if found.pose is not None:
            text += (
                f" Turned by {found.pose.turn_deg:.0f}° it would stand with a margin of "
                f"{_degrees(found.pose.margin_deg)}."
            )
    sides = " x ".join(f"{side:.4g}" for side in found.extents)
    return f"{text}\nIt is {sides} {unit}, {found.up} up."


def _faults(found: Check) -> list[str]:
    counts = dataclasses.asdict(found.faults)
    parts = f"triangles: {len(found.mesh.triangles)}, parts: {counts['parts']}"
    if counts["cavities"]:
        parts += f", cavities: {counts['cavities']}"
    bad = [text.format(counts[name], **counts) for name, text in FAULTS.items() if counts[name]]
    if not bad:
        return [f"{parts}; closed, nothing wrong"]
    return [parts, *(f"  - {line}" for line in bad)]


def record(found: Check, unit: str | None, picture: Path | None) -> dict[str, Any]:
    """The same as plain values; lengths in millimetres, None where the unit is not known."""
    from sim_mjx import engines

    scale = found.unit * MILLIMETRES[unit] if unit else math.nan
    shown = found.shown
    assumptions = {
        mode: {
            "stable": one.stable,
            "tilt_deg": _number(one.angle_deg),
            "margin_deg": _number(one.margin_deg),
            "margin_at_rest_deg": _number(one.settled_deg) if one.stable else None,
            "margin_mm": _number(one.distance * scale) if one.stable else None,
            "doubt": one.doubt or None,
        }
        for mode, one in found.outcomes.items()
    }
    shown_values = assumptions[shown.protocol.inertia]
    return {
        "path": str(shown.path),
        "sha256": found.mesh.sha256,
        "verdict": found.verdict,
        "shown": shown.protocol.inertia,
        **{name: shown_values[name] for name in ("margin_deg", "margin_at_rest_deg", "margin_mm")},
        "towards": found.heading(shown.azimuth_deg) or None,
        "status": shown.rest.status[0],
        "extents": found.extents.tolist(),
        "unit": unit,
        "assumptions": assumptions,
        "faults": {**dataclasses.asdict(found.faults), "watertight": found.faults.watertight},
        "label": {
            "stable": found.label.stable,
            "tilt_deg": _number(float(found.label.rest.tilt_deg[0])),
            "rotation_deg": _number(float(found.label.rest.rotation_deg[0])),
        },
        "protocol": found.label.protocol.to_dict() | {"hash": found.label.protocol.hash()},
        "engine": engines.resolve("mujoco").record(),
        "picture": None if picture is None else str(picture),
    }


def _degrees(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}°"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
