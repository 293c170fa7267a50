"""Structures for a second stage elsewhere: what is written, resumed, refused."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest

from dso_jax import pretrained
from dso_jax.cli.main import main
from dso_jax.dataset import coords as dataset_coords
from dso_jax.dataset.store import Dataset
from dso_jax.errors import UsageError
from dso_jax.models import DecoderConfig, FlowConfig, init_decoder, init_flow
from dso_jax.sampler import SamplerConfig
from tests.generation import bridge

FLOW = FlowConfig(resolution=2, model_channels=12, cond_channels=6, num_blocks=2, num_heads=3)
DECODER = DecoderConfig(channels=(4, 2), num_res_blocks=1, num_res_blocks_middle=1)


@pytest.fixture
def dataset(tmp_path):
    return Dataset(bridge.write(tmp_path / "data", bridge.names(6)))


def solids(count: int, resolution: int = 5) -> np.ndarray:
    """A different few voxels for each sample; of sample 3 none."""
    occupied = np.zeros((count, *(resolution,) * 3), bool)
    for i in range(count):
        occupied[i, 0, 1, : i % resolution + 1] = i != 3
        occupied[i, i % resolution, 4, 2] = i != 3
    return occupied


def test_a_file_an_object_with_voxels_seeds_and_conditions(dataset, tmp_path):
    occupied = solids(len(dataset))
    done = dataset_coords.export_coords(
        dataset, tmp_path / "out", bridge.decode(occupied), origin={"base": "b"}
    )
    assert dataclasses.astuple(done) == (3, 6, 1, 0)
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.npz")}
    assert found == {"objects/lamp-0.npz", "seat/chair-1.npz", "objects/lamp-2.npz"}
    record = json.loads((tmp_path / "out/coords.json").read_text())
    assert record == {"format": "dso-jax-coords-1", "base": "b"}
    for place, name in (("objects/lamp-0", "lamp-0"), ("seat/chair-1", "seat/chair-1")):
        rows = np.flatnonzero(dataset.samples["object"] == name)
        with np.load(tmp_path / "out" / f"{place}.npz") as file:
            assert file["views"].tolist() == dataset.samples["view"][rows].tolist()
            assert file["samples"].tolist() == dataset.samples["sample"][rows].tolist()
            assert file["seeds"].tolist() == dataset.samples["seed"][rows].tolist()
            for i, row in enumerate(rows.tolist()):
                coords = file["coords"][file["starts"][i] : file["starts"][i + 1]]
                np.testing.assert_array_equal(coords, np.argwhere(occupied[row]))
                at = file["condition_views"].tolist().index(dataset.samples["view"][row])
                bits = file["conditions"][at].astype(np.uint32) << 16
                wanted = dataset.condition(row)
                assert wanted.dtype == ml_dtypes.bfloat16
                np.testing.assert_array_equal(bits.view(np.float32), wanted.astype(np.float32))


def test_an_export_goes_on_and_takes_what_is_new(dataset, tmp_path):
    out, occupied = tmp_path / "out", solids(8)
    dataset_coords.export_coords(dataset, out, bridge.decode(occupied), origin={})
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    (out / "seat/chair-1.npz").unlink()
    bridge.write(tmp_path / "data", bridge.names(8)[6:])  # an object of before, and a new one
    grown, calls = Dataset(tmp_path / "data"), []
    dataset_coords.export_coords(
        grown, out, bridge.decode(occupied), origin={}, progress=lambda *at: calls.append(at)
    )
    kept = {p.name for p, when in before.items() if p.exists() and p.stat().st_mtime_ns == when}
    assert kept == {"lamp-2.npz"} and calls[-1] == (8, 8)
    with np.load(out / "objects/lamp-0.npz") as file:
        assert len(file["views"]) == 4


def test_what_another_made_is_refused(dataset, tmp_path):
    def export(out, **origin):
        return dataset_coords.export_coords(dataset, out, bridge.decode(solids(6)), origin=origin)

    export(tmp_path / "out", base="toybox", resolution=32)
    with pytest.raises(UsageError, match=r"coords\.json: base is 'toybox', this export has 'b'"):
        export(tmp_path / "out", base="b", resolution=32)
    (tmp_path / "out/objects/lamp-0.npz").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"lamp-0\.npz: no file of an export"):
        export(tmp_path / "out", base="toybox", resolution=32)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    with pytest.raises(UsageError, match="mine: is not empty"):
        export(tmp_path / "mine")


@pytest.fixture
def generator(tmp_path):
    models = {
        pretrained.FLOW: (FLOW, init_flow(FLOW, jax.random.key(0))),
        pretrained.DECODER: (DECODER, init_decoder(DECODER, jax.random.key(0))),
    }
    pretrained.save(tmp_path / "tiny", models, SamplerConfig(steps=3), {})
    return tmp_path / "tiny"


def test_the_command_decodes_with_the_generator_that_made_the_samples(generator, tmp_path, capsys):
    sha256 = pretrained.load(str(generator)).sha256
    meta = {"base": str(generator), "base_sha256": sha256}
    data = bridge.write(tmp_path / "data", bridge.names(3), meta, shape=(8, 2, 2, 2))
    line = ["dataset", "export-coords", str(data), "--out", str(tmp_path / "out")]
    assert main(line) == 0
    assert "3 samples of 2 objects" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/coords.json").read_text())["resolution"] == 4
    with np.load(tmp_path / "out/objects/lamp-0.npz") as file:
        assert file["coords"].max() < 4

    (generator / "ckpts/flow.safetensors").write_bytes(b"another")
    assert main(line) == 2
    assert "its samples are from a base with sha256" in capsys.readouterr().err


def test_what_the_command_refuses(generator, tmp_path, capsys):
    other = bridge.write(tmp_path / "other", bridge.names(2), {}, shape=(2, 2, 2, 2))
    for words, message in (
        (["nowhere"], "nowhere: no such dataset folder"),
        ([other], "does not record its generator; name it with --base"),
        ([other, "--base", generator], "latents have 2 channels, the decoder of .* takes 8"),
    ):
        line = ["dataset", "export-coords", *map(str, words), "--out", str(tmp_path / "out")]
        assert main(line) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and re.search(message, error)
    assert not (tmp_path / "out").exists()
