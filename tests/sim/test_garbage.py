"""Half a thousand mixed files with bad ones among them; benchmarks/garbage.py does 100,000."""

from __future__ import annotations

import json
import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import garbage, garbage_job
from sim_mjx import Protocol, plan
from sim_mjx.packed import unpack
from sim_mjx.prepare_one import Preparer
from sim_mjx.task import SCHEMA

REASONS = {"", "empty", "flat", "nan_vertices", "not_a_mesh", "too_large", "too_many_faces"}
WORDS = (b"\xff\xff\xff\x7f", b"\0\0\0\0", b"9999", b"nan ", b"-1  ", b"\0\0\x80\x7f", b"1e39")


def spoiled(data: bytes, rng: random.Random) -> bytes:
    """A copy with a few bytes changed, cut out or put in."""
    text = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 20])):
        at = rng.randrange(len(text))
        match rng.randrange(4):
            case 0:
                text[at] = rng.randrange(256)
            case 1:
                del text[at : min(at + rng.choice([1, 4, 100]), len(text) - 1)]
            case 2:
                text[at:at] = rng.randbytes(rng.choice([1, 4, 64]))
            case _:
                text[at : at + 4] = rng.choice(WORDS)
    return bytes(text)


@pytest.mark.filterwarnings("ignore")  # of readers that complain and go on
@pytest.mark.parametrize("mode", ["legacy", "exact", "shell", "voxel"])
def test_spoiled_files_give_a_sound_body_or_a_reason(mode, tmp_path):
    rng = random.Random(mode)
    files = [path for path in garbage.good_files(tmp_path) if path.stat().st_size < 20_000]
    work = Preparer(Protocol(inertia=mode))
    bodies = 0
    for _ in range(100):
        source = rng.choice(files)
        path = tmp_path / f"spoiled{source.suffix}"
        path.write_bytes(spoiled(source.read_bytes(), rng))
        _, packed, reason, _ = work(path)
        assert reason in REASONS
        if packed is not None:
            bodies += 1
            assert garbage.finite(unpack([packed]))
    assert 0 < bodies < 100


@pytest.mark.slow
def test_every_file_gives_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(garbage, "BAD_SHARE", 0.1)
    planted = garbage.plant(tmp_path / "files", 500)
    faults = {fault for _, fault, _ in planted if fault}
    assert len(faults) > 10
    cold = garbage.run(planted, 2, tmp_path / "cache")
    assert (cold.rows, cold.wrong) == (500, [])
    assert cold.bodies == sum(not reason for _, _, reason in planted)
    assert cold.fallbacks > 0
    warm = garbage.run(planted, 0, tmp_path / "cache")
    assert (warm.reasons, warm.wrong) == (cold.reasons, [])


def test_a_row_that_is_not_as_planted_is_named(tmp_path):
    good = {"status": "rest", "stable": True, "tilt_deg": 0.1, "rotation_deg": 0.1, "mass": 2.0}
    bad = {"status": "invalid", "reason": "flat"}
    spoil = [{}, {"tilt_deg": None}, {"mass": math.inf}, {"stable": None}, {"reason": "flat"}]
    rows = [{**good, **change} for change in spoil] + [bad, {**bad, "reason": "empty"}]
    rows += [{**bad, "stable": False}]
    planted = [(tmp_path / f"{i}.obj", "", "") for i in range(5)]
    planted += [(tmp_path / f"{i}.obj", "flat.obj", "flat") for i in (5, 6, 7)]
    for number, (row, (path, _, _)) in enumerate(zip(rows, planted, strict=True)):
        row |= {"path": str(path), "sha256": str(number), "adjudicated": False}
    table = tmp_path / "labels.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), table)
    found = garbage_job.verdict(table, planted)
    named = {line.split(".obj")[0].rsplit("/")[-1] for line in found["wrong"]}
    assert named == {"1", "2", "3", "4", "6", "7"}
    assert found["reasons"] == {"": 4, "flat": 3, "empty": 1}
    short = garbage_job.verdict(table, [*planted, planted[0]])
    assert "8 rows for 9 files" in short["wrong"]
    parts = plan.folder(table)
    parts.mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:2], schema=SCHEMA), parts / "00000.parquet")
    begun = garbage_job.verdict(table, planted, so_far=True)
    assert (begun["rows"], len(begun["wrong"])) == (2, 1)


@pytest.mark.slow
def test_the_job_over_garbage_goes_on_and_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(garbage, "BAD_SHARE", 0.2)
    command = ["--simulate", "--files", "150", "--workers", "1", "--folder", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["garbage.py", *command, "--out", str(tmp_path / "out.json")])
    assert garbage.main() == 0
    first = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (first["rows"], first["runs"][0]["files"]) == (150, 150)
    assert first["kinds_of_bad_files"] > 8
    assert first["runs"][0]["resident_mib_after_files"]
    assert garbage.main() == 0  # finished: nothing is simulated again
    again = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (again["reasons"], again["runs"]) == (first["reasons"], first["runs"])
