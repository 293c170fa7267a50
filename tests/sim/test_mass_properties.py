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
    "shell": "mjMESH_INERTIA_SHELL",
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
        yield name, load_mesh(shapes.mesh_path(name)), ("legacy", "convex", "shell")


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


def test_inertia_that_no_body_has_is_refused():
    """A box, and beside it one turned inside out: the volume is positive, the moments are not."""
    hole = shapes.box(0.9, 0.9, 0.9)
    hole.vertices += [3.0, 0.0, 0.0]
    hole.faces = hole.faces[:, ::-1]
    box = shapes.box(1, 1, 1)
    vertices = np.concatenate([box.vertices, hole.vertices])
    triangles = np.concatenate([box.faces, hole.faces + len(box.vertices)])
    ours = mass_properties(vertices, triangles, convex_hull(vertices), "exact")
    assert (ours.mode, ours.fallback) == ("convex", "no_inertia")
    with pytest.raises(ValueError, match="inertia"):
        compiled(vertices, triangles, "exact")


def test_principal_axes_rebuild_the_tensor():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(5, 3, 3))
    tensors = factor @ factor.transpose(0, 2, 1)
    moments, quaternion = rotations.principal_axes(tensors)
    assert (np.diff(moments, axis=1) <= 0).all()
    axes = rotations.to_matrix(quaternion)
    rebuilt = np.einsum("bij,bj,bkj->bik", axes, moments, axes)
    np.testing.assert_allclose(rebuilt, tensors, atol=1e-12)


# A grid of 64 points a side resolves volumes to about a thousandth, centres to less.
VOXEL = 2e-3
# Triangles of the spheres below miss this share of the volume inside.
FACETS = 3e-3


def of(mesh, mode):
    vertices, triangles = np.asarray(mesh.vertices, float), np.asarray(mesh.faces)
    return mass_properties(vertices, triangles, convex_hull(vertices), mode)


def ball(radius, inward=False):
    mesh = trimesh.creation.icosphere(4, radius)
    if inward:
        mesh.faces = mesh.faces[:, ::-1]
    return mesh


@pytest.mark.parametrize("mode", ["legacy", "exact", "convex", "voxel"])
def test_cube_in_closed_form(mode):
    cube = shapes.box(0.4, 0.4, 0.4)
    cube.vertices += [0.3, -0.2, 1.0]
    ours = of(cube, mode)
    assert (ours.mode, ours.fallback) == (mode, None)
    rtol = VOXEL if mode == "voxel" else 1e-6
    np.testing.assert_allclose(ours.volume, 0.4**3, rtol=rtol)
    np.testing.assert_allclose(ours.com, [0.3, -0.2, 1.0], atol=rtol * 0.4)
    np.testing.assert_allclose(ours.tensor, np.eye(3) * 0.4**5 / 6, atol=rtol * 0.4**5)


def test_hollow_sphere_in_closed_form():
    """A wall between two radii, the inner surface wound inwards as a cavity is."""
    inner, outer = 0.3, 0.5
    hollow = trimesh.util.concatenate([ball(outer), ball(inner, inward=True)])
    full, hole = 4 / 3 * np.pi * outer**3, 4 / 3 * np.pi * inner**3
    exact = of(hollow, "exact")
    assert exact.fallback is None
    np.testing.assert_allclose(exact.volume, full - hole, rtol=FACETS)
    moment = 0.4 * (full * outer**2 - hole * inner**2)
    np.testing.assert_allclose(np.diag(exact.tensor), moment, rtol=2 * FACETS)
    # A print with full infill has no cavity; `legacy` counts the cavity on top of the sphere.
    np.testing.assert_allclose(of(hollow, "voxel").volume, full, rtol=FACETS + VOXEL)
    np.testing.assert_allclose(of(hollow, "legacy").volume, full + hole, rtol=FACETS)
    shell = of(hollow, "shell")
    area = 4 * np.pi * (outer**2 + inner**2)
    np.testing.assert_allclose(shell.volume, area, rtol=FACETS)
    moment = 2 / 3 * 4 * np.pi * (outer**4 + inner**4)
    np.testing.assert_allclose(np.diag(shell.tensor), moment, rtol=2 * FACETS)


def test_nested_shells_move_the_centre_only_where_they_count():
    """A sphere low inside a box, wound like the box: `voxel` does not see it."""
    inside = ball(0.2)
    inside.vertices += [0.0, 0.0, -0.25]
    nested = trimesh.util.concatenate([shapes.box(1, 1, 1), inside])
    sphere = 4 / 3 * np.pi * 0.2**3
    np.testing.assert_allclose(of(nested, "voxel").com, 0, atol=VOXEL)
    np.testing.assert_allclose(of(nested, "voxel").volume, 1.0, rtol=VOXEL)
    twice = of(nested, "exact")
    np.testing.assert_allclose(twice.volume, 1 + sphere, rtol=FACETS)
    np.testing.assert_allclose(twice.com[2], -0.25 * sphere / (1 + sphere), rtol=FACETS)


@pytest.mark.parametrize("fault", ["inverted", "mixed", "split"])
def test_windings_do_not_matter_to_what_is_filled(fault):
    ring = trimesh.creation.annulus(0.2, 0.4, 0.3, sections=64)
    true = of(ring, "exact")
    if fault == "inverted":
        ring.faces = ring.faces[:, ::-1]
    elif fault == "mixed":
        ring.faces[::2] = ring.faces[::2, ::-1]
    else:
        ring.unmerge_vertices()
    filled = of(ring, "voxel")
    assert (filled.mode, filled.fallback) == ("voxel", None)
    np.testing.assert_allclose(filled.volume, true.volume, rtol=VOXEL)
    np.testing.assert_allclose(filled.com, true.com, atol=VOXEL)
    np.testing.assert_allclose(filled.tensor, true.tensor, atol=2 * VOXEL * true.tensor.max())


def test_turned_solids_and_solids_of_two_parts():
    """Overlapping parts weigh once; the fill does not depend on the pose."""
    first, second = shapes.box(0.2, 0.2, 1.0), shapes.box(1.0, 0.2, 0.2)
    second.vertices += [0.4, 0.0, 0.4]
    both = trimesh.util.concatenate([first, second])
    volume = 0.2 * 0.2 * (1.0 + 1.0 - 0.2)
    np.testing.assert_allclose(of(both, "voxel").volume, volume, rtol=0.01)
    turn = trimesh.transformations.euler_matrix(0.3, 0.5, 0.1)
    true = of(both, "voxel").com
    both.apply_transform(turn)
    np.testing.assert_allclose(of(both, "voxel").com, turn[:3, :3] @ true, atol=0.01)


def test_what_is_open_is_not_filled():
    """A box without its lid encloses nothing, whichever way it lies; the hull stands in."""
    for side in range(6):
        cup = shapes.box(0.5, 0.6, 0.7)
        normals = np.zeros(3)
        normals[side // 2] = 1 - 2 * (side % 2)
        cup.update_faces(cup.face_normals @ normals < 0.5)
        assert len(cup.faces) == 10
        ours = of(cup, "voxel")
        assert (ours.mode, ours.fallback) == ("convex", "no_volume")
        np.testing.assert_allclose(ours.volume, 0.5 * 0.6 * 0.7, rtol=1e-6)
