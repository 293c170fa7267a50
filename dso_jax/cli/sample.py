"""`dso sample`: one picture in, one mesh out, and whether it stands."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dso_jax.cli import sample_arguments
from dso_jax.errors import UsageError

_log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Runs the command; see `--help`.

    Raises:
      UsageError: an argument, the picture or the weights cannot be used, or every sample is
        empty. Nothing has been written then.
    """
    options = sample_arguments.parse(argv)
    # JAX takes seconds to import; `--help` and typing mistakes need not wait.
    from dso_jax import mesh_export, mesh_simplify, meshes
    from dso_jax.cli import adapters, sample_prompts
    from dso_jax.generation import generate
    from sim_mjx.protocol import Protocol, ProtocolError

    out = mesh_export.check_path(options.out)
    if options.simplify is not None:
        mesh_simplify.check_installed()
    try:
        protocol = Protocol.resolve(options.protocol)
    except ProtocolError as error:
        raise UsageError(f"sample: {error}") from error
    name = options.base or _default_base(options)
    wanted = sample_prompts.conditioning_of(name)
    pixels = sample_prompts.read(options.image, options.remover)
    # Before the generator is loaded, so that the encoder has left the memory.
    condition = sample_prompts.condition(pixels, options.image, wanted, options.encoder)

    base = _load(name, options)
    params, lora = base.flow_params, None
    if options.adapter is not None:
        params, lora = adapters.attach(base, Path(options.adapter))

    seeds = options.seed + np.arange(options.best_of)
    conditions = condition.repeat(len(seeds), axis=0)
    with _stage("sampled", len(seeds)) as progress:
        # One at a time: the same seed then gives the same file alone and among others.
        latents = generate.sample_latents(
            base, params, conditions, seeds, lora=lora, batch=1, progress=progress
        )
        logits = generate.decode(base, latents, batch=1)
    with _stage("dropped", len(seeds)) as progress:
        labelled = generate.label(logits, protocol, progress=progress)
    best = _best(labelled, protocol)
    mesh = meshes.surface(logits[best], saturation=protocol.saturation, smooth=options.smooth)
    if options.simplify is not None:
        height = float(np.ptp(mesh.vertices[:, 2]))
        mesh = mesh_simplify.simplify(mesh, options.simplify / options.height_mm * height)
    try:
        written = mesh_export.export(mesh, out, height_mm=options.height_mm, up=options.up)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error})") from error
    if len(seeds) > 1:
        Console().print(_table(seeds, labelled, protocol, best))
    print(f"seed {seeds[best]} {_verdict(labelled, protocol, best)} ({options.protocol})")
    print(_described(written, mesh.body_count))
    return 0


def _default_base(options: argparse.Namespace) -> str:
    from dso_jax.cli import adapters, sample_prompts

    recorded = adapters.recorded_base(Path(options.adapter)) if options.adapter else None
    if recorded is not None:
        return recorded
    drawn = options.image.startswith(sample_prompts.TOYBOX)
    return "toybox" if drawn else sample_arguments.BASE


def _load(name: str, options: argparse.Namespace):
    """The base, its sampler as the command line has it."""
    from dso_jax import pretrained

    base = pretrained.load(name)
    asked = {"steps": options.steps, "guidance_weight": options.guidance}
    changed = {key: value for key, value in asked.items() if value is not None}
    return dataclasses.replace(base, sampler=dataclasses.replace(base.sampler, **changed))


def _best(labelled, protocol) -> int:
    """The one that stands with the largest margin; if all fall, the one with the largest."""
    usable = labelled.rest.status != "invalid"
    if not usable.any():
        reasons = ", ".join(sorted({str(reason) for reason in labelled.rest.reason}))
        raise UsageError(f"sample: no sample is a solid ({reasons}); try another --seed")
    stable = labelled.rest.stable(protocol)
    order = [(usable[i], stable[i], labelled.margin_deg[i], -i) for i in range(len(usable))]
    return order.index(max(order))


@contextlib.contextmanager
def _stage(done: str, count: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, and afterwards a line; gives what counts the finished."""
    console, started = Console(stderr=True), time.monotonic()
    columns = (TextColumn(done), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=count)
    with bar:
        yield lambda finished: bar.advance(task, finished)
    _log.info("%d %s in %.1f s, compiling included", count, done, time.monotonic() - started)


def _table(seeds: np.ndarray, labelled, protocol, best: int) -> Table:
    rest, stable = labelled.rest, labelled.rest.stable(protocol)
    table = Table(title=f"{stable.sum()} of {len(seeds)} stand", title_justify="left")
    for column in ("seed", "", "tilt, deg", "margin, deg", "status", ""):
        table.add_column(column, justify="left" if column in ("", "status") else "right")
    for i, seed in enumerate(seeds):
        status = rest.status[i] if rest.reason[i] is None else f"invalid: {rest.reason[i]}"
        table.add_row(
            str(seed),
            "stands" if stable[i] else "falls" if rest.reason[i] is None else "",
            f"{rest.tilt_deg[i]:.1f}" if rest.reason[i] is None else "",
            f"{labelled.margin_deg[i]:.1f}",
            status,
            "written" if i == best else "",
        )
    return table


def _verdict(labelled, protocol, i: int) -> str:
    rest = labelled.rest
    return (
        f"{'stands' if rest.stable(protocol)[i] else 'falls'}: tilt {rest.tilt_deg[i]:.1f} deg, "
        f"margin {labelled.margin_deg[i]:.1f} deg, "
        f"{'at rest' if rest.status[i] == 'rest' else 'still moving at the end'}"
    )


def _described(written, parts: int) -> str:
    closed = "watertight" if written.watertight else "NOT watertight"
    several = f", in {parts} separate parts" if parts > 1 else ""
    return (
        f"{written.path}: {written.height_mm:g} mm high, {written.volume_cm3:.1f} cm3, "
        f"{written.triangles} triangles, {closed}{several}; {written.up} up, in {written.unit}"
    )
