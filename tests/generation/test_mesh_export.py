"""Meshes of occupancy: closed, of the right volume and balance, on the simulated soles; files."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from scipy import ndimage

from dso_jax import mesh_export, meshes
from dso_jax.errors import UsageError
from sim_mjx.bodies import BodyError
from sim_mjx.meshes import load_mesh, upright
from sim_mjx.occupancy import bodies_from_occupancy, fill_interior, surface_candidates
from sim_mjx.protocol import Protocol
from tests.sim import shapes

R = 24
VOXEL = 1 / R
SINGLE = 1e-5  # files hold float32, of up to four decimal places of a height
VOLUME_RTOL = 1e-6  # of a solved equation
COM_ATOL = 1e-5  # voxels, likewise
# Smoothing rounds corners; five rounds of Taubin's filter keep the volume to within this.
SMOOTH_VOLUME_RTOL = 0.02


def lamp(resolution: int = R) -> np.ndarray:
    """A plate, a pole of one voxel and a hollow head off the axis: what marching cubes bends."""
    solid = np.zeros((resolution,) * 3, bool)
    solid[7:16, 8:15, 3:5] = True
    solid[11, 11, 5:16] = True
    solid[8:17, 9:14, 16:21] = True
    solid[10:15, 10:13, 18:20] = False
    return np.where(solid, 5.0, -5.0).astype(np.float32)


def ragged(seed: int) -> np.ndarray:
    """Voxels that touch in edges and corners, with graded logits, up to the grid's border."""
    noise = np.random.default_rng(seed).normal(size=(R,) * 3)
    return (3 * ndimage.gaussian_filter(noise, 0.6)).astype(np.float32)


def filled_and_com(logits: np.ndarray) -> tuple[float, np.ndarray]:
    """Volume of the filled voxels, and the centre of mass of the body that is dropped."""
    return float(fill_interior(logits > 0).mean()), bodies_from_occupancy(logits[None])[0].com[0]


@pytest.mark.parametrize("logits", [lamp(), *shapes.toy_logits(8)], ids=lambda _: "")
def test_volume_and_balance_are_those_of_the_filled_body(logits):
    volume, com = filled_and_com(logits)
    mesh = meshes.surface(logits)
    assert mesh.is_volume
    np.testing.assert_allclose(mesh.volume, volume, rtol=VOLUME_RTOL)
    np.testing.assert_allclose(mesh.center_mass, com, atol=COM_ATOL / len(logits))


