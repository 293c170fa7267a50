"""Simplified meshes: still closed, on the same soles, within the tolerance."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import trimesh

from dso_jax import mesh_simplify, meshes
from dso_jax.cli.main import main
from dso_jax.errors import UsageError
from tests.generation.test_mesh_export import lamp, ragged
from tests.sim import shapes

# Of the extent of an object; it is the distance by which an edge may collapse, and several do.
TOLERANCE, SEVERAL = 0.005, 3


@pytest.mark.parametrize("logits", [lamp(), ragged(0), *shapes.toy_logits(3)], ids=lambda _: "")
def test_a_simplified_mesh_is_closed_and_near(logits):
    pytest.importorskip("manifold3d")
    mesh = meshes.surface(logits)
    found = mesh_simplify.simplify(mesh, TOLERANCE)
    assert found.is_volume and len(found.faces) < 0.95 * len(mesh.faces)
    assert found.volume == pytest.approx(mesh.volume, rel=0.03)
    np.testing.assert_allclose(found.bounds, mesh.bounds, atol=SEVERAL * TOLERANCE)


def test_flat_parts_cost_nothing():
    pytest.importorskip("manifold3d")
    mesh = trimesh.creation.box((1, 1, 1)).subdivide().subdivide()
    found = mesh_simplify.simplify(mesh, 1e-9)
    assert len(mesh.faces) == 192 and len(found.faces) == 12
    assert found.volume == pytest.approx(1.0, rel=1e-9)


def test_an_open_mesh_is_left_as_it_is(caplog):
    pytest.importorskip("manifold3d")
    mesh = trimesh.creation.box((1, 1, 1))
    mesh.update_faces(np.arange(11))
    assert mesh_simplify.simplify(mesh, 0.1) is mesh
    assert "not simplified: the mesh is not closed" in caplog.text


def test_without_the_package_it_is_named_before_any_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "manifold3d", None)
    with pytest.raises(UsageError, match=r"pip install 'dso-jax\[simplify\]'"):
        mesh_simplify.check_installed()
    line = ["sample", "toybox:3", "--out", str(tmp_path / "x.glb"), "--simplify", "0.2"]
    assert main(line) == 2
    assert re.match(r"error: simplification needs .*\n$", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
