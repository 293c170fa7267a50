"""`dso dataset`: look into a dataset folder, or exchange one with DSO's own scripts."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from dso_jax.cli import dataset_help
from dso_jax.cli.parser import Parser
from dso_jax.errors import UsageError


def main(argv: list[str]) -> int:
    """Runs the command; see `--help`.

    Raises:
        UsageError: an argument or a folder cannot be used.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(dataset_help.OVERVIEW)
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise UsageError(f"dataset {name}: expected one of {', '.join(COMMANDS)}")
    return COMMANDS[name](rest)


def _stats(argv: list[str]) -> int:
    parser = Parser("dataset stats", dataset_help.STATS)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a dataset folder")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a picture")
    options = parser.parse_args(argv)
    _show_stats(options.folder, as_json=options.json)
    return 0


def _validate(argv: list[str]) -> int:
    parser = Parser("dataset validate", dataset_help.VALIDATE)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a dataset folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    from dso_jax.cli.dataset_tables import progress
    from dso_jax.dataset.check import check

    with progress("read") as advance:
        checked = check(options.folder, advance)
    if options.json:
        print(json.dumps(checked._asdict(), indent=2))
    else:
        for text in checked.problems:
            print(f"wrong: {text}")
        for text in checked.notes:
            print(f"note: {text}")
    if checked.problems:
        raise UsageError(f"{options.folder}: {len(checked.problems)} problems, named above")
    if not options.json:
        print(f"{options.folder}: {checked.samples:,} samples, nothing is wrong")
    return 0


def _import(argv: list[str]) -> int:
    parser = Parser("dataset import-dso", dataset_help.IMPORT, dataset_help.IMPORT_MORE)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="DSO's data folder")
    _add_out(parser)
    parser.add_argument(
        "--strict", action="store_true", help="stop before the first shard with a damaged file"
    )
    options = parser.parse_args(argv)
    from dso_jax.cli.dataset_tables import progress
    from dso_jax.dso_folder.import_ import import_folder

    with progress("import") as advance:
        report = import_folder(options.source, options.out, strict=options.strict, progress=advance)
    for source, count in report.labels.most_common():
        print(f"{count:>8,} samples: {source}")
    if report.problems:
        print(f"{len(report.problems):,} problems were named above; the rest is imported")
    _show_stats(options.out)
    return 0


def _export(argv: list[str]) -> int:
    parser = Parser("dataset export-dso", dataset_help.EXPORT, dataset_help.EXPORT_MORE)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a dataset folder")
    _add_out(parser)
    options = parser.parse_args(argv)
    from dso_jax.cli.dataset_tables import progress
    from dso_jax.dataset.store import Dataset
    from dso_jax.dso_folder.export import export_folder

    dataset = Dataset(options.folder)
    with progress("export") as advance:
        done = export_folder(dataset, options.out, progress=advance)
    print(
        f"{len(dataset):,} samples of {done.objects:,} objects in {options.out}; "
        f"{done.with_info:,} have both labels, and DSO's loader draws from {done.with_images:,}"
    )
    if done.rounded:
        print(f"latents and conditions were {done.rounded} and have been rounded to bfloat16")
    return 0


def _coords(argv: list[str]) -> int:
    parser = Parser("dataset export-coords", dataset_help.COORDS, dataset_help.COORDS_MORE)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a dataset folder")
    _add_out(parser)
    parser.add_argument(
        "--base",
        metavar="NAME",
        help="generator that the samples are from: toybox, a TRELLIS pipeline folder or its name "
        "on the hub (default: the one that the dataset records)",
    )
    options = parser.parse_args(argv)
    from dso_jax.cli import dataset_bridge
    from dso_jax.cli.dataset_tables import progress

    with progress("decode") as advance:
        done = dataset_bridge.export(options.folder, options.out, options.base, advance)
    print(f"{done.samples:,} samples of {done.objects:,} objects in {options.out}")
    if done.empty:
        print(f"{done.empty:,} of them are empty: no mesh will come of these")
    if done.unconditioned:
        print(f"{done.unconditioned:,} are of images without a condition: the second stage skips")
    return 0


def _merge(argv: list[str]) -> int:
    parser = Parser("dataset merge", dataset_help.MERGE)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="dataset folders")
    _add_out(parser)
    options = parser.parse_args(argv)
    from dso_jax.cli.dataset_tables import progress
    from dso_jax.dataset.merge import merge

    with progress("merge") as advance:
        merge(options.folders, options.out, advance)
    _show_stats(options.out)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "stats": _stats,
    "validate": _validate,
    "import-dso": _import,
    "export-dso": _export,
    "export-coords": _coords,
    "merge": _merge,
}


def _show_stats(folder: Path, *, as_json: bool = False) -> None:
    from dso_jax.cli.dataset_tables import histogram, overview
    from dso_jax.dataset.stats import measure

    stats = measure(folder)
    if as_json:
        print(json.dumps(dataclasses.asdict(stats), indent=2))
    else:
        console = Console()
        console.print(overview(stats), histogram(stats), sep="\n")


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write or go on with"
    )
