"""`dso label --explain`: one object replayed, and which choices would flip its label."""

from __future__ import annotations

import io
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dso_jax.cli.main import main
from dso_jax.report import drop_card
from sim_mjx import BodyError, engines, explain, label
from sim_mjx.margin import footprint
from tests.sim import shapes

C = engines.resolve("mujoco")


def run(*arguments) -> int:
    return main(["label", *map(str, arguments)])


@pytest.fixture(scope="module")
def towel():
    """A towel rack that is upright about y and lies flat about z."""
    return explain.explain(shapes.mesh_path("towel3"), shapes.FAST, C)


def test_what_the_object_does(towel):
    assert towel.stable is False
    assert towel.angle_deg > 60
    assert not towel.adjudicated
    assert towel.margin_deg == 0
    assert set(towel.survival) == set(explain.THETAS)
    assert towel.survival[0.01] == 0
    # It rests on an area with its centre of mass inside, on the ground.
    assert len(towel.end.corners) >= 3
    assert drop_card._inside(towel.end.corners, towel.end.com[:2])
    assert not drop_card._inside(towel.start.corners, towel.start.com[:2])
    assert abs(towel.end.points[:, 2].min()) < 1e-3


def test_which_choices_flip_it(towel):
    variants = {variant.choice: variant for variant in towel.variants}
    assert [name for name, variant in variants.items() if variant.flips] == ["up axis z"]
    assert variants["up axis z"].stable is True
    for name in ("inertia exact", "time step 5 ms", "scaling none", "all 10 s", "friction 0.5"):
        assert variants[name].stable is False
        assert variants[name].angle_deg > 60
    assert variants["measured by tilt"].angle_deg == towel.rest.tilt_deg[0]
    assert variants["vertices jittered by 1e-06"].note == "0 of 10 differ"


def test_a_balanced_object_is_known_by_its_jitter(tmp_path):
    """A cone on its tip: which way it falls, or when, is decided by a millionth of its size."""
    mesh = shapes.trimesh.creation.cone(radius=0.3, height=1.0)
    mesh.vertices[:, 2] *= -1
    mesh.invert()
    mesh.export(tmp_path / "cone.stl")
    cone = explain.explain(tmp_path / "cone.stl", shapes.FAST, C)
    assert len(cone.start.corners) == 0
    assert np.isnan(cone.margin_direction_deg)
    jitter = cone.variants[-1]
    assert jitter.choice.startswith("vertices jittered")
    assert jitter.flips == (not jitter.note.startswith("0 of"))


def test_a_choice_without_a_body_is_a_note(monkeypatch):
    """Another choice may leave no body at all: that changes the label, and is no error."""
    made = explain.meshes.body_from_triangles

    def refuse(mesh, protocol):
        if protocol.scaling == "none":
            raise BodyError("flat", "no volume")
        return made(mesh, protocol)

    monkeypatch.setattr(explain.meshes, "body_from_triangles", refuse)
    lantern = explain.explain(shapes.mesh_path("lantern"), shapes.FAST, C)
    changed = {variant.choice: variant for variant in lantern.variants}["scaling none"]
    assert (changed.stable, changed.flips, changed.note) == (None, True, "flat")


def test_footprint_goes_around():
    points = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 1e-4], [0, 1, 0], [1, 0.5, 0], [0, 0, 1.0]])
    touching, corners = footprint(points, 1e-3)
    assert len(touching) == 5
    edges = np.roll(corners, -1, axis=0) - corners
    turns = edges[:, 0] * np.roll(edges, -1, axis=0)[:, 1]
    turns -= edges[:, 1] * np.roll(edges, -1, axis=0)[:, 0]
    assert len(corners) == 4
    assert (turns > 0).all()
    assert footprint(points[:1], 1e-3)[1].shape == (0, 2)


def test_a_row_of_a_table(tmp_path, capsys):
    table, picture = tmp_path / "labels.parquet", tmp_path / "card.png"
    files = [shapes.mesh_path("lantern"), shapes.mesh_path("towel3")]
    label.write_labels(label.label_files(files, shapes.FAST, engine="mujoco"), table)
    assert run("--explain", f"{table}:1", "--out", picture) == 0
    said = capsys.readouterr().out
    angle = pq.read_table(table)["tilt_deg"][1].as_py()
    assert re.search(rf"the row\W+unstable, tilt {angle:.3f} deg\W", said)
    assert re.search(r"tilt\W+" + f"{angle:.3f} deg after", said)
    assert "FLIPS" in said
    assert "71." in said and "deg above the threshold" in said
    image = np.asarray(Image.open(io.BytesIO(picture.read_bytes())))
    assert image.shape == (2 * drop_card.SIZE + 3 * drop_card.LINE, 2 * drop_card.SIZE, 3)
    # Something is drawn in each of the four panels.
    for rows in (slice(60, 360), slice(420, 760)):
        for columns in (slice(0, 360), slice(360, 720)):
            assert image[rows, columns].std() > 5


def test_a_changed_file_is_noticed(tmp_path, capsys):
    table, mesh = tmp_path / "labels.parquet", tmp_path / "thing.obj"
    mesh.write_bytes(shapes.mesh_path("lantern").read_bytes())
    label.write_labels(label.label_files([mesh], shapes.FAST, engine="mujoco"), table)
    mesh.write_bytes(shapes.mesh_path("towel3").read_bytes())
    assert run("--explain", f"{table}:0") == 0
    assert "FILE CHANGED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--explain", "TMP/absent.obj"], "no such file"),
        (["--explain", "TMP/labels.parquet"], "which row"),
        (["--explain", "TMP/labels.parquet:9"], r"row in 0\.\.0"),
        (["--explain", "TMP/labels.parquet:x"], "TABLE.parquet:ROW"),
        (["--explain", "TMP/other.parquet:0"], "cannot read"),
        (["--explain", "TMP/text.obj"], r"text\.obj.*\((empty|not_a_mesh)\)"),
        (["--explain", "TMP/labels.parquet:0"], "cannot read"),
        (["--explain", "TMP/text.obj", "--out", "TMP/card.jpg"], r"\.png"),
        (["--explain", "TMP/text.obj", "--out", "TMP/none/card.png"], "no folder"),
        (["--explain", "TMP/text.obj", "TMP/text.obj"], "one object"),
        (["--explain", "TMP/text.obj", "--protocol", "quick"], "quick"),
    ],
)
def test_what_cannot_be_explained(tmp_path, capsys, arguments, message):
    (tmp_path / "text.obj").write_text("hello", encoding="utf-8")
    (tmp_path / "other.parquet").write_text("nonsense", encoding="utf-8")
    gone = label.label_files([tmp_path / "gone.obj"], shapes.FAST, engine="mujoco")
    label.write_labels(gone, tmp_path / "labels.parquet")
    resolved = [argument.replace("TMP", str(tmp_path)) for argument in arguments]
    assert run("--engine", "mujoco", *resolved) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: label: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
