"""The way of a dataset through a second stage in torch, here a stub of TRELLIS, and back."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trimesh
import yaml

from dso_jax.cli.main import main
from dso_jax.dataset import coords as dataset_coords
from dso_jax.dataset import labels as dataset_labels
from dso_jax.dataset.samples import read_table
from dso_jax.dataset.stats import measure
from dso_jax.dataset.store import Dataset
from dso_jax.errors import UsageError
from sim_mjx import bodies_from_occupancy, referee
from sim_mjx.occupancy import fill_interior
from sim_mjx.protocol import Protocol
from tests.generation import bridge, solids
from tests.sim import shapes

ROOT = Path(__file__).parents[2]
STUB = Path(__file__).parent / "trellis_stub"
SCRIPT = ROOT / "scripts" / "trellis_stage2.py"
# The script, where nothing of ours can be imported.
ALONE = (
    "import runpy, sys\n"
    "for name in ('dso_jax', 'sim_mjx', 'weight_port', 'jax'):\n"
    "    sys.modules[name] = None\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)
R = 24
SAME = dataclasses.replace(Protocol.preset("fast"), inertia="exact", contact="skin")
VOLUME_RTOL = 1e-5  # of float32 vertices


def stage2(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", ALONE, str(SCRIPT), *map(str, arguments)]
    path = f"{STUB}{os.pathsep}{ROOT}"
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=200
    )


def label(*words) -> int:
    return main(["label", *map(str, words), "--engine", "mujoco", "--workers", "0"])


class Bridged(NamedTuple):
    """A dataset's folder with `data`, `coords` and `meshes`; `made` by the first of two runs."""

    folder: Path
    logits: np.ndarray
    said: list[str]
    made: dict[Path, int]


