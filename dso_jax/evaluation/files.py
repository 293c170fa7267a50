"""Mesh files dropped, compared and measured, block by block, so that a killed run goes on.

Legend: N files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dso_jax.evaluation import drops
from dso_jax.evaluation.altered import alter
from dso_jax.evaluation.drops import Drops
from dso_jax.evaluation.geometry import Geometry, GeometryConfig, UpAxis
from dso_jax.evaluation.pairs import compare_files
from dso_jax.evaluation.parts import Columns, Parts, stamp
from dso_jax.evaluation.shapes import measure_shapes
from sim_mjx.prepare import prepare

BLOCK = 256  # files between two points at which a killed run goes on
MEASURES = tuple(field.name for field in dataclasses.fields(Geometry))
# title and total -> a context that gives what counts finished ones
Report = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]


@contextlib.contextmanager
def silent(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A `Report` that tells nobody."""
    del title, total
    yield lambda finished: None


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where files are worked on.

    Attributes:
        parts: finished blocks.
        workers: processes that read files; None takes one a core, 0 works in this one.
        report: is told how far a stage is.
    """

    parts: Parts
    workers: int | None = None
    report: Report = silent

    def drop(self, paths: Sequence[pathlib.Path], task: Drops, title: str = "drop") -> Columns:
        """Stability of every file, see `drops.drop`."""
        # An accelerator wants many drops at a time; with perturbed starts a file is many.
        many = 0 if task.engine.device == "cpu" else task.engine.block // task.each
        block = max(BLOCK if task.engine.device == "cpu" else 4 * BLOCK, many)

        def work(part: Sequence[pathlib.Path], tell: Callable[[int], None]) -> Columns:
            with contextlib.closing(prepare(part, task.protocol, workers=self.workers)) as rows:
                prepared = list(rows)
            columns = drops.drop(len(part), drops.buckets(prepared), task, tell)
            for row, one in enumerate(prepared):
                if one.packed is None:
                    columns["reason"][row] = one.reason
                    tell(task.each)
            return columns

        return self._blocks(paths, block, {"work": "drop", **task.origin()}, work, title, task.each)

    def shapes(self, paths: Sequence[pathlib.Path], up: UpAxis, title: str = "shapes") -> Columns:
        """Shape of every file, see `shapes.measure_shapes`."""

        def work(part: Sequence[pathlib.Path], tell: Callable[[int], None]) -> Columns:
            return measure_shapes(part, up=up, workers=self.workers, progress=tell)

        return self._blocks(paths, BLOCK, {"work": "shapes", "up": up}, work, title)

    def alter(
        self, name: str, paths: Sequence[pathlib.Path], up: UpAxis
    ) -> tuple[list[pathlib.Path], np.ndarray]:
        """The changed meshes of a baseline, and why there are none; see `altered.alter`."""

        def files(part: Sequence[pathlib.Path]) -> list[pathlib.Path]:
            digests = [hashlib.sha256(str(path).encode(errors="surrogateescape")) for path in part]
            return [self.parts.folder / f"{name}-{one.hexdigest()[:20]}.ply" for one in digests]

        def work(part: Sequence[pathlib.Path], tell: Callable[[int], None]) -> Columns:
            made = files(part)
            self.parts.folder.mkdir(exist_ok=True)
            reasons = alter(name, part, made, up=up, workers=self.workers, progress=tell)
            return {"reason": reasons}

        origin = {"work": name, "up": up}
        return files(paths), self._blocks(paths, BLOCK, origin, work, name)["reason"]

    def geometry(
        self,
        paths: Sequence[pathlib.Path],
        truths: Sequence[pathlib.Path | None],
        config: GeometryConfig,
        title: str = "geometry",
    ) -> Columns:
        """Chamfer distance, F-score and the rest of `Geometry`, and `geometry_reason`; each (N,).

        Files without a truth have the reason `no_truth`.
        """
        rows = [row for row, truth in enumerate(truths) if truth is not None]
        # Pairs of one truth follow one another, so that a worker samples it once.
        rows.sort(key=lambda row: str(truths[row]))
        columns = {name: np.full(len(paths), np.nan) for name in MEASURES}
        columns["geometry_reason"] = np.full(len(paths), "no_truth", object)
        pairs = [(paths[row], truths[row]) for row in rows]
        with self.report(title, len(pairs)) as tell:
            for first in range(0, len(pairs), BLOCK):
                part = pairs[first : first + BLOCK]
                origin = {
                    "work": "geometry",
                    "config": dataclasses.asdict(config),
                    "files": stamp(path for pair in part for path in pair if path is not None),
                }
                found = self.parts.get(origin, lambda part=part: self._compare(part, config))
                for name, values in found.items():
                    columns[name][rows[first : first + BLOCK]] = values
                tell(len(part))
        return columns

    def _compare(self, pairs, config: GeometryConfig) -> Columns:
        rows = list(compare_files(pairs, config, workers=self.workers))
        columns = {
            name: np.array([getattr(row.geometry, name, np.nan) for row in rows], np.float64)
            for name in MEASURES
        }
        return columns | {"geometry_reason": np.array([row.reason for row in rows], object)}

    def _blocks(self, paths, size, origin, work, title, each: int = 1) -> Columns:
        """`work` on all files, in blocks that are kept; it tells of `each` a file."""
        found = []
        with self.report(title, len(paths) * each) as tell:
            for first in range(0, len(paths), size):
                part, told = paths[first : first + size], [0]

                def count(finished: int, told: list[int] = told) -> None:
                    told[0] += finished
                    tell(finished)

                key = {**origin, "files": stamp(part)}
                found.append(self.parts.get(key, lambda part=part, count=count: work(part, count)))
                tell(len(part) * each - told[0])
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}
