"""Mass properties against MuJoCo's own compiler, and against closed forms."""

# The bindings of MuJoCo are compiled: type checkers see none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import trimesh

from sim_mjx import rotations
from sim_mjx.hull import convex_hull
from sim_mjx.mass_properties import mass_properties
from sim_mjx.meshes import load_mesh
from tests.sim import shapes

# MuJoCo integrates the same float32 vertices in double precision; only the order of sums differs.
AGAINST_COMPILER = 1e-6
MODES = {
    "legacy": "mjMESH_INERTIA_LEGACY",
    "exact": "mjMESH_INERTIA_EXACT",
    "convex": "mjMESH_INERTIA_CONVEX",
}


def compiled(vertices, triangles, mode):
    """Mass, centre and inertia tensor in the file frame, as MuJoCo compiles them."""
    spec = mujoco.MjSpec()
    mesh = spec.add_mesh(name="m", uservert=vertices.ravel(), userface=triangles.ravel())
    mesh.inertia = getattr(mujoco.mjtMeshInertia, MODES[mode])
    body = spec.worldbody.add_body(name="b")
    body.add_freejoint()
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="m", density=1000.0)
    model = spec.compile()
    axes = rotations.to_matrix(model.body_iquat[1])
    return model.body_mass[1], model.body_ipos[1], axes @ np.diag(model.body_inertia[1]) @ axes.T


def cases():
    dented = trimesh.creation.annulus(0.2, 0.4, 0.3)
    yield "box", shapes.from_trimesh(shapes.box(0.3, 0.5, 0.9)), tuple(MODES)
    yield "annulus", shapes.from_trimesh(dented), tuple(MODES)
    yield "sphere", shapes.from_trimesh(trimesh.creation.icosphere(2, 0.4)), tuple(MODES)
    for name in ("bedsideTable2", "lantern", "towel3"):  # open and mixed surfaces
        yield name, load_mesh(shapes.mesh_path(name)), ("legacy", "convex")


@pytest.mark.parametrize(
    ("mesh", "modes"), [pytest.param(mesh, modes, id=name) for name, mesh, modes in cases()]
)
def test_agrees_with_the_compiler(mesh, modes):
    vertices = mesh.vertices / np.abs(mesh.vertices).max()
    for mode in modes:
        ours = mass_properties(vertices, mesh.triangles, convex_hull(vertices), mode)
        assert (ours.mode, ours.fallback) == (mode, None)
        mass, com, tensor = compiled(vertices, mesh.triangles, mode)
        size = np.ptp(vertices, axis=0).max()
        np.testing.assert_allclose(1000 * ours.volume, mass, rtol=AGAINST_COMPILER)
        np.testing.assert_allclose(ours.com, com, atol=AGAINST_COMPILER * size)
        scale = AGAINST_COMPILER * np.abs(tensor).max()
        np.testing.assert_allclose(1000 * ours.tensor, tensor, atol=scale)


def test_exact_annulus_in_closed_form():
    inner, outer, height = 0.2, 0.4, 0.3
    ring = shapes.from_trimesh(trimesh.creation.annulus(inner, outer, height, sections=2048))
    hull = convex_hull(ring.vertices)
    exact = mass_properties(ring.vertices, ring.triangles, hull, "exact")
    volume = np.pi * (outer**2 - inner**2) * height
    np.testing.assert_allclose(exact.volume, volume, rtol=1e-5)
    np.testing.assert_allclose(exact.tensor[2, 2], volume * (inner**2 + outer**2) / 2, rtol=1e-5)
    # `legacy` counts the hole's walls as solid; `convex` fills the hole.
    legacy = mass_properties(ring.vertices, ring.triangles, hull, "legacy")
    convex = mass_properties(ring.vertices, ring.triangles, hull, "convex")
    assert legacy.volume > 1.1 * exact.volume
    np.testing.assert_allclose(convex.volume, np.pi * outer**2 * height, rtol=1e-5)


def test_exact_falls_back_with_the_reason():
    mesh = shapes.from_trimesh(shapes.box(1, 1, 1))
    hull = convex_hull(mesh.vertices)
    mixed = mesh.triangles.copy()
    mixed[0] = mixed[0][::-1]
    ours = mass_properties(mesh.vertices, mixed, hull, "exact")
    assert (ours.mode, ours.fallback) == ("convex", "mixed_winding")
    ours = mass_properties(mesh.vertices, mesh.triangles[:, ::-1], hull, "exact")
    assert (ours.mode, ours.fallback) == ("convex", "negative_volume")
    np.testing.assert_allclose(ours.volume, 1.0, rtol=1e-6)


def test_principal_axes_rebuild_the_tensor():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(5, 3, 3))
    tensors = factor @ factor.transpose(0, 2, 1)
    moments, quaternion = rotations.principal_axes(tensors)
    assert (np.diff(moments, axis=1) <= 0).all()
    axes = rotations.to_matrix(quaternion)
    rebuilt = np.einsum("bij,bj,bkj->bik", axes, moments, axes)
    np.testing.assert_allclose(rebuilt, tensors, atol=1e-12)
