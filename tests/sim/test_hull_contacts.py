"""Hull polygons and contact corners against C MuJoCo's."""

# The bindings of MuJoCo are compiled: type checkers see none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sim_mjx import BodyError
from sim_mjx.corners import contact_corners
from sim_mjx.hull import convex_hull
from sim_mjx.meshes import load_mesh
from tests.sim import shapes


def compile_points(points):
    spec = mujoco.MjSpec()
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1])
    spec.add_mesh(name="m", uservert=points.ravel())
    body = spec.worldbody.add_body(name="b")
    body.add_freejoint()
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="m")
    return spec.compile()


@pytest.mark.parametrize("name", ["pallet", "rangeHood", "rock2", "chair2", "stool2"])
def test_polygons_are_those_of_mujoco(name):
    vertices = load_mesh(shapes.mesh_path(name)).vertices
    vertices = (vertices / np.abs(vertices).max()).astype(np.float32).astype(np.float64)
    hull, model = convex_hull(vertices), compile_points(vertices)
    assert len(hull.polygons) == model.mesh_polynum[0]
    ours = sorted(len(polygon) for polygon in hull.polygons)
    assert ours == sorted(model.mesh_polyvertnum.tolist())


def test_contacts_are_those_of_mujoco():
    """Tilted irregular prisms, at any depth: the same corners touch, in the same order."""
    rng = np.random.default_rng(5)
    checked = 0
    for _ in range(30):
        count = int(rng.integers(5, 16))
        angle = np.sort(rng.uniform(0, 2 * np.pi, count))
        base = np.stack([0.4 * np.cos(angle), 0.2 * np.sin(angle), 0 * angle], axis=1)
        points = np.concatenate([base, [[0, 0, 0.6], [0.1, 0, 0.55]]])
        model = compile_points(points)
        vertices = model.mesh_vert.astype(np.float64)
        hull = convex_hull(vertices)
        data = mujoco.MjData(model)
        largest = max(range(len(hull.polygons)), key=lambda p: len(hull.polygons[p]))
        polygon = hull.polygons[largest]
        table = contact_corners(polygon, np.array([len(polygon)]), hull.vertices)
        for _ in range(4):
            turn = Rotation.from_rotvec(rng.normal(size=3) * rng.choice([1e-3, 1e-2, 0.1]))
            data.qpos[3:] = turn.as_quat()[[3, 0, 1, 2]]
            data.qpos[:3] = 0
            mujoco.mj_kinematics(model, data)
            matrix = data.geom_xmat[1].reshape(3, 3)
            sunk = rng.choice([1e-4, 0.01, 0.05])
            world = hull.vertices @ matrix.T + data.geom_xpos[1]
            data.qpos[2] = -world[:, 2].min() - sunk
            mujoco.mj_forward(model, data)
            world[:, 2] += data.qpos[2]
            deepest = world[:, 2].argmin()
            if deepest not in polygon:
                continue
            ours = table[list(polygon).index(deepest)]
            ours = ours[world[ours, 2] < 0]
            surface = data.contact.pos + [0, 0, 0.5] * data.contact.dist[:, None]
            theirs = [np.linalg.norm(world - p, axis=1).argmin() for p in surface]
            assert ours.tolist() == theirs
            checked += 1
    assert checked > 80


def test_flat_points_have_no_hull():
    with pytest.raises(BodyError) as error:
        convex_hull(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], float))
    assert error.value.reason == "flat"


def test_small_polygons_keep_all_corners():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    table = contact_corners(np.array([0, 1, 2, 0, 1, 2, 3]), np.array([3, 4]), vertices)
    assert table[:3].tolist() == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]]
    assert [sorted(row) for row in table[3:].tolist()] == [[0, 1, 2, 3]] * 4
