"""`dso demo`: the whole method on the embedded world, as a table, a report and adapter files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence

import tyro
from rich.console import Console
from rich.table import Table

from dso_jax import demo
from dso_jax.report import page

HELP = """Sample, drop, fine-tune with SFT, DPO and DRO, and see what stands now.

  dso demo                               one seed, into runs/demo
  dso demo --seeds 3 --out runs/three    three seeds and their mean

The table, summary.json, report.html and <method>/adapter/ (PEFT files) are about held-out objects:
neither the generator's training nor the fine-tuning has seen them. An interrupted run goes on where
it stopped when the same command is given again."""


def main(argv: Sequence[str]) -> int:
    """Runs the demo and prints its table; returns 0.

    Raises:
        UsageError: an option, or what an earlier run left, cannot be used.
    """
    config = tyro.cli(demo.DemoConfig, args=argv, prog="dso demo", description=HELP)
    # Imported after the options are known to be good: it imports JAX.
    from dso_jax.demo_toybox import ToyboxWork

    command = shlex.join(["dso", "demo", *argv])
    results = demo.run(config, ToyboxWork(config), command)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table(results))
    for guard in failed_guards(results["methods"]):
        console.print(f"[yellow]guard:[/] {guard}")
    console.print(f"report:   {config.out / 'report.html'}", soft_wrap=True)
    console.print(f"numbers:  {config.out / 'summary.json'}", soft_wrap=True)
    console.print(f"adapters: {config.out}/{{{','.join(demo.METHODS)}}}/adapter", soft_wrap=True)
    return 0


def table(results: Mapping) -> Table:
    """The comparison: each seed's methods, and the mean over the seeds if there are several."""
    title = f"{results['samples']} samples of {results['objects']} held-out objects"
    shown = Table(title=title, title_justify="left", header_style="bold")
    several = len(results["seeds"]) > 1
    columns = ["method", "stand, % (95 %)", "vs base, points (95 %)", "tilt mean/median", "IoU"]
    columns += ["guards"]
    for name in (["seed"] if several else []) + columns:
        shown.add_column(name, justify="left" if name in ("seed", "method") else "right")
    if several:
        for run in results["runs"]:
            last = run["method"] == demo.METHODS[-1]
            shown.add_row(str(run["seed"]), *_row(run["method"], run), end_section=last)
    for name, numbers in results["methods"].items():
        shown.add_row(*(["mean"] if several else []), *_row(name, numbers))
    return shown


def failed_guards(methods: Mapping[str, Mapping]) -> list[str]:
    """One line for each guard that a method violates."""
    return [
        f"{page.title(name)}: {guard['label']} {guard['base']:.3f} -> {guard['value']:.3f}"
        for name, numbers in methods.items()
        for guard in numbers.get("guards", {}).values()
        if not guard["passes"]
    ]


def _row(method: str, numbers: Mapping) -> list[str]:
    stable, difference = numbers["stable_percent"], numbers.get("difference_points")
    gain = "–"
    if difference:
        gain = f"{difference['mean']:+.1f} ({difference['low']:+.1f} to {difference['high']:+.1f})"
    guards = numbers.get("guards")
    passed = "–" if guards is None else f"{sum(g['passes'] for g in guards.values())}/{len(guards)}"
    tilts = (numbers["tilt_mean_deg"], numbers["tilt_median_deg"])
    return [
        page.title(method),
        f"{stable['mean']:.1f} ({stable['low']:.1f} to {stable['high']:.1f})",
        gain,
        " / ".join("–" if tilt is None else f"{tilt:.1f}°" for tilt in tilts),
        f"{numbers['iou']:.3f}",
        passed,
    ]
