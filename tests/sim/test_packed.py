"""Bodies as rows of bytes: nothing of them is lost, and the garbage collector has none to walk."""

from __future__ import annotations

import dataclasses
import gc
import pickle

import numpy as np
import pytest

from sim_mjx import concatenate
from sim_mjx.bodies import ARRAYS, POLYGON_ARRAYS, Provenance, RigidBody
from sim_mjx.meshes import body_from_mesh
from sim_mjx.packed import by_layout, pack, unpack
from tests.sim import shapes


@pytest.fixture(scope="module")
def bodies() -> list[RigidBody]:
    """Of two buckets, and one without polygons or provenance, of other types."""
    made = [body_from_mesh(shapes.mesh_path(name), shapes.EVAL) for name in ("towel3", "bread")]
    bare = dataclasses.replace(made[0], polygons=None, provenance=())
    bare = dataclasses.replace(bare, mass=made[0].mass.astype(np.float32))
    return [*made, bare]


def same(body: RigidBody, other: RigidBody) -> None:
    for name in ARRAYS:
        a, b = getattr(body, name), getattr(other, name)
        assert a.dtype == b.dtype and a.flags.carray  # contiguous, aligned, writable
        np.testing.assert_array_equal(a, b, name)
    assert body.provenance == other.provenance
    if body.polygons is None or other.polygons is None:
        assert body.polygons is other.polygons
        return
    assert body.polygons.window == other.polygons.window
    for name in POLYGON_ARRAYS:
        a, b = getattr(body.polygons, name), getattr(other.polygons, name)
        assert a.dtype == b.dtype and a.flags.carray
        np.testing.assert_array_equal(a, b, name)


def test_a_body_comes_back_as_it_was(bodies):
    for body in bodies:
        same(unpack([pickle.loads(pickle.dumps(pack(body)))]), body)


def test_bodies_of_a_layout_make_a_batch(bodies):
    box, bread, bare = bodies
    row = [pack(body) for body in (bread, box, bare, box, bread)]
    groups = by_layout([None, *row[:2], None, *row[2:]])
    assert [members for members, _ in groups] == [[1, 6], [2, 5], [4]]
    for (_, batch), body in zip(groups, (bread, box), strict=False):
        same(batch, concatenate([body, body]))
    same(groups[2][1], bare)
    assert by_layout([None, None]) == []


def test_provenance_stays_beside_its_body(bodies):
    known = bodies[0]
    unknown = dataclasses.replace(known, provenance=())
    ((_, batch),) = by_layout([pack(known), pack(unknown), pack(known)])
    same(batch, concatenate([known, unknown, known]))
    assert len(batch.provenance) == 3 and batch.provenance[1] == Provenance()


def test_a_batch_is_not_one_body_and_layouts_do_not_mix(bodies):
    with pytest.raises(ValueError, match="expected one body, got 2"):
        pack(concatenate([bodies[0]] * 2))
    for some in ([], [pack(bodies[0]), pack(bodies[1])]):
        with pytest.raises(ValueError, match=f"one layout, got {len(some)}"):
            unpack(some)


def test_the_garbage_collector_has_nothing_to_walk(bodies):
    """A tuple of plain values is forgotten by it the first time it sees it."""
    packed = pickle.loads(pickle.dumps(pack(bodies[0])))
    gc.collect()
    assert packed.origin and not any(map(gc.is_tracked, packed))
