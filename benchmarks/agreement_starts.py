"""Perturbed starts in the shipped step and in C MuJoCo, start by start, beside C's own noise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.agreement_score import PROTOCOL, share
from benchmarks.agreement_sets import MeshSet
from sim_mjx import RigidBody, drop, referee
from sim_mjx.packed import by_layout
from sim_mjx.perturb import Drop, Perturbation, survivals
from sim_mjx.prepare import prepare

THETAS = (0.04, 0.3)  # radians
OBJECTS = 150  # of a set: enough for a percent
JITTER = 1e-6


def section(meshes: MeshSet, starts: int, workers: int | None) -> dict[str, Any]:
    """Survival of every start of some objects of a set.

    No band is left out: what C does with points moved by 1e-6 says how much agreement there
    can be.
    """
    engines = {
        "c": referee.drop,
        "c_jittered": jittered,
        "mjx": functools.partial(drop, step="slim"),
    }
    groups = list(_groups(meshes, workers))
    found: dict[str, Any] = {"objects": sum(len(keys) for _, keys in groups), "starts": starts}
    for theta in THETAS:
        stood = {name: _stood(groups, theta, starts, engine) for name, engine in engines.items()}
        truth = stood["c"]
        found[f"theta_{theta}"] = {
            "survived_percent_in_c": 100 * float(truth.mean()),
            **{
                f"{name}_against_c": {
                    "starts": share(stood[name] == truth, np.ones_like(truth)),
                    "largest_difference_of_an_object": float(
                        np.abs(stood[name].mean(axis=1) - truth.mean(axis=1)).max()
                    ),
                    "mean_difference_of_an_object": float(
                        np.abs(stood[name].mean(axis=1) - truth.mean(axis=1)).mean()
                    ),
                }
                for name in ("mjx", "c_jittered")
            },
        }
    return found


def jittered(bodies: RigidBody, protocol, **options):
    """C MuJoCo with every support point moved a little."""
    noise = np.random.default_rng(0).normal(size=bodies.points.shape)
    moved = dataclasses.replace(bodies, points=bodies.points + JITTER * noise)
    return referee.drop(moved, protocol, **options)


def _groups(meshes: MeshSet, workers: int | None) -> Iterator[tuple[RigidBody, list[str]]]:
    """Bodies of every n-th mesh by bucket, with the names that their starts depend on."""
    paths = meshes.paths[:: -(-len(meshes) // OBJECTS)]
    items = list(prepare(paths, PROTOCOL, workers=workers))
    for members, bodies in by_layout(item.packed for item in items):
        yield bodies, [items[i].sha256 for i in members]


def _stood(groups, theta: float, starts: int, engine: Drop) -> np.ndarray:
    """Whether each object (rows) survived each start (columns)."""
    single = [Perturbation(theta, 1, seed) for seed in range(starts)]
    rows = []
    for bodies, keys in groups:
        results = survivals(bodies, PROTOCOL, single, engine, keys=keys)
        rows.append(np.stack([result.rate for result in results], axis=1))
    return np.concatenate(rows) > 0.5
