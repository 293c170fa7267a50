"""What `dso label` shows while it works: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import collections
import logging
import threading
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

LOG_SECONDS = 30.0  # between two lines where there is no terminal

_log = logging.getLogger(__name__)


class Monitor:
    """Counts files as they pass the stages of a job; use it as a context and as its callback.

    Args:
        console: where bars are drawn, if it is a terminal.
        total: files of this run.
        clock: seconds.
        first: the stage that precedes the drop.
        rated: the stage that says how fast it goes.
        what: is counted.
    """

    def __init__(
        self,
        console: Console,
        total: int,
        clock=time.monotonic,
        *,
        first: str = "read",
        rated: str = "drop",
        what: str = "files",
    ) -> None:
        self._rated, self._what = rated, what
        self.counts: collections.Counter[str] = collections.Counter()
        self._total, self._clock = total, clock
        self._started = self._said = clock()
        self._lock = threading.Lock()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
        )
        self._terminal = console.is_terminal
        self._bar = Progress(*columns, console=console, transient=True)
        self._tasks = {
            stage: self._bar.add_task(stage, total=total, said="") for stage in (first, "drop")
        }

    def __enter__(self) -> Monitor:
        if self._terminal:
            self._bar.start()
        return self

    def __exit__(self, *exc_info) -> None:
        if self._terminal:
            self._bar.stop()

    def __call__(self, stage: str, count: int) -> None:
        """Takes note of `count` files that have passed a stage; any thread may call."""
        with self._lock:
            self.counts[stage] += count
            if stage in self._tasks:
                self._bar.advance(self._tasks[stage], count)
            self._bar.update(self._tasks["drop"], said=f"{self.rate()}  {self.shares()}")
            now = self._clock()
            if not self._terminal and now - self._said >= LOG_SECONDS:
                self._said = now
                done = self.counts[self._rated]
                said = f"{self.rate()}  {self.shares()}"
                _log.info("%d of %d %s, %s", done, self._total, self._what, said)

    def rate(self) -> str:
        """How many a second so far, and how long the rest will take at that."""
        done, seconds = self.counts[self._rated], self._clock() - self._started
        if not done or seconds <= 0:
            return ""
        left = (self._total - done) * seconds / done
        unit = "labels" if self._rated == "drop" else self._what
        return f"{done / seconds:.1f} {unit}/s, {_duration(left)} left"

    def shares(self) -> str:
        """Shares of the rows that are made."""
        labelled = self.counts["stable"] + self.counts["unstable"]
        made = labelled + self.counts["invalid"]
        if not made:
            return ""
        stable = 100 * self.counts["stable"] / max(labelled, 1)
        moving, invalid = (100 * self.counts[name] / made for name in ("moving", "invalid"))
        return f"stable {stable:.1f} %, moving {moving:.1f} %, invalid {invalid:.1f} %"


def summary(rows: dict[str, list]) -> Table:
    """The closing table.

    Args:
        rows: columns `stable`, `status`, `reason` and `adjudicated`.
    """
    stable = sum(value is True for value in rows["stable"])
    fallen = sum(value is False for value in rows["stable"])
    labelled = max(stable + fallen, 1)
    table = Table(show_header=False)
    table.add_row("stable", f"{stable}", f"{100 * stable / labelled:.1f} %")
    table.add_row("unstable", f"{fallen}", f"{100 * fallen / labelled:.1f} %")
    table.add_row("still moving", f"{rows['status'].count('moving')}", "counted above")
    if settled := sum(map(bool, rows["adjudicated"])):
        table.add_row("close calls", f"{settled}", "counted above, settled by C MuJoCo")
    pairs = zip(rows["status"], rows["reason"], strict=True)
    reasons = collections.Counter(reason for status, reason in pairs if status == "invalid")
    for reason, count in reasons.most_common():
        table.add_row("invalid", f"{count}", reason)
    return table


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
