"""`dso check`: one object's card on the terminal, and its picture."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from dso_jax.atomic import write_atomic
from dso_jax.cli import check_card
from dso_jax.cli.check_help import DESCRIPTION, EPILOG
from dso_jax.cli.parser import Parser
from dso_jax.errors import UsageError

if TYPE_CHECKING:
    from dso_jax.evaluation.check import Check

EXIT = {"stands": 0, "falls": 1, "depends": 3}
UNITS = {".stl": "mm", ".3mf": "mm", ".glb": "m", ".gltf": "m"}  # by convention or specification


def main(args: list[str]) -> int:
    """Runs the command; see `--help`.

    Raises:
        UsageError: an argument or the file cannot be used; nothing has been written.
    """
    options = _parser().parse_args(args)
    path = Path(options.mesh)
    if path.is_dir():
        raise UsageError(f"check: {path}: a folder; expected one mesh (dso evaluate takes folders)")
    if not path.is_file():
        raise UsageError(f"check: {path}: no such file")
    picture = None if options.no_picture else _picture(options.out, path)

    # Simulation libraries take seconds to import; `--help` and typing mistakes need not wait.
    from dso_jax.evaluation.check import check
    from sim_mjx.bodies import BodyError
    from sim_mjx.protocol import Protocol, ProtocolError

    logging.getLogger("trimesh").setLevel(logging.ERROR)  # it tells of every texture
    try:
        protocol = Protocol.resolve(options.protocol)
        if options.up is not None:
            protocol = dataclasses.replace(protocol, up=options.up)
        found = check(path, protocol)
    except ProtocolError as error:
        raise UsageError(f"check: {error}") from error
    except BodyError as error:
        raise UsageError(f"check: {error} ({error.reason})") from error
    except OSError as error:
        raise UsageError(f"check: {path}: cannot read: {error.strerror}") from error
    if picture is not None:
        _draw(found, picture)
    unit = options.unit or UNITS.get(path.suffix.lower())
    if options.json:
        print(json.dumps(check_card.record(found, unit, picture), indent=1))
    else:
        check_card.show(found, unit, picture)
    return EXIT[found.verdict]


def _parser() -> argparse.ArgumentParser:
    made = Parser("check", DESCRIPTION, EPILOG)
    add = made.add_argument
    add("mesh", metavar="MESH", help="the file")
    add("--out", metavar="FILE", help="picture to write; default: MESH-check.png, right here")
    add("--no-picture", action="store_true", help="write no picture")
    add("--protocol", default="dso-eval", metavar="NAME|YAML", help="default: dso-eval")
    add("--up", choices=("auto", "y", "z"), help="the file's up axis; auto goes by format")
    add("--unit", choices=tuple(check_card.MILLIMETRES), help="of the file; default: by format")
    add("--json", action="store_true", help="print JSON instead of the card")
    return made


def _picture(name: str | None, mesh: Path) -> Path:
    path = Path(f"{mesh.stem}-check.png" if name is None else name)
    if path.suffix != ".png":
        raise UsageError(f"check: --out {path}: expected a .png file")
    if not path.parent.is_dir():
        raise UsageError(f"check: --out {path}: no folder {path.parent}")
    return path


def _draw(found: Check, path: Path) -> None:
    from dso_jax.report.drop_card import drop_card
    from dso_jax.report.pictures import Surface

    others = {
        mode: one.start.com
        for mode, one in found.outcomes.items()
        if not one.doubt and one is not found.shown
    }
    card = drop_card(found.shown, Surface(found.vertices, found.mesh.triangles), others)

    def write(temporary: Path) -> None:
        temporary.write_bytes(card)

    try:
        write_atomic(path, write)
    except OSError as error:
        raise UsageError(f"check: --out {path}: cannot write: {error.strerror}") from error
