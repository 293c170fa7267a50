"""The whole method once: sample, drop, fine-tune with each objective, compare on held-out objects.

This module knows the order, what depends on what, and what is written; the work itself is behind
`Work`, so that a test can run all of it in a second.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import logging
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

import dso_jax
from dso_jax.atomic import write_atomic, write_text
from dso_jax.errors import UsageError
from dso_jax.report import gallery, page, summary
from dso_jax.stages import Stages

logger = logging.getLogger(__name__)

METHODS = ("sft", "dpo", "dro")
VERSIONS = ("jax", "jaxlib", "flax", "optax", "mujoco", "mujoco-mjx", "numpy")


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """What the demo does."""

    seeds: int = 1
    """How many times all of it is done, each with its own samples, training and noise."""
    out: Path = Path("runs/demo")
    """Where everything is written; an interrupted run goes on there."""
    protocol: str = "fast"
    """Simulation protocol of every label: a preset's name or a YAML file."""
    preference_objects: int = 320
    """Objects whose images prompt the preference data."""
    preference_samples: int = 4
    """Samples of each of them."""
    heldout_objects: int = 96
    """Objects of the comparison, never seen by the pre-training nor by the fine-tuning."""
    heldout_samples: int = 4
    """Samples of each of them, with the same noise for every method."""
    steps: int | None = None
    """Training steps of each method; None leaves what its configuration file says."""
    exhibits: int = 12
    """Samples in the report's gallery."""

    def __post_init__(self) -> None:
        for field in ("seeds", "preference_objects", "heldout_objects", "heldout_samples"):
            if getattr(self, field) < 1:
                raise UsageError(f"{field} is {getattr(self, field)}, expected at least 1")
        if self.preference_samples < 2:
            raise UsageError("preference_samples: a pair needs at least 2 samples of an object")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps is {self.steps}, expected at least 1")


class Work(Protocol):
    """The heavy parts; every method may find an interrupted earlier attempt's files."""

    def describe(self) -> dict:
        """`base` (name, sha256), `protocol` (name, hash) and `device`, as summary.json has them."""
        ...

    def training(self, method: str, seed: int) -> dict:
        """Every setting that decides the training of a method, as JSON values."""
        ...

    def sample(self, seed: int, out: Path) -> None:
        """Writes the labelled preference dataset."""
        ...

    def train(self, method: str, seed: int, data: Path, out: Path) -> None:
        """Fine-tunes; leaves metrics.jsonl and adapter/ in `out`."""
        ...

    def evaluate(self, seed: int, adapter: Path | None) -> summary.Columns:
        """Samples, drops and measures the held-out objects; the base if there is no adapter.

        Returns:
            The columns that `summary` takes, and what `gallery.keep` returns.
        """
        ...


def run(config: DemoConfig, work: Work, command: str = "dso demo") -> dict:
    """Runs what is not done yet and writes summary.json and report.html.

    Args:
        config: what to do.
        work: does it.
        command: the line that started this, for the record.

    Returns:
        The contents of summary.json.

    Raises:
        UsageError: the output folder cannot be used.
    """
    per_seed = 1 + len(METHODS) + len((summary.BASE, *METHODS))
    stages = Stages(config.out, total=config.seeds * per_seed + 1)
    about = work.describe()
    seeds = range(config.seeds)
    columns = {seed: _one_seed(config, work, stages, about, seed) for seed in seeds}
    results = {
        "schema": 1,
        "command": command,
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": versions(),
        **about,
        "seeds": list(seeds),
        "seconds": {name: round(spent, 1) for name, spent in stages.seconds.items()},
        **summary.compare(columns),
    }
    for name, numbers in results["methods"].items():
        numbers["seconds"] = spent(stages.seconds, name)
    write_text(config.out / "summary.json", json.dumps(results, indent=2) + "\n")
    logger.info("[%d/%d] report", config.seeds * per_seed + 1, config.seeds * per_seed + 1)
    rows = pick(columns[0][summary.BASE], config.exhibits)
    shapes = {name: load(evaluation_of(config.out, 0, name)) for name in (summary.BASE, *METHODS)}
    curves = {name: read_metrics(seed_folder(config.out, 0) / name) for name in METHODS}
    html = page.render(results, curves, gallery.exhibits(shapes, rows))
    write_text(config.out / "report.html", html)
    return results


