"""Stages of a long command: a bar with a rate on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_SECONDS = 30.0  # between two lines where there is no terminal

_log = logging.getLogger(__name__)


class Stages:
    """Tells of one stage after the other, and remembers what each took.

    Args:
        console: where bars are drawn, if it is a terminal.
        clock: seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = {}
        self._console, self._clock = console, clock

    @contextlib.contextmanager
    def __call__(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A stage of `total` things; gives what counts the finished."""
        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        terminal, started = self._console.is_terminal, self._clock()
        bar = Progress(*columns, console=self._console, transient=True, disable=not terminal)
        task, said, done = bar.add_task("", total=total, rate=""), [started], [0]

        def tell(finished: int) -> None:
            done[0] += finished
            now = self._clock()
            rate = f"{done[0] / max(now - started, 1e-9):.1f}/s"
            bar.update(task, advance=finished, rate=rate)
            if not terminal and now - said[0] >= LOG_SECONDS:
                said[0] = now
                _log.info("%s: %d of %d, %s", title, done[0], total, rate)

        with bar:
            yield tell
        self.seconds[title] = round(self._clock() - started, 2)
        _log.info("%s: %d in %.1f s", title, total, self.seconds[title])
