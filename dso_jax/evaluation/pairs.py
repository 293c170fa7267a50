"""Many pairs of mesh files on all cores: one row a pair, whatever the files hold.

The work is done by processes of their own (`sim_mjx.worker_pool`): a file that crashes a parser,
eats memory or never ends costs one row. Pairs that share a truth should follow one another, then
each worker reads and samples it once.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import pickle
from collections.abc import Callable, Generator, Iterable

from dso_jax.evaluation import geometry
from dso_jax.evaluation.pair import Outcome, Pair, PairWorker
from sim_mjx.worker import Failure
from sim_mjx.worker_pool import Limits, WorkerPool

# What a pair may take; the slowest, FINE on hard pairs, take a few seconds.
LIMITS = Limits(seconds=120.0)


@dataclasses.dataclass(frozen=True)
class PairRow:
    """What became of one pair.

    Attributes:
        index: position among the pairs.
        generated, truth: the files.
        geometry: the measures, or None.
        reason: why there are none: a `BodyError` code, `unreadable`, `crashed` or `timeout`, with
            `truth_` in front where the truth is at fault; empty where there are some.
        message: one line for people, empty where there are measures.
    """

    index: int
    generated: pathlib.Path
    truth: pathlib.Path
    geometry: geometry.Geometry | None
    reason: str = ""
    message: str = ""

    def columns(self) -> dict[str, object]:
        """The row of a table: names of the files, reason, and every measure (None without)."""
        names = [field.name for field in dataclasses.fields(geometry.Geometry)]
        measures = {name: getattr(self.geometry, name, None) for name in names}
        return {
            "generated": str(self.generated),
            "truth": str(self.truth),
            "reason": self.reason,
            **measures,
        }


def compare_files(
    pairs: Iterable[tuple[str | os.PathLike, str | os.PathLike]],
    config: geometry.GeometryConfig = geometry.PAPER,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    limits: Limits = LIMITS,
) -> Generator[PairRow, None, None]:
    """Measures (generated, truth) pairs, in order. Rows do not depend on `workers`.

    Args:
        pairs: read lazily, a bounded number ahead of the consumer.
        config: the numbers of the measure.
        workers: processes; None takes one a core, 0 works in this process, without limits.
        progress: called with 1 for each pair that is done.
        limits: time and memory that one pair may take.

    Yields:
        One row a pair.

    Raises:
        sim_mjx.worker.WorkerError: the worker processes cannot be started.
    """
    done = progress or (lambda _: None)
    paths = ((pathlib.Path(generated), pathlib.Path(truth)) for generated, truth in pairs)
    if workers == 0:
        work = PairWorker(config)
        for index, pair in enumerate(paths):
            outcome = work(pair)
            done(1)
            yield _row(index, pair, outcome)
        return
    make = functools.partial(PairWorker, config)
    with WorkerPool(paths, make, workers, limits) as pool:
        for index, (pair, outcome) in enumerate(pool):
            done(1)
            if isinstance(outcome, Failure):
                message = f"{pair[0]} against {pair[1]}: {outcome.message}"
                yield _row(index, pair, (None, outcome.reason, message))
            else:
                yield _row(index, pair, pickle.loads(outcome))


def _row(index: int, pair: Pair, outcome: Outcome) -> PairRow:
    measures, reason, message = outcome
    return PairRow(index, pair[0], pair[1], measures, reason, message)
