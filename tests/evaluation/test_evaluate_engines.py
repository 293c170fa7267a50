"""Other engines: counted against the first, and PhysX itself."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from dso_jax.evaluation import drops, engines
from sim_mjx import referee
from sim_mjx.engines import EngineError
from sim_mjx.meshes import Mesh
from sim_mjx.prepare import prepare
from tests.sim import shapes


def columns(status, stable, tilt):
    return {
        "status": np.array(status, object),
        "stable": np.array(stable),
        "tilt_deg": np.array(tilt, float),
    }


def test_confusion_counts_what_both_could_simulate():
    rest = ["rest"] * 5
    first = columns([*rest, "invalid"], [1, 1, 0, 0, 1, 0], [0, 1, 90, 80, 2, np.nan])
    other = columns(["invalid", *rest], [0, 1, 1, 0, 0, 1], [np.nan, 1.5, 3, 80, 70, 0])
    names = np.array(list("abcdef"), object)
    found = engines.compare(first, other, names, names)
    assert found["meshes"] == 4
    assert [found[k] for k in ("stand_stand", "stand_fall", "fall_stand", "fall_fall")] == [1] * 4
    assert found["agreement"]["value"] == 0.5
    assert found["tilt_p99_deg"] == pytest.approx(0.5)
    assert [one["path"] for one in found["disagreements"]] == ["c", "e"]  # the farthest first


def test_legacy_is_dso_s_own_set_up():
    task = engines.task("legacy", shapes.EVAL)
    assert (task.protocol.up_turn, task.protocol.early_stop) == ("swap", False)
    assert (task.protocol.inertia, task.engine.name) == ("legacy", "mujoco")


def test_an_absent_engine_is_refused_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="pip install sapien=="):
        engines.task("sapien", shapes.EVAL)
    with pytest.raises(EngineError, match=r"expected one of .*legacy"):
        engines.task("bullet", shapes.EVAL)


def test_physx_sees_what_c_sees():
    pytest.importorskip("sapien")
    from sim_mjx import sapien_engine

    paths = [shapes.mesh_path(name) for name in ("crate", "stool2", "rock1", "rangeHood")]
    seen = []
    for bucket in drops.buckets(list(prepare(paths, shapes.EVAL, workers=0))):
        ours = sapien_engine.drop(bucket.bodies, shapes.EVAL, progress=seen.append)
        c = referee.drop(bucket.bodies, shapes.EVAL)
        # Both engines keep soft or hard contacts within about a tenth of a degree on these.
        np.testing.assert_allclose(ours.tilt_deg, c.tilt_deg, atol=0.3)
        assert (ours.stable(shapes.EVAL) == c.stable(shapes.EVAL)).all()
        assert (ours.status == "rest").all()
    assert sum(seen) == len(paths)


def test_physx_does_not_take_a_balanced_pin_for_resting():
    pytest.importorskip("sapien")
    from sim_mjx import sapien_engine
    from sim_mjx.meshes import body_from_triangles

    vertices = np.array([[0, 0, 0], [1, 0, 2], [-1, 1, 2], [-1, -1, 2.0]]) / 2
    pin = Mesh(vertices, np.array([[0, 2, 1], [0, 3, 2], [0, 1, 3], [1, 2, 3]]), "z")
    rest = sapien_engine.drop(body_from_triangles(pin, shapes.EVAL), shapes.EVAL)
    assert rest.status[0] == "moving" or rest.tilt_deg[0] > 20
