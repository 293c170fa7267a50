"""Honest changes of the committed meshes: shaken, decimated, voxelised."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.guard_changes import HONEST
from sim_mjx.meshes import Mesh, load_mesh
from tests.sim import shapes

PATHS = sorted((shapes.DATA / "meshes").glob("*.obj"))


def honest_pairs(count: int) -> Iterator[tuple[str, Mesh, Mesh]]:
    """(name, changed mesh, mesh), spread over meshes and kinds of change; 120 are different."""
    kinds = list(HONEST)
    for index in range(count):
        turn, number = divmod(index, len(PATHS))
        path, kind = PATHS[number], kinds[(number + turn) % len(kinds)]
        mesh = load_mesh(path)
        yield f"{path.stem}/{kind}", HONEST[kind](mesh), mesh
