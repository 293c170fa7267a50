"""The benchmarks of labels, at sizes that only show that they run and keep what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from benchmarks import end_to_end, labels, real_bodies
from sim_mjx import Protocol, mesh_files, settling, warp_engine
from sim_mjx.meshes import load_mesh

ROOT = Path(__file__).resolve().parents[2]


def test_a_record_keeps_what_is_done_and_goes_on_after_failures(tmp_path, capsys):
    path = tmp_path / "out.json"

    def fail():
        raise RuntimeError("out of memory")

    def hang():
        time.sleep(10)
        return {}

    record = labels.Record(path, {"device": "none"})
    record.measure("broken", fail, 5)
    record.measure("slow", hang, 1)
    record.measure("good", lambda: {"value": 1.5, "curve": [(0, 1)]}, 5)
    assert json.loads(path.read_text())["cases"]["good"]["value"] == 1.5
    again = labels.Record(path, {"device": "none"})
    again.measure("good", fail, 5)
    said = capsys.readouterr().out
    assert "broken.error RuntimeError: out of memory" in said
    assert "slow.error TimeUp" in said
    assert "good.value 1.5" in said and "curve" not in said
    assert "good: already in" in said
    assert list(again.cases) == ["good"]


def test_cases_have_names_of_their_own():
    names = [case.name for case in labels.cases()]
    assert len(set(names)) == len(names)
    assert names[0] == "312k/mjx-slim-312000"


def test_bodies_survive_their_file(tmp_path):
    bodies = real_bodies.load()
    small = {points: group[:2] for points, group in bodies.items()}
    real_bodies.save(small, tmp_path / "bodies.npz")
    loaded = real_bodies.load(tmp_path / "bodies.npz")
    for points, group in small.items():
        np.testing.assert_array_equal(loaded[points].points, group.points)
        tables = loaded[points].polygons, group.polygons
        found, expected = (table.contacts for table in tables if table is not None)
        np.testing.assert_array_equal(found, expected)
        assert [one.sha256 for one in loaded[points].provenance] == [
            one.sha256 for one in group.provenance
        ]
    assert {len(t) for t in real_bodies.tilts(tmp_path / "bodies.npz").values()} == {2}


def test_made_files_have_the_faces_and_the_hull_of_their_mesh(tmp_path):
    source = real_bodies.COMMITTED / "table.obj"
    end_to_end._make(source, None, [(0, tmp_path / "a.glb"), (1, tmp_path / "b.glb")])
    first, second = (load_mesh(tmp_path / name) for name in ("a.glb", "b.glb"))
    assert len(first.triangles) == pytest.approx(end_to_end.FACES, rel=0.01)
    assert (tmp_path / "a.glb").read_bytes() != (tmp_path / "b.glb").read_bytes()
    assert first.up == mesh_files.UP_AXIS["glb"] == second.up
    original = real_bodies.prepare([source], Protocol(), workers=0)
    made = real_bodies.prepare([tmp_path / "a.glb"], Protocol(), workers=0)
    found = [item.body for item in (*original, *made) if item.body is not None]
    hulls = [body.provenance[0].hull_points for body in found]
    assert hulls[0] == hulls[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "labels.py --scale 0.0002 -f 312k/mujoco-processes|312k/mjx|rule|growth/mjx-slim-10000",
        "tune.py --tiny",
        "perturbed.py --starts 1 --sample 20",
        "occupancy_bodies.py --tiny",
        "end_to_end.py --files 26 --cached 2",
    ],
)
def test_each_runs_at_a_tiny_size(command, tmp_path):
    script, *arguments = command.split()
    out = tmp_path / "out.json"
    line = [sys.executable, f"benchmarks/{script}", *arguments, "--out", str(out)]
    said = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert ".error" not in said
    cases = json.loads(out.read_text())["cases"]
    assert cases and all(case["wall_s"] > 0 for case in cases.values())


def test_footing_of_many_is_that_of_each():
    """What mujoco_warp's worlds are asked is `settling.spans_area`: points, edges and faces."""
    random = np.random.default_rng(0)
    points = random.normal(size=(30, 12, 3))
    points[::3, 4:, 2] = -1.0  # a face down
    points[1::3, 2:, 2] = 1.0
    chunk: Any = SimpleNamespace(points=points, depth=random.uniform(0.01, 0.2, 30))
    bodies = random.integers(0, 30, 60)
    qpos = np.concatenate([0.3 * random.normal(size=(60, 3)), random.normal(size=(60, 4))], axis=1)
    qpos[::2, 3:] = [1, 0, 0, 0]
    qpos[:, 3:] /= np.linalg.norm(qpos[:, 3:], axis=1, keepdims=True)
    turns = Rotation.from_quat(qpos[:, 3:], scalar_first=True).as_matrix()
    each = [
        settling.spans_area(points[b] @ turn.T + q[:3], chunk.depth[b], np)
        for b, turn, q in zip(bodies, turns, qpos, strict=True)
    ]
    assert 5 < sum(each) < 55
    assert warp_engine._Chunk._has_footing(chunk, bodies, qpos).tolist() == each
