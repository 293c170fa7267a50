"""metrics.jsonl and the progress bar."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dso_jax.atomic import write_text

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 30.0


class MetricLog:
    """JSON lines, appended and flushed one by one; a resumed run drops what it will write again.

    A line has `kind`: `train` lines (step n: the batch of step n, before its update), `eval` lines
    (step n: after n updates), or `stop` with a guard's `reason`. What is not finite is null.

    Args:
        path: of metrics.jsonl.
        start: the step from which the run goes on.
        active: whether this process writes (the first does).
    """

    def __init__(self, path: Path, start: int, active: bool = True) -> None:
        self.rows = [row for row in _read(path) if _precedes(row, start)] if start else []
        self._file = None
        if active:
            # Whole or not at all: other processes may be reading it.
            write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))
            self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """Append one line; returns it."""
        row: dict[str, Any] = {"kind": kind, "step": step}
        for name, value in values.items():
            value = value.item() if hasattr(value, "item") else value
            finite = not isinstance(value, float) or math.isfinite(value)
            row[name] = value if finite else None
        self.rows.append(row)
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        return row

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _precedes(row: dict[str, Any], start: int) -> bool:
    return row["step"] < start or (row["kind"] == "eval" and row["step"] == start)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line during which the run was killed
            break
    return rows


class Throughput:
    """Samples a second of the training steps alone; `pause` leaves out evaluations and saves.

    Args:
        samples: in one step.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._restart()

    def tick(self) -> None:
        """Count one step."""
        self._steps += 1

    def rate(self) -> float:
        """Samples a second since the last call; meaningful once the device has finished."""
        seconds = time.monotonic() - self._start - self._paused
        rate = self._steps * self._samples / max(seconds, 1e-9)
        self._restart()
        return rate

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the time inside."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - begin

    def _restart(self) -> None:
        self._start, self._paused, self._steps = time.monotonic(), 0.0, 0


def headline(row: dict[str, Any]) -> str:
    """A `train` line of the log in a few words."""
    loss = "not finite" if row["loss"] is None else f"{row['loss']:.4f}"
    return f"loss {loss}  {row['samples_per_s']:.1f} samples/s"


class NonFiniteError(RuntimeError):
    """Too many steps in a row whose loss or gradient was NaN or infinite."""


def check_finite(row: dict[str, Any], limit: int) -> None:
    """Raise once `limit` steps in a row were skipped; `row` is a `train` line of the log."""
    if row["streak"] >= limit:
        last, count = row["step"], row["streak"]
        raise NonFiniteError(
            f"loss or gradient is not finite in steps {last - count + 1}..{last}; their updates "
            "were skipped. Lower optim.learning_rate, or look at the data"
        )


@contextlib.contextmanager
def progress_bar(description: str, start: int, total: int, active: bool = True) -> Iterator:
    """A progress bar on stderr; yields update(step, text).

    Where nobody watches (stderr is a file), it is a log line now and then instead.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    shown = active and console.is_terminal
    said = time.monotonic()
    # Two redraws a second: on two cores, a faster bar takes time from the training.
    with Progress(*columns, console=console, refresh_per_second=2, disable=not shown) as progress:
        task = progress.add_task(description, total=total, completed=start, text="")
        latest = ""

        def update(step: int, text: str | None = None) -> None:
            nonlocal said, latest
            latest = latest if text is None else text
            progress.update(task, completed=step, text=latest)
            if active and not shown and time.monotonic() - said > SECONDS_BETWEEN_LINES:
                logger.info("%s %d/%d  %s", description, step, total, latest)
                said = time.monotonic()

        yield update
