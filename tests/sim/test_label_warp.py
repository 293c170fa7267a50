"""The optional engine mujoco_warp: refused with the remedy where it is absent, else right."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from dso_jax.cli.main import main
from sim_mjx import concatenate, engines, referee
from sim_mjx.meshes import body_from_mesh
from tests.sim import shapes


def test_without_the_packages_the_remedy_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(engines.EngineError, match="pip install mujoco-warp"):
        engines.resolve("mujoco_warp")
    arguments = ["label", str(shapes.mesh_path("bread")), "--engine", "mujoco_warp"]
    assert main([*arguments, "--out", str(tmp_path / "labels.parquet")]) == 2
    assert "mujoco_warp is not installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # warp has deprecations of its own
def test_agrees_with_the_referee_through_refilled_worlds():
    pytest.importorskip("mujoco_warp")
    from sim_mjx import warp_engine

    names = ("towel3", "lantern", "table", "crate", "stool2", "outdoorLamp", "pallet")
    bodies = [body_from_mesh(shapes.mesh_path(name), shapes.FAST) for name in names]
    width = bodies[0].points.shape[1]
    batch = concatenate([body for body in bodies if body.points.shape[1] == width])
    seen = []
    rest = warp_engine.drop(batch, shapes.FAST, slots=3, progress=seen.append)
    c = referee.drop(batch, shapes.FAST)
    assert sum(seen) == len(batch) > 3
    np.testing.assert_array_equal(rest.stable(shapes.FAST), c.stable(shapes.FAST))
    np.testing.assert_array_equal(rest.status, c.status)
    assert np.abs(rest.tilt_deg - c.tilt_deg).max() < 0.1
