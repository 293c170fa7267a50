"""The arguments of `dso label`, checked before anything is read or written."""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile

from dso_jax.cli.label_help import DESCRIPTION, EPILOG
from dso_jax.cli.parser import Parser, whole
from dso_jax.errors import UsageError

# Where launchers say which of how many processes this one is, most specific first.
LAUNCHERS = (
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; what it refuses is a `UsageError`."""
    made = Parser("label", DESCRIPTION, EPILOG)
    add = made.add_argument
    add("paths", nargs="*", metavar="PATHS", help="files, folders or globs")
    add("--out", metavar="FILE", help="parquet file to write")
    add("--protocol", default="dso-eval", metavar="NAME|YAML", help="default: dso-eval")
    engines = ("mjx", "mujoco", "mujoco_warp")
    add("--engine", choices=engines, default="mjx", help="default: mjx; mujoco is C on all cores")
    add(
        "--mjx-step",
        choices=("slim", "stock"),
        default="slim",
        help="mjx.step itself, or its equations for one body on a plane; default: slim",
    )
    add("--up", choices=("auto", "y", "z"), help="the files' up axis; auto goes by format")
    add("--strict", action="store_true", help="write nothing and fail if any file is invalid")
    add("--overwrite", action="store_true", help="discard what --out and its parts hold")
    add("--shard", metavar="I/N", help="every N-th block from the I-th on (0/4 ... 3/4), or auto")
    add("--workers", type=_count, metavar="N", help="processes that read files; default: all cores")
    add(
        "--prepare",
        choices=("host", "device"),
        default="host",
        help="where bodies are made: whole hulls by the host, or support points by JAX",
    )
    add("--cache", metavar="DIR", help="keep prepared bodies there, for another protocol or engine")
    add("--block", type=whole(1), metavar="N", help="files whose rows are written at once")
    add(
        "--no-adjudicate",
        dest="adjudicate",
        action="store_false",
        help="keep MJX's own label for close calls",
    )
    add("--perturb", type=float, metavar="RAD", help="also drop from starts tilted by up to RAD")
    add("--starts", type=int, default=100, metavar="R", help="perturbed starts; default: 100")
    add("--seed", type=int, default=0, help="of the perturbed starts; default: 0")
    add("--into", metavar="DATA", help="give the samples of a dataset folder their meshes' labels")
    add("--dso-outputs", metavar="DIR", help="also write DSO's own label files below DIR")
    add("--explain", metavar="WHAT", help="replay one object: a mesh, or TABLE.parquet:ROW")
    return made


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value}: expected zero or more")
    return value


def shard(text: str | None, command: str = "label") -> tuple[int, int] | None:
    """`i/n` as numbers; `auto` asks the launcher of the processes. Messages name the command."""
    if text is None:
        return None
    if text == "auto":
        for index, count in LAUNCHERS:
            if index in os.environ and count in os.environ:
                first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0")) if "ARRAY" in index else 0
                text = f"{int(os.environ[index]) - first}/{os.environ[count]}"
                break
        else:
            known = ", ".join(index for index, _ in LAUNCHERS)
            raise UsageError(f"{command}: --shard auto: no launcher found (none of {known} is set)")
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        raise UsageError(f"{command}: --shard {text}: expected I/N such as 0/4, or auto") from None
    if not 0 <= index < count:
        raise UsageError(f"{command}: --shard {text}: expected 0 <= I < N")
    return index, count


def output(options: argparse.Namespace) -> pathlib.Path:
    """The table to write: --out, else the one of --into, checked by making a file beside it."""
    out, into = options.out, options.into
    if into is None:
        if out is None:
            raise UsageError("label: --out FILE.parquet is missing (see dso label --help)")
        return writable(out)
    if not pathlib.Path(into, "meta.json").is_file():
        raise UsageError(f"label: --into {into}: no such dataset folder")
    from dso_jax.dataset.labels import table_path

    place = table_path(pathlib.Path(into), options.protocol, options.engine)
    kept = writable(str(place), "--into")
    return kept if out is None else writable(out)


def writable(name: str, option: str = "--out") -> pathlib.Path:
    """A path that can be written, tried out by a temporary file beside it."""
    path = pathlib.Path(name)
    if path.suffix != ".parquet":
        raise UsageError(f"label: {option} {name}: expected a .parquet file")
    if path.is_dir():
        raise UsageError(f"label: {option} {name}: is a folder, expected a file")
    if not path.parent.is_dir():
        raise UsageError(f"label: {option} {name}: no folder {path.parent}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(f"cannot overwrite {path}")
    except OSError as error:
        raise UsageError(f"label: {option} {name}: cannot write there: {error}") from error
    return path
