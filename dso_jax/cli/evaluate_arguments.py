"""What `dso evaluate` takes, checked before anything is read or written."""

from __future__ import annotations

import argparse
import math
import pathlib
import tempfile

from dso_jax.cli.evaluate_help import DESCRIPTION, EPILOG
from dso_jax.cli.parser import Parser, whole
from dso_jax.errors import UsageError

PAPER_ANGLES = "0.01,0.02,0.04,0.08"
# What an option may list; the modules behind them take seconds to import.
ENGINES = ("mjx", "mujoco", "mujoco_warp", "legacy", "sapien")
CUTS = ("cut-0.05", "cut-0.1", "cut-0.15", "cut-0.2")
BASELINES = (*CUTS, "best-pose", "best-of-n")
OURS = ("results.json", "results.csv", "report.html", "parts", "samples")


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; what it refuses is a `UsageError`."""
    made = Parser("evaluate", DESCRIPTION, EPILOG)
    add = made.add_argument
    add("paths", nargs="+", metavar="PATHS", help="files, folders or globs; or one run folder")
    add("--out", required=True, metavar="FOLDER", help="results.json, results.csv, report.html")
    add("--before", metavar="WHAT", help="the same samples before post-training: folder or glob")
    add("--truth", metavar="FOLDER", help="true objects, named as the objects")
    add("--categories", metavar="CSV", help="columns object,category; default: subfolders")
    add("--protocol", default="dso-eval", metavar="NAME|YAML", help="default: dso-eval")
    add("--up", choices=("auto", "y", "z"), default="auto", help="up axis; default: by format")
    add("--truth-up", choices=("auto", "y", "z"), default="auto", help="of --truth")
    add(
        "--engines",
        type=_listed(ENGINES),
        default=["mjx"],
        metavar="LIST",
        help=f"of {', '.join(ENGINES)}: the first makes the tables, the others are compared with "
        "it; default: mjx",
    )
    add(
        "--perturb",
        type=_angles,
        nargs="?",
        const=_angles(PAPER_ANGLES),
        default=[],
        metavar="RAD,...",
        help=f"survival of perturbed starts; without angles: {PAPER_ANGLES}",
    )
    add("--starts", type=whole(1), default=100, metavar="R", help="at each angle; default: 100")
    add("--seed", type=whole(0), default=0, help="of starts and surface samples; default: 0")
    add("--geometry", choices=("paper", "fine"), default="paper", help="fine: both; see below")
    add(
        "--baselines",
        type=_listed(BASELINES, {"cut": CUTS}),
        default=[],
        metavar="LIST",
        help="of cut (at four heights, or cut-0.1), best-pose, best-of-n",
    )
    add("--no-shapes", dest="shapes", action="store_false", help="no shape measures, no guards")
    add("--strict", action="store_true", help="write nothing and fail if any file is invalid")
    add("--workers", type=whole(0), metavar="N", help="processes that read files; default: cores")
    runs = made.add_argument_group("run folders of dso train, and adapters")
    add = runs.add_argument
    add("--checkpoints", metavar="WHICH", help="best, last, all or a step; default: best")
    add("--objects", type=whole(1), metavar="N", help="held-out toybox objects; default: 96")
    add("--samples", type=whole(1), metavar="N", help="samples of each prompt; default: 4")
    add("--base", metavar="NAME", help="generator; default: the one that the run records")
    add("--images", nargs="+", metavar="GLOB", help="held-out pictures, if it is not the toybox")
    add("--views", action="store_true", help="the pictures of a folder show one object")
    add("--encoder", metavar="PATH", help="DINOv2, as dso sample takes it")
    add("--remover", metavar="FILE", help="of backgrounds, as dso sample takes it")
    return made


def folder(name: str) -> pathlib.Path:
    """The folder of results, there or to be made; checked by writing a temporary file.

    Raises:
        UsageError: it cannot be written, or holds other things.
    """
    path = pathlib.Path(name)
    if path.exists() and not path.is_dir():
        raise UsageError(f"evaluate: --out {name}: is a file, expected a folder")
    if path.is_dir():
        strange = sorted(entry.name for entry in path.iterdir() if entry.name not in OURS)
        if strange and not (path / OURS[0]).exists():
            raise UsageError(
                f"evaluate: --out {name}: holds {strange[0]}, which is no evaluation's; choose an "
                "empty or a new folder"
            )
    home = path if path.is_dir() else path.parent
    if not home.is_dir():
        raise UsageError(f"evaluate: --out {name}: no folder {home}")
    try:
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise UsageError(f"evaluate: --out {name}: cannot write there: {error}") from error
    return path


def _listed(known: tuple[str, ...], several: dict[str, tuple[str, ...]] | None = None):
    """Reads a list with commas; `several` are names for more than one."""
    names = {name: (name,) for name in known} | (several or {})

    def read(text: str) -> list[str]:
        found: dict[str, None] = {}
        for name in text.split(","):
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(names)}")
            found |= dict.fromkeys(names[name])
        return list(found)

    return read


def _angles(text: str) -> list[float]:
    try:
        found = [float(one) for one in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected radians with commas") from None
    if not all(0 < one <= math.pi for one in found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected different angles between 0 and pi")
    return sorted(found)