@pytest.fixture(scope="module")
def bridged(tmp_path_factory):
    """A dataset, its structures, and the meshes that the script made of them with the stub."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("bridge")
    keys = bridge.names(18)
    # Of whole voxels, as the stub's meshes are.
    logits = np.sign(shapes.toy_logits(len(keys), R))
    logits[[2, 11], R // 2 :, 8:16, 14:20] = 1  # with a heavy arm these fall
    logits[7] = -1  # nothing: the decoder's own failures
    bridge.write(folder / "data", keys)
    dataset_coords.export_coords(
        Dataset(folder / "data"), folder / "coords", bridge.decode(logits > 0), origin={}
    )
    # One of two shards, then the rest of all; each process takes seconds to import torch.
    line = (folder / "coords", "--out", folder / "meshes", "--model", R, "--device", "cpu")
    first = stage2(*line, "--shard", "1/2")
    assert first.returncode == 0, first.stderr
    made = {path: path.stat().st_mtime_ns for path in folder.glob("meshes/*/*/*")}
    second = stage2(*line)
    assert second.returncode == 0, second.stderr
    return Bridged(folder, logits, [first.stderr, second.stderr], made)


def test_the_script_writes_dsos_layout(bridged):
    folder, logits = bridged.folder, bridged.logits
    names = {p.relative_to(folder / "meshes").as_posix() for p in folder.glob("meshes/*/*/*")}
    expected = {
        f"{name if '/' in name else f'objects/{name}'}/{view:03d}_{sample:03d}.glb"
        for i, (name, view, sample) in enumerate(bridge.names(18))
        if i != 7
    }
    assert names == expected
    # y up, in TRELLIS's frame: half a voxel from where the logits cross, as cubes are.
    mesh = trimesh.load_mesh(folder / "meshes/objects/lamp-0/000_000.glb")
    solid = fill_interior(logits[0] > 0)
    assert mesh.volume == pytest.approx(solid.mean(), rel=VOLUME_RTOL)
    x, y, z = (np.argwhere(solid).min(0) / R - 0.5).tolist()
    upper = (np.argwhere(solid).max(0)[1] + 1) / R - 0.5
    np.testing.assert_allclose(mesh.bounds[0], [x, z, -upper], atol=1e-4)
    assert y < upper


def test_a_shard_is_a_part_and_what_is_there_is_not_made_again(bridged):
    assert {path.parent.name for path in bridged.made} == {"lamp-2"}  # the second of three
    assert "1 objects, 6 meshes to make" in bridged.said[0]
    assert "3 objects, 11 meshes to make" in bridged.said[1]
    assert "11 meshes made, 0 samples failed" in bridged.said[1]
    assert all(path.stat().st_mtime_ns == when for path, when in bridged.made.items())


def test_a_failed_sample_is_named_and_the_others_go_on(bridged, tmp_path):
    coords = shutil.copytree(bridged.folder / "coords", tmp_path / "coords")
    with np.load(coords / "objects/lamp-0.npz") as file:
        arrays = dict(file)
    arrays["conditions"] = np.full((1, 3, 8), 2000, np.float32)  # the stub's way to fail
    np.savez(coords / "objects/lamp-0.npz", **arrays)
    with np.load(coords / "seat/chair-1.npz") as file:
        arrays = dict(file)
    arrays["conditions"] = np.full((1, 4, 4, 3), 200, np.uint8)  # a picture instead
    np.savez(coords / "seat/chair-1.npz", **arrays)
    done = stage2(coords, "--out", tmp_path / "out", "--model", R, "--device", "cpu")
    assert done.returncode == 1 and "12 meshes made, 5 samples failed" in done.stderr
    assert "lamp-0/000_000.glb: failed: CUDA error: out of memory\n" in done.stderr
    assert not (tmp_path / "out/objects/lamp-0").exists()
    # The same seed, so the same noise, with which the stub's mesh moves.
    again = "objects/lamp-2/000_001.glb"
    found, before = (root / again for root in (tmp_path / "out", bridged.folder / "meshes"))
    assert found.read_bytes() == before.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--out", "out"], "coords.json: cannot be read"),
        ([".", "--out", "out", "--shard", "2/2"], "--shard: invalid share value: '2/2'"),
        ([".", "--out", "out"], "format is 'other', expected 'dso-jax-coords-1'"),
    ],
)
def test_the_script_refuses_what_it_cannot_use(words, message, tmp_path, monkeypatch):
    (tmp_path / "coords.json").write_text('{"format": "other"}')
    monkeypatch.chdir(tmp_path)
    done = stage2(*words)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "out").exists()


def test_labels_of_the_meshes_replace_those_of_the_occupancy(bridged, tmp_path, capsys):
    folder, logits = bridged.folder, bridged.logits
    data = shutil.copytree(folder / "data", tmp_path / "data")
    protocol = tmp_path / "same.yaml"
    protocol.write_text(yaml.safe_dump({"preset": "fast", "inertia": "exact", "contact": "skin"}))
    before = read_table(data)
    assert label(folder / "meshes", "--into", data, "--protocol", protocol) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    after, rest = read_table(data), referee.drop(bodies_from_occupancy(logits)[0], SAME)

    made = np.arange(18) != 7
    assert set(after["source"][made]) == {"mesh"} and after["source"][7] == "occupancy"
    assert set(after["protocol"][made]) == {SAME.hash()} and after["protocol"][7] == "0123abcd"
    assert set(after["engine"][made]) == {"mujoco 4.0.0"}
    for name in ("object", "view", "sample", "seed", "shard", "row", "condition_row"):
        np.testing.assert_array_equal(after[name], before[name])
    flips = int((before["stable"] != after["stable"])[made].sum())
    assert said == (
        f"17 samples of {data} have the labels of their meshes now: {flips} flipped; 1 without a "
        "mesh keep theirs"
    )
    # What stands as occupancy stands as a mesh.
    tilt = np.stack([after["tilt_deg"], np.asarray(rest.tilt_deg)])[:, made]
    low, high = solids.BAND_DEG
    clear = ~((tilt > low) & (tilt < high)).any(axis=0)
    stands = rest.stable(SAME)[made]
    assert (after["stable"][made] == stands)[clear].all() and stands[clear].sum() == clear.sum() - 2

    # Where each label is from, and what was there before.
    kept = pq.read_table(data / "labels-same-mujoco.parquet")
    assert len(kept) == 17 and b"protocol" in kept.schema.metadata
    first = pq.read_table(data / "labels-replaced.parquet").to_pylist()
    assert {(r["object"], r["view"], r["sample"]): r["stable"] for r in first} == {
        key: bool(before["stable"][i]) for i, key in enumerate(bridge.keys_of(before)) if made[i]
    }
    assert len(Dataset(data)) == 18


def table(meshes: Mapping[str, float | None], **more) -> pa.Table:
    """Labels of meshes by their name; None: invalid."""
    valid = [angle is not None for angle in meshes.values()]
    columns = {
        "path": list(meshes),
        "status": ["rest" if one else "invalid" for one in valid],
        "stable": [None if angle is None else angle < 20 for angle in meshes.values()],
        "tilt_deg": list(meshes.values()),
        "rotation_deg": list(meshes.values()),
        "margin_deg": [3.0 if one else None for one in valid],
        "protocol": ["ab"] * len(meshes),
        "engine": ["mjx"] * len(meshes),
        "engine_version": ["3"] * len(meshes),
    }
    return pa.table(columns | more)


def test_replacing_again_and_otherwise(tmp_path):
    data = bridge.write(tmp_path / "data", bridge.names(6))
    labels = {"m/objects/lamp-0/000_000.glb": 50.0, "seat/chair-1/005_001.glb": None}
    done = dataset_labels.replace(data, table(labels))
    assert done == dataset_labels.Replaced(meshes=2, flipped=1, invalid=1, left=4)
    found = read_table(data)
    assert found["status"].tolist() == ["rest"] * 3 + ["invalid"] + ["rest"] * 2
    assert found["stable"].tolist() == [False, False, True, False, True, False]
    assert np.isnan(found["tilt_deg"][3]) and found["margin_deg"][3] == 0.0
    assert measure(data).labelled_by == {
        "occupancy, mjx 3, protocol 0123abcd": 4,
        "mesh, mjx 3, protocol ab": 2,
    }
    contents = {p.name: p.read_bytes() for p in data.iterdir()}
    times = {p.name: p.stat().st_mtime_ns for p in data.iterdir()}

    again = dataset_labels.replace(data, table(labels))
    assert again == dataset_labels.Replaced(meshes=2, flipped=0, invalid=0, left=4)
    assert {p.name: p.stat().st_mtime_ns for p in data.iterdir()} == times

    # Another protocol goes over them; what was replaced first stays on record, and grows.
    bridge.write(data, bridge.names(8)[6:])
    more = {"m/objects/lamp-0/000_000.glb": 2.0, "objects/lamp-0/000_002.glb": 2.0}
    done = dataset_labels.replace(data, table(more, protocol=["cd"] * 2))
    assert done == dataset_labels.Replaced(meshes=2, flipped=1, invalid=0, left=6)
    protocols = read_table(data)["protocol"].tolist()
    assert protocols[0] == protocols[6] == "cd" and protocols[3] == "ab"
    assert {protocols[i] for i in (1, 2, 4, 5, 7)} == {"0123abcd"}
    first = pq.read_table(data / "labels-replaced.parquet").to_pydict()
    assert first["tilt_deg"] == [1.0, 80.0, 1.0] and set(first["source"]) == {"occupancy"}
    assert {n: (data / n).read_bytes() for n in contents if "safetensors" in n} == {
        n: raw for n, raw in contents.items() if "safetensors" in n
    }


@pytest.mark.parametrize(
    ("meshes", "message"),
    [
        (["a/b.glb"], "b.glb: expected a name CATEGORY/OBJECT/IMG_EEE.glb"),
        (["objects/lamp-0/000_007.glb"], "000_007.glb: is of no sample in"),
        (["seat/lamp-0/000_000.glb"], "lamp-0/000_000.glb: is of no sample in"),
        (["objects/lamp-0/000_000.glb", "x/objects/lamp-0/000_000.obj"], "the same sample as obj"),
    ],
)
def test_meshes_that_belong_nowhere(meshes, message, tmp_path):
    data = bridge.write(tmp_path / "data", bridge.names(4))
    with pytest.raises(UsageError, match=message):
        dataset_labels.rows_of(data, read_table(data), meshes)


def test_the_command_checks_before_it_works(tmp_path, capsys):
    data = bridge.write(tmp_path / "data", bridge.names(2))
    mesh = tmp_path / "meshes/objects/lamp-9/000_000.glb"
    mesh.parent.mkdir(parents=True)
    mesh.write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    for into, message in ((data, "000.glb: is of no sample in"), (tmp_path, "no such dataset")):
        assert label(mesh, "--into", into) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
