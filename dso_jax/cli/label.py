"""`dso label`: drop meshes in the simulator and write which of them stand."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import logging
import os
import pathlib
import tempfile
from typing import NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dso_jax.errors import UsageError

_HELP = """\
Drop every mesh onto a plane in MuJoCo MJX and write one row a file: does it stand?

PATHS are mesh files (GLB, glTF, OBJ, STL, PLY, DAE, OFF, 3MF), folders (searched recursively) or
quoted globs. Meshes need not be watertight. Each is turned z-up, scaled and dropped upright as the
protocol says; it is stable if it ends within 20 degrees of how it started.
"""
_EPILOG = """\
protocols
  dso-eval   scaled to unit size, 1 ms steps, up to 10 s, stops early once at rest (the default)
  dso-label  raw file units, 1 ms steps, always 10 s: how DSO labelled its training set
  fast       dso-eval with 2 ms steps: half the time, 0-0.3 % of labels differ
  FILE.yaml  your own: fields that differ from dso-eval, or from `preset: NAME`

columns
  path sha256 status reason stable tilt_deg rotation_deg margin_deg steps points mass inertia
  inertia_fallback protocol engine engine_version device
  status is rest, moving (still moving at the end) or invalid; an invalid row says why in `reason`
  (not_a_mesh, unsupported, empty, nan_vertices, flat, unreadable, mujoco_rejects, not_finite), and
  has no label. tilt_deg ignores yaw, rotation_deg counts it. margin_deg is the smallest angle by
  which the object, as it starts, would have to be tipped to fall; it needs no simulation.

exit codes
  0  labelled, perhaps with invalid rows
  2  nothing could be labelled, an argument is unusable, or --strict met an invalid file

examples
  dso label chair.glb --out labels.parquet
  dso label meshes/ 'more/**/*.obj' --out labels.parquet --protocol fast
  dso label prints/ --out labels.parquet --up z --engine mujoco --strict
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"label: {message} (see dso label --help)")


def main(args: list[str]) -> int:
    """Runs the command; see `--help`.

    Raises:
        UsageError: an argument cannot be used. Nothing has been read or written then.
    """
    options = _parser().parse_args(args)
    console = Console(stderr=True)
    out = _writable(options.out)

    # Simulation libraries take seconds to import; `--help` and typing mistakes need not wait.
    from sim_mjx import label
    from sim_mjx.protocol import Protocol, ProtocolError

    try:
        protocol = Protocol.resolve(options.protocol)
        paths = label.expand_paths(options.paths)
    except (ProtocolError, label.LabelError) as error:
        raise UsageError(f"label: {error}") from error
    if options.up is not None:
        protocol = dataclasses.replace(protocol, up=options.up)

    logging.getLogger("trimesh").setLevel(logging.ERROR)  # it tells of every texture
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        tasks = {
            "read": bar.add_task("read", total=len(paths)),
            "drop": bar.add_task("drop", total=len(paths)),
        }
        table = label.label_files(
            paths,
            protocol,
            engine=options.engine,
            progress=lambda stage, count: bar.advance(tasks[stage], count),
        )
    rows = table.to_pylist()
    invalid = [row for row in rows if row["status"] == "invalid"]
    for row in invalid:
        logging.getLogger(__name__).warning("%s: invalid: %s", row["path"], row["reason"])
    if options.strict and invalid:
        raise UsageError(
            f"label: --strict: {len(invalid)} of {len(rows)} files are invalid, "
            f"first {invalid[0]['path']} ({invalid[0]['reason']}); {out} was not written"
        )
    label.write_labels(table, out)
    console.print(_summary(rows))
    console.print(f"{len(rows)} rows in {out}, protocol {options.protocol} ({protocol.hash()})")
    if len(invalid) == len(rows):
        raise UsageError(f"label: none of {len(rows)} files could be labelled; reasons in {out}")
    return 0


class _RateColumn(ProgressColumn):
    """Objects a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0.0:.1f}/s")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dso label",
        description=_HELP,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="files, folders or globs")
    parser.add_argument("--out", required=True, metavar="FILE", help="parquet file to write")
    parser.add_argument(
        "--protocol", default="dso-eval", metavar="NAME|YAML", help="default: dso-eval"
    )
    parser.add_argument(
        "--engine", choices=("mjx", "mujoco"), default="mjx", help="default: mjx; mujoco is C"
    )
    parser.add_argument(
        "--up", choices=("auto", "y", "z"), help="the files' up axis; auto goes by format"
    )
    parser.add_argument(
        "--strict", action="store_true", help="write nothing and fail if any file is invalid"
    )
    return parser


def _writable(name: str) -> pathlib.Path:
    """The output path, checked by making a temporary file beside it."""
    path = pathlib.Path(name)
    if path.suffix != ".parquet":
        raise UsageError(f"label: --out {name}: expected a .parquet file")
    if path.is_dir():
        raise UsageError(f"label: --out {name}: is a folder, expected a file")
    if not path.parent.is_dir():
        raise UsageError(f"label: --out {name}: no folder {path.parent}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(f"cannot overwrite {path}")
    except OSError as error:
        raise UsageError(f"label: --out {name}: cannot write there: {error}") from error
    return path


def _summary(rows: list[dict]) -> Table:
    stable = sum(row["stable"] is True for row in rows)
    fallen = sum(row["stable"] is False for row in rows)
    table = Table(show_header=False)
    labelled = max(stable + fallen, 1)
    table.add_row("stable", f"{stable}", f"{100 * stable / labelled:.1f} %")
    table.add_row("unstable", f"{fallen}", f"{100 * fallen / labelled:.1f} %")
    moving = sum(row["status"] == "moving" for row in rows)
    table.add_row("still moving", f"{moving}", "counted above")
    reasons = collections.Counter(row["reason"] for row in rows if row["status"] == "invalid")
    for reason, count in reasons.most_common():
        table.add_row("invalid", f"{count}", reason)
    return table