def test_the_soles_are_those_that_are_simulated():
    """Point for point: what touches the ground, and how high the object is."""
    for logits in (lamp(), *shapes.toy_logits(4)):
        solid = fill_interior(logits > 0)
        points = surface_candidates(np.clip(logits, -1, 1), solid)
        vertices = meshes.surface(logits).vertices

        ground = points[:, 2].min() + 0.4 / len(logits)
        found, expected = (
            np.unique(of[of[:, 2] < ground].round(5), axis=0) for of in (vertices, points)
        )
        np.testing.assert_allclose(found, expected, atol=2e-5)
        np.testing.assert_allclose(vertices[:, 2].max(), points[:, 2].max(), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_ragged_occupancy_is_watertight(seed):
    """Ambiguous cells, ties of saturated logits, and the border."""
    for logits in (ragged(seed), np.sign(ragged(seed))):
        mesh = meshes.surface(logits.astype(np.float32))
        assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
    assert meshes.surface(ragged(seed)).bounds == pytest.approx(
        np.array([[-0.5] * 3, [0.5] * 3]), abs=VOXEL
    )


def test_a_full_grid_ends_at_its_faces():
    mesh = meshes.surface(np.ones((8, 8, 8), np.float32))
    np.testing.assert_allclose(mesh.bounds[:, 2], [-0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(mesh.volume, 1, rtol=VOLUME_RTOL)


def test_distances_give_a_round_sphere():
    x, y, z = shapes.grid(32)
    radius = 0.4
    logits = 32 * (radius - np.sqrt(x**2 + y**2 + z**2)).astype(np.float32)
    vertices = meshes.surface(logits).vertices
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), radius, atol=0.05 / 32)


def test_saturation_evens_out_how_sure_a_decoder_is():
    sure = np.random.default_rng(0).uniform(4.0, 9.0, (16, 16, 16)).astype(np.float32)
    solid = np.zeros((16, 16, 16), bool)
    solid[5:11, 5:11, 2:12] = True
    logits = np.where(solid, sure, -sure)

    def sole(saturation):
        heights = meshes.surface(logits, saturation=saturation).vertices[:, 2]
        return heights[heights < heights.min() + 0.45 / 16]

    assert np.ptp(sole(1.0)) < 1e-6
    assert np.ptp(sole(100.0)) > 0.1 / 16


def test_smoothing_takes_the_steps_away_and_leaves_the_soles():
    x, y, z = shapes.grid(R)
    logits = np.where(x**2 + y**2 + z**2 < 0.4**2, 1.0, -1.0)
    plain, smooth = meshes.surface(logits), meshes.surface(logits, smooth=5)
    low = plain.vertices[:, 2] < plain.vertices[:, 2].min() + VOXEL
    np.testing.assert_array_equal(smooth.vertices[low], plain.vertices[low])

    def roughness(mesh):
        return np.sqrt(np.mean(mesh.face_adjacency_angles**2))

    assert roughness(smooth) < 0.5 * roughness(plain)
    assert smooth.is_volume
    np.testing.assert_allclose(smooth.volume, plain.volume, rtol=SMOOTH_VOLUME_RTOL)


@pytest.mark.parametrize(("value", "reason"), [(-1.0, "empty"), (np.nan, "nan_logits")])
def test_what_is_no_solid_has_a_reason(value, reason):
    with pytest.raises(BodyError) as caught:
        meshes.surface(np.full((8, 8, 8), value, np.float32))
    assert caught.value.reason == reason


@pytest.mark.parametrize("up", [None, "y", "z"])
@pytest.mark.parametrize("suffix", mesh_export.UNIT_MM)
def test_a_file_has_real_units_and_stands_on_the_ground(suffix, up, tmp_path):
    mesh = meshes.surface(lamp())
    path = tmp_path / f"lamp.{suffix}"
    written = mesh_export.export(mesh, path, height_mm=80.0, up=up)
    assert written.watertight and written.triangles == len(mesh.faces)
    assert written.height_mm == pytest.approx(80.0, rel=SINGLE)

    # trimesh's own readers take no part in the description above for GLB and OBJ.
    found = trimesh.load_mesh(path)
    unit = 1000.0 if suffix == "glb" else 1.0
    axis = {"y": 1, "z": 2}[written.up]
    assert found.is_volume
    assert found.bounds[:, axis] * unit == pytest.approx([0.0, 80.0], abs=80 * SINGLE)
    scale = 80.0 / np.ptp(mesh.vertices[:, 2])
    assert written.volume_cm3 == pytest.approx(mesh.volume * scale**3 / 1000, rel=1e-4)

    # Readers that know the format's axis see the object upright, not mirrored.
    protocol = Protocol(up="auto" if up is None else up)
    back = load_mesh(path)
    vertices = upright(back.vertices, back.up if up is None else up, protocol) * unit
    turned = trimesh.Trimesh(vertices, back.triangles, process=False)
    lowered = mesh.center_mass - [0, 0, mesh.vertices[:, 2].min()]
    np.testing.assert_allclose(turned.center_mass, lowered * scale, atol=80 * SINGLE)
    assert turned.volume > 0


def test_unusable_places_are_named(tmp_path):
    (tmp_path / "folder.glb").mkdir()
    for name, message in (
        ("x.fbx", r"x\.fbx: expected a file name that ends in \.glb, \.stl"),
        ("x", "expected a file name"),
        ("nowhere/x.glb", "no folder"),
        ("folder.glb", "is a folder"),
    ):
        with pytest.raises(UsageError, match=message):
            mesh_export.check_path(tmp_path / name)
    assert mesh_export.check_path(tmp_path / "x.STL") == tmp_path / "x.STL"
    assert [path.name for path in tmp_path.iterdir()] == ["folder.glb"]


@pytest.mark.parametrize("options", [{"height_mm": 0.0}, {"height_mm": np.inf}, {"up": "x"}])
def test_unusable_settings_write_nothing(options, tmp_path):
    settings = {"height_mm": 80.0, **options}
    with pytest.raises(UsageError, match=r"height|axis"):
        mesh_export.export(meshes.surface(lamp()), tmp_path / "x.glb", **settings)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.glb"
    path.write_bytes(b"old")

    def full(part, data):
        part.write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mesh_export, "_write", full)
    with pytest.raises(OSError, match="No space"):
        mesh_export.export(meshes.surface(lamp()), path, height_mm=80.0)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
