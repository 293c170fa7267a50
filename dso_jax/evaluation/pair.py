"""One pair of mesh files to its measures or a reason: what a worker process does.

It is a module of its own, without JAX, so that a worker starts in half a second.
"""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable

from dso_jax.evaluation import geometry
from sim_mjx.bodies import BodyError
from sim_mjx.meshes import load_mesh

Pair = tuple[pathlib.Path, pathlib.Path]
# Measures, reason and message.
Outcome = tuple[geometry.Geometry | None, str, str]
# Truths that a worker keeps: a few MiB each.
_KEPT = 4


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