def _one_seed(
    config: DemoConfig, work: Work, stages: Stages, about: dict, seed: int
) -> dict[str, summary.Columns]:
    """The stages of one seed.

    Returns:
        Method -> the columns of its evaluation.
    """
    # The first seed's stages are called as if it were alone, so that more seeds build on it.
    prefix = f"seed {seed}: " if seed else ""
    folder = seed_folder(config.out, seed)
    origin = {"about": {k: v for k, v in about.items() if k != "device"}, "seed": seed}
    origin["version"] = versions()["dso-jax"]
    data = folder / "data"
    amount = [config.preference_objects, config.preference_samples]
    heldout = [config.heldout_objects, config.heldout_samples]
    sampled = stages.run(
        f"{prefix}sample and drop {amount[0] * amount[1]} objects",
        origin | {"amount": amount},
        data,
        lambda: work.sample(seed, data),
    )
    columns = {}
    for method in (summary.BASE, *METHODS):
        adapter = adapter_of(config.out, seed, method)
        trained = None
        if adapter is not None:
            trained = stages.run(
                prefix + _stages_of(method)["train"],
                {"data": sampled, "training": work.training(method, seed)},
                adapter.parent,
                lambda method=method, out=adapter.parent: work.train(method, seed, data, out),
            )
        path = evaluation_of(config.out, seed, method)
        stages.run(
            prefix + _stages_of(method)["evaluate"],
            origin | {"heldout": heldout, "adapter": trained},
            path,
            lambda path=path, adapter=adapter: save(path, work.evaluate(seed, adapter)),
        )
        columns[method] = load(path, leave_out=gallery.KEPT)
        rate = 100 * summary.stands(columns[method]).mean()
        logger.info("  %s: %.1f %% of the held-out samples stand", page.title(method), rate)
    return columns


def spent(seconds: dict[str, float], method: str) -> dict[str, float]:
    """Seconds that the training and the evaluation of a method took, over all seeds."""
    return {
        kind: round(sum(s for name, s in seconds.items() if name.endswith(stage)), 1)
        for kind, stage in _stages_of(method).items()
    }


def _stages_of(method: str) -> dict[str, str]:
    """How the stages of a method are called."""
    kinds = ("evaluate",) if method == summary.BASE else ("train", "evaluate")
    return {kind: f"{kind} {page.title(method)}" for kind in kinds}


def seed_folder(out: Path, seed: int) -> Path:
    """The folder of a seed; that of the first is the run folder itself."""
    return out if seed == 0 else out / f"seed-{seed}"


def adapter_of(out: Path, seed: int, method: str) -> Path | None:
    """The adapter that a method's training wrote; the base has none."""
    return None if method == summary.BASE else seed_folder(out, seed) / method / "adapter"


def pick(base: summary.Columns, count: int) -> list[int]:
    """Samples for the gallery: two thirds that the base lets fall, the rest that it keeps upright.

    The first of each kind in the order of the evaluation, at most one of an object, so that
    nobody has chosen them.
    """
    standing, seen, chosen = summary.stands(base), set(), []
    for wanted, limit in ((False, count - count // 3), (True, count)):
        for row in np.flatnonzero((standing == wanted) & (base["status"] != "invalid")):
            if len(chosen) < limit and base["object"][row] not in seen:
                seen.add(base["object"][row])
                chosen.append(int(row))
    return chosen


def evaluation_of(out: Path, seed: int, method: str) -> Path:
    """The file of an evaluation's columns and shapes."""
    return seed_folder(out, seed) / f"evaluation-{method}.npz"


def save(path: Path, columns: summary.Columns) -> None:
    """Writes an evaluation as an .npz file without pickled objects."""
    plain = {
        name: np.asarray(values, np.str_ if np.asarray(values).dtype == object else None)
        for name, values in columns.items()
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **plain)

    write_atomic(path, write)


def load(path: Path, leave_out: Sequence[str] = ()) -> summary.Columns:
    """Reads what `save` wrote, all of it or without some names."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored if name not in leave_out}


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a training's metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    own = {"python": platform.python_version(), "dso-jax": dso_jax.__version__}
    # A checkout that is not installed has no metadata of its own.
    return own | {name: importlib.metadata.version(name) for name in VERSIONS}
