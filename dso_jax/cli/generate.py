"""`dso generate`: pictures in, a labelled dataset of samples out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dso_jax.cli import generate_arguments
from dso_jax.errors import UsageError

# Fills an H200; with twice as many, arrays of the guided MLP have 2^31 elements, and labels wait
# twice as long for their turn between two batches.
GPU_BATCH = 32

_log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Runs the command; see `--help`.

    Raises:
      UsageError: an argument cannot be used, no picture could be, or --strict met one.
    """
    options = generate_arguments.parse(argv)

    # JAX and the simulator take seconds to import; `--help` and typing mistakes need not wait.
    from dso_jax.cli import generate_source
    from dso_jax.cli.label_monitor import Monitor
    from dso_jax.generation.blocks import Recipe
    from dso_jax.generation.dataset import DatasetJob
    from sim_mjx.protocol import Protocol, ProtocolError

    out = _folder(options.out)
    timings = None if options.timings is None else _file(options.timings)
    try:
        protocol = Protocol.resolve(options.protocol)
    except ProtocolError as error:
        raise UsageError(f"generate: {error}") from error
    name = options.base or _default_base(options)
    pictures = generate_source.open_source(name, options)
    generator, origin = _generator(name, options)
    source = pictures.load(generator.dtype)
    recipe = Recipe(options.samples, options.first_sample, options.seed, options.store)
    job = DatasetJob(
        generator,
        source,
        out,
        protocol,
        recipe,
        origin=origin | pictures.origin,
        share=options.shard,
    )
    console = Console(stderr=True)
    if 0 < job.there < job.asked:
        console.print(f"going on: {job.there} of {job.asked} samples are there already")
    started = time.monotonic()
    try:
        missing, counts = job.asked - job.there, {"first": "sample", "rated": "sample"}
        with Monitor(console, missing, **counts, what="samples") as monitor:
            report = job.run(meshes=options.meshes, strict=options.strict, progress=monitor)
    except KeyboardInterrupt:
        console.print(f"what is finished is kept in {out}; the same command goes on")
        raise
    seconds = time.monotonic() - started
    made = monitor.counts["sample"]
    if made:
        console.print(_times(report, made, seconds))
    if timings:
        _write(timings, _record(options, report, made, seconds, generator, protocol))
    _say(report, out, options, protocol, len(source.objects))
    return 0


def _folder(name: str) -> Path:
    path = Path(name)
    if path.exists() and not path.is_dir():
        raise UsageError(f"generate: --out {name}: is a file, expected a folder")
    if path.is_dir() and any(path.iterdir()) and not (path / "meta.json").is_file():
        raise UsageError(f"generate: --out {name}: is not empty, and no dataset folder")
    above = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"generate: --out {name}: no right to write in {above}")
    return path


def _file(name: str) -> Path:
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"generate: --timings {name}: expected a file in a folder that exists")
    return path


def _default_base(options: argparse.Namespace) -> str:
    from dso_jax.cli import adapters

    recorded = adapters.recorded_base(Path(options.adapter)) if options.adapter else None
    if recorded is not None:
        return recorded
    return generate_arguments.TOYBOX if options.prompts else generate_arguments.BASE


def _generator(name: str, options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The generator on all devices, and what more there is to say of it."""
    import jax

    from dso_jax import pretrained
    from dso_jax.cli import adapters
    from dso_jax.generation.generate import BATCH
    from dso_jax.generation.generator import Generator, fast_execution
    from dso_jax.models import Execution
    from weight_port import layouts

    devices = jax.local_devices()
    dtype = options.dtype
    if dtype == "auto":
        small = name == generate_arguments.TOYBOX or devices[0].platform == "cpu"
        dtype = "float32" if small else "bfloat16"
    base = pretrained.load(name, dtype=dtype)
    asked = {"steps": options.steps, "guidance_weight": options.guidance}
    changed = {key: value for key, value in asked.items() if value is not None}
    base = dataclasses.replace(base, sampler=dataclasses.replace(base.sampler, **changed))
    params, lora, adapter = base.flow_params, None, None
    if options.adapter is not None:
        found = adapters.find(Path(options.adapter))
        params, lora = adapters.attach(base, Path(options.adapter))
        weights = found if found.is_file() else found / "adapter_model.safetensors"
        adapter = layouts.sha256(weights)
    _log.info("%d x %s, %s, %s", len(devices), devices[0].device_kind, name, dtype)
    fast = dtype == "bfloat16" and devices[0].platform == "gpu"
    generator = Generator.of(
        base,
        params,
        devices=devices,
        lora=lora,
        adapter=adapter,
        execution=fast_execution() if fast else Execution(dtype=dtype),
        decoder_dtype="float16" if fast else "float32",  # on a GPU TRELLIS's own type
        batch=options.batch or (GPU_BATCH if devices[0].platform == "gpu" else BATCH),
    )
    return generator, {}


def _times(report, made: int, seconds: float) -> Table:
    table = Table(title=f"{made} samples in {seconds:.1f} s", title_justify="left")
    for column in ("stage", "seconds", "share"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, spent in report.seconds.items():
        table.add_row(stage, f"{spent:.1f}", f"{100 * spent / seconds:.1f} %")
    table.add_row("compiling, of these", f"{report.compiling:.1f}", "")
    return table


def _record(options, report, made: int, seconds: float, generator, protocol) -> dict[str, Any]:
    import jax

    from dso_jax.demo import versions

    device = jax.local_devices()[0]
    return {
        "device": f"{len(generator.flow)} x {device.platform} {device.device_kind}",
        "versions": versions(),
        "generator": generator.settings(),
        "protocol": {"name": options.protocol, "hash": protocol.hash()},
        "samples": made,
        "seconds": round(seconds, 3),
        "compiling": round(report.compiling, 3),
        "stages": {stage: round(spent, 3) for stage, spent in report.seconds.items()},
    }


def _write(path: Path, record: dict[str, Any]) -> None:
    from dso_jax.atomic import write_text

    try:
        write_text(path, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"generate: --timings {path}: {error.strerror}") from error


def _say(report, out: Path, options, protocol, prompts: int) -> None:
    if report.problems:
        print(f"{len(report.problems)} pictures or samples could not be used, and were left out")
    named = f"protocol {options.protocol} ({protocol.hash()})"
    if not report.complete:
        print(f"this share of {prompts} prompts is in {out}, {named}; others are still missing")
        return
    from dso_jax.dataset.stats import measure

    stats = measure(out)
    share = 100 * stats.stable / max(1, stats.stable + stats.unstable)
    print(
        f"{stats.samples} samples of {stats.objects} objects in {out}, {named}: {share:.1f} % "
        f"stand, {stats.usable_objects} objects have both labels (dso dataset stats {out})"
    )
