"""Many pairs of mesh files on all cores: one row a pair, whatever the files hold.

The work is done by processes of their own (`sim_mjx.worker_pool`): a file that crashes a parser,
eats memory or never ends costs one row. Pairs that share a truth should follow one another, then
each worker reads and samples it once.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pathlib
import pickle
from collections.abc import Callable, Generator, Iterable

from dso_jax import geometry
from sim_mjx.bodies import BodyError
from sim_mjx.meshes import load_mesh
from sim_mjx.worker_pool import Failure, Limits, WorkerPool

Pair = tuple[pathlib.Path, pathlib.Path]
# Measures, reason and message.
Outcome = tuple[geometry.Geometry | None, str, str]

# What a pair may take: FINE, with meshes of a million faces, takes a tenth of the time.
LIMITS = Limits(seconds=120.0)
# Truths that a worker keeps: a few MiB each.
_KEPT = 4


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
        sim_mjx.worker_pool.WorkerError: the worker processes cannot be started.
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


class PairWorker:
    """Measures pairs one after the other and keeps the truths it has seen last."""

    def __init__(self, config: geometry.GeometryConfig):
        self._config = config
        self._truths: collections.OrderedDict[pathlib.Path, geometry.Sampled] = (
            collections.OrderedDict()
        )

    def __call__(self, pair: Pair) -> Outcome:
        try:
            generated = _sampled(pair[0], geometry.sample_generated, self._config)
        except _FileError as error:
            return None, error.reason, str(error)
        try:
            truth = self._truth(pair[1])
        except _FileError as error:
            return None, f"truth_{error.reason}", str(error)
        return geometry.measure(generated, truth, self._config), "", ""

    def _truth(self, path: pathlib.Path) -> geometry.Sampled:
        if path not in self._truths:
            self._truths[path] = _sampled(path, geometry.sample_truth, self._config)
            if len(self._truths) > _KEPT:
                self._truths.popitem(last=False)
        self._truths.move_to_end(path)
        return self._truths[path]


class _FileError(Exception):
    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def _sampled(path: pathlib.Path, sample: Callable, config) -> geometry.Sampled:
    try:
        return sample(load_mesh(path), config)
    except BodyError as error:
        named = str(path) in str(error)
        raise _FileError(error.reason, str(error) if named else f"{path}: {error}") from error
    except OSError as error:
        raise _FileError("unreadable", f"{path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise _FileError("crashed", f"{path}: out of memory") from error
