"""`dso check`: one object's card, its picture, and what its verdict hangs on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from dso_jax.cli.main import main
from dso_jax.evaluation.check import Check, check
from dso_jax.report import drop_card
from sim_mjx import Protocol
from tests.sim import shapes


def boxes(path: Path, *parts, up: str = "z") -> Path:
    """Writes boxes, each given by its lowest and highest corner in millimetres, z up."""
    vertices, faces = [], []
    for low, high in parts:
        box = trimesh.creation.box(bounds=np.array([low, high], float))
        faces.append(box.faces + 8 * len(vertices))
        vertices.append(box.vertices)
    made = np.concatenate(vertices)
    made = made if up == "z" else made[:, [0, 2, 1]] * [1, 1, -1]
    trimesh.Trimesh(made, np.concatenate(faces), process=False).export(path)
    return path


TABLE = [((0, 0, 0), (40, 20, 10))]
# A block with a long thin fin up and out: as a solid its mass is in the block, as a shell much of
# it is in the fin. The fin starts inside the block, so that the grid sees one solid.
FINNED = [((-30, -30, 0), (10, 30, 120)), ((9, -30, 118), (130, 30, 119.5))]
POST = [((0, 0, 0), (4, 40, 100)), ((0, 0, 99), (70, 40, 110))]


def run(capsys, *arguments) -> tuple[int, str]:
    code = main(["check", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_a_block_stands_with_the_margin_of_its_shape(tmp_path, capsys):
    path = boxes(tmp_path / "table.stl", *TABLE)
    code, out = run(capsys, path, "--json", "--no-picture")
    card = json.loads(out)
    assert code == 0 and card["verdict"] == "stands" and card["shown"] == "exact"
    # Over the nearer edge: half of 20 mm, from a height of 5 mm.
    assert card["margin_deg"] == pytest.approx(np.degrees(np.arctan2(10, 5)), abs=0.01)
    assert card["margin_mm"] == pytest.approx(10, abs=0.01)
    assert card["extents"] == pytest.approx([40, 20, 10])
    assert card["unit"] == "mm" and card["towards"] in ("+y", "-y")
    assert card["faults"]["watertight"] and card["label"]["stable"]
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(("suffix", "up", "way"), [("stl", "z", "+x"), ("obj", "y", "+x")])
def test_an_object_falls_along_an_axis_of_its_file(tmp_path, capsys, suffix, up, way):
    path = boxes(tmp_path / f"post.{suffix}", *POST, up=up)
    code, out = run(capsys, path, "--json", "--no-picture", "--unit", "cm")
    card = json.loads(out)
    assert code == 1 and card["verdict"] == "falls" and card["towards"] == way
    assert card["margin_mm"] is None and card["unit"] == "cm"


def test_what_falls_is_told_how_it_would_stand(tmp_path, capsys):
    path = boxes(tmp_path / "post.stl", *POST)
    code, out = run(capsys, path, "--no-picture")
    assert code == 1 and "It falls towards +x" in out
    found = check(path, Protocol.preset("dso-eval"))
    assert found.pose is not None and found.pose.margin_deg > 10
    assert f"Turned by {found.pose.turn_deg:.0f}° it would stand" in out.replace("\n", "")
    smooth = trimesh.creation.icosphere(subdivisions=5)  # 10242 points: too many poses to try
    smooth.vertices *= [1.0, 0.5, 3.0]
    smooth.vertices[:, 0] += 0.5 * smooth.vertices[:, 2]
    smooth.export(tmp_path / "egg.stl")
    egg = check(tmp_path / "egg.stl", Protocol.preset("fast"))
    assert egg.shown.stable is False and egg.pose is None


def test_a_verdict_that_hangs_on_what_is_inside(tmp_path, capsys):
    path = boxes(tmp_path / "finned.stl", *FINNED)
    code, out = run(capsys, path, "--out", tmp_path / "card.png")
    assert code == 3 and "depends" in out
    found = check(path, Protocol.preset("dso-eval"))
    stable = {mode: one.stable for mode, one in found.outcomes.items()}
    assert stable == {"exact": True, "voxel": True, "convex": False, "shell": False}
    picture = Image.open(io.BytesIO((tmp_path / "card.png").read_bytes()))
    assert picture.size == (2 * drop_card.SIZE, 2 * drop_card.SIZE + 3 * drop_card.LINE)


@pytest.fixture(scope="module")
def open_box(tmp_path_factory) -> Check:
    path = tmp_path_factory.mktemp("open") / "open.stl"
    box = trimesh.creation.box(extents=(1, 1, 1))
    trimesh.Trimesh(box.vertices, box.faces[:-1], process=False).export(path)
    return check(path, Protocol.preset("dso-eval"))


def test_an_open_surface_has_no_exact_mass_and_its_label_does_not_count(open_box):
    assert open_box.outcomes["exact"].doubt == "not_closed"
    assert open_box.outcomes["voxel"].doubt == "no_volume"  # the outside comes in
    assert open_box.shown is open_box.outcomes["convex"]
    assert open_box.verdict == "stands" and open_box.faults.holes == 1


@pytest.mark.parametrize(
    ("azimuth", "way"), [(0, "+x"), (91, "+y"), (-135, "-x -y"), (180, "-x"), (np.nan, "")]
)
def test_headings_are_the_file_s(open_box, azimuth, way):
    assert open_box.heading(azimuth) == way


def test_an_object_that_rocks_first_has_a_margin_once_it_rests():
    found = check(shapes.mesh_path("bread"), Protocol.preset("dso-eval")).shown
    assert found.stable and found.margin_deg == 0
    assert 1 < found.settled_deg < 30


def test_a_name_with_brackets_stays_as_it_is(tmp_path, capsys):
    path = boxes(tmp_path / "a [red] box.stl", *TABLE)
    _, out = run(capsys, path, "--no-picture")
    assert "a [red] box.stl" in " ".join(out.split())  # a long path is wrapped
    assert "closed, nothing wrong" in out


def test_the_card_says_what_label_would(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out = run(capsys, shapes.mesh_path("stool2"))
    assert code == 0 and "open surface" in out and "holes: 20" in out
    assert f"protocol {Protocol.preset('dso-eval').hash()}" in out
    assert Image.open(io.BytesIO((tmp_path / "stool2-check.png").read_bytes())).size[0] > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.stl"], "no.stl: no such file"),
        (["."], "a folder; expected one mesh"),
        (["bad.stl"], "not_a_mesh"),
        (["flat.obj"], "flat"),
        (["bad.stl", "--out", "card.jpg"], "expected a .png file"),
        (["bad.stl", "--out", "nowhere/card.png"], "no folder nowhere"),
        (["bad.stl", "--protocol", "dso-evl"], "dso-evl"),
        ([], "MESH"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("bad.stl").write_bytes(b"nothing of the kind")
    Path("flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 0 1\nf 1 2 3\n")
    assert main(["check", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("error: check: ") and "\n" not in error
    assert not list(tmp_path.glob("*.png"))
