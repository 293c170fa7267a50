"""What `dso dataset` shows: bars while it works, and the figures of a dataset as a picture."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

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

from dso_jax.dataset.stats import EDGES, FALLEN, Stats

logger = logging.getLogger(__name__)

LOG_SECONDS = 30.0  # between two lines where there is no terminal
_WIDTH = 40  # characters of the longest bar


class _RateColumn(ProgressColumn):
    """Samples a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0.0:.0f} samples/s")


class _AboveTheBar(logging.Handler):
    """Log lines that do not run into the bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows progress on standard error; gives a function of the samples dealt with and of all."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    ours = logging.getLogger("dso_jax")
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        handler = _AboveTheBar(bar.console)
        ours.addHandler(handler)
        before, ours.propagate = ours.propagate, False
        try:
            yield lambda done, total: bar.update(task, completed=done, total=total)
        finally:
            ours.propagate = before
            ours.removeHandler(handler)


def _lines(what: str) -> Callable[[int, int], None]:
    """Instead of a bar, a line now and then for the log of a job."""
    started = said = time.monotonic()
    before = None  # what an earlier run had done is no measure of this one's rate

    def say(done: int, total: int) -> None:
        nonlocal before, said
        now = time.monotonic()
        before = done if before is None else before
        if now - said >= LOG_SECONDS:
            said = now
            rate = (done - before) / (now - started)
            logger.info("%s: %d of %d samples, %.0f samples/s", what, done, total, rate)

    return say


def overview(stats: Stats) -> Table:
    """The figures of a dataset."""
    table = Table(show_header=False, box=None)
    table.add_row("objects", f"{stats.objects:,}", f"{stats.views:,} images")
    table.add_row("  with both labels", f"{stats.both:,}", f"{stats.usable_pairs:,} usable pairs")
    table.add_row("  only stable", f"{stats.only_stable:,}", "")
    table.add_row("  only unstable", f"{stats.only_unstable:,}", "")
    table.add_row("  without a label", f"{stats.unlabelled:,}", "")
    labelled = stats.stable + stats.unstable
    table.add_row("samples", f"{stats.samples:,}", "")
    table.add_row("  stable", f"{stats.stable:,}", _share(stats.stable, labelled))
    table.add_row("  unstable", f"{stats.unstable:,}", _share(stats.unstable, labelled))
    table.add_row("  still moving", f"{stats.moving:,}", "counted above")
    table.add_row("  invalid", f"{stats.invalid:,}", "no label: never drawn")
    if stats.without_condition:
        lacking = f"{stats.without_condition:,}"
        table.add_row("  without a condition", lacking, "drawn under another image of the object")
    sizes = ", ".join(f"{kind} {_size(count)}" for kind, count in stats.bytes.items())
    table.add_row("on disk", _size(sum(stats.bytes.values())), sizes)
    for how, count in stats.labelled_by.items():
        table.add_row("labels of", f"{count:,}", how)
    if "base" in stats.meta:
        table.add_row("base", str(stats.meta["base"]), "")
    return table


def histogram(stats: Stats) -> Table:
    """Bars of how far objects turned; green ones stand by DSO's threshold."""
    table = Table(show_header=False, box=None)
    largest = max(stats.histogram.values(), default=0) or 1
    name = "tilt" if stats.angle == "tilt_deg" else "rotation"
    for low, high in zip((0, *EDGES), EDGES, strict=False):
        count = stats.histogram[high]
        length = round(_WIDTH * count / largest) or int(count > 0)
        style = "green" if high <= FALLEN else "red"
        table.add_row(f"{name} {low:>3}..{high:<3}", Text("█" * length, style), f"{count:,}")
    return table


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} % of the labelled" if whole else ""


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
