"""benchmarks/scaling.py: what it compares is the same work, and a part's failure is its own."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import (
    measure,
    pipeline,
    scaling,
    scaling_labels,
    scaling_processes,
    scaling_train,
    scaling_ways,
)
from benchmarks.scaling import Results
from tests.models.comparison import FAST_COMPILE

BF16 = 2.0**-8  # rounding of one number; sums of many differ by less


def test_a_case_that_fails_is_told_of_and_measured_the_next_time(tmp_path, capsys):
    results = Results(tmp_path, "train", {"device": "none"})
    results.run("good", lambda: {"ms": 2.0, "all": [1.0, 3.0]})
    results.run("bad", lambda: {"ms": 1 / int("x")})
    again = Results(tmp_path, "train", {"device": "none"})
    again.run("good", lambda: {"ms": 7.0})
    again.run("bad", lambda: {"ms": 4.0})
    again.ratio("speedup", "bad", "good", "ms")
    said = capsys.readouterr().out
    assert "bad FAILED: ValueError: invalid literal" in said and "good: already there" in said
    assert "train/good.all [1, 3]" in said and "train/speedup 2.0000" in said
    kept = json.loads((tmp_path / "scaling-train.json").read_text())
    assert kept["device"] == "none"
    assert kept["cases"] == {"good": {"ms": 2.0, "all": [1.0, 3.0]}, "bad": {"ms": 4.0}}


def test_a_part_that_outlasts_its_limit_is_ended_with_its_children():
    program = "import subprocess; subprocess.run(['sleep', '60'])"
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True) as part:
        assert scaling._wait(part, 1.0) == 124


def test_four_devices_have_every_way_once():
    ways = {way.name: way for way in scaling_ways.ways(4)}
    assert list(ways)[:2] == ["weak/1", "weak/4"] and len(ways) == 10
    for name, way in ways.items():
        one_device = way.pairs == scaling_ways.PAIRS * len(way.devices)
        assert one_device or name.startswith("same/"), name
    assert [dict(ways[n].mesh.shape) for n in ("weak/4", "fsdp/4", "fsdp/2x2")] == [
        {"data": 4, "fsdp": 1},
        {"data": 1, "fsdp": 4},
        {"data": 2, "fsdp": 2},
    ]


@pytest.mark.slow  # compiles five programs
def test_one_device_and_four_agree_on_a_batch_up_to_rounding(tmp_path, monkeypatch, capsys):
    listed = scaling_ways.ways(4)
    chosen = ("weak/4", "same/1-in-4", "fsdp/2x2")
    fast = tuple(f"{name}={str(value).lower()}" for name, value in FAST_COMPILE.items())
    few = [way._replace(xla=fast) for way in listed if way.name in chosen]
    monkeypatch.setattr(scaling_train, "ways", lambda count: few)
    scaling_train.main(tmp_path, "small")
    cases = json.loads((tmp_path / "scaling-train.json").read_text())["cases"]
    assert set(cases) == {*chosen, "sum/1048576", "agreement"}, capsys.readouterr().out
    parts = [cases[name]["base_gib_computed"] for name in ("weak/4", "fsdp/2x2")]
    np.testing.assert_allclose(parts[1] / parts[0], 0.5, rtol=1e-3)
    for name, share in cases["agreement"].items():
        assert share < BF16, name
    assert cases["agreement"]["weak/4.gradient"] > 0  # it is the gradient, and of other sums
    norms = [cases[name]["grad_norm"] for name in chosen]
    np.testing.assert_allclose(norms, norms[0], rtol=BF16)


@pytest.mark.slow  # compiles for two sets of devices
def test_labels_do_not_depend_on_the_devices():
    blocks, devices = scaling_labels.make_blocks("small"), jax.devices()[:2]
    found = [scaling_labels.drop(blocks, 4, some) for some in (devices[:1], devices)]
    assert {figures["labels"] for figures in found} == {96}
    assert len({figures["steps"] for figures in found}) == 1
    assert len({figures["stable_percent"] for figures in found}) == 1
    assert all(0 < f["seconds_to_99_percent"] <= f["seconds"] for f in found)


def test_two_runs_are_compared_by_their_logs_and_adapters(tmp_path, monkeypatch):
    adapters = {"one": {"B": np.array([2.0, -4.0])}, "two": {"B": np.array([2.0, -3.0])}}
    for name, loss in (("one", 2.0), ("two", 2.5)):
        rows = [{"kind": "eval", "stable": 1.0}]
        rows += [{"kind": "train"} | dict.fromkeys(scaling_processes.METRICS, 5.0) | {"loss": loss}]
        (tmp_path / name).mkdir()
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / name / "metrics.jsonl").write_text(text)
    monkeypatch.setattr(
        scaling_processes, "read_peft_adapter", lambda path: (adapters[path.parent.name], None)
    )
    figures = scaling_processes._apart(tmp_path / "one", tmp_path / "two")
    assert figures["loss"] == figures["adapter"] == 0.25
    assert figures["grad_norm"] == 0 and figures["steps"] == 1


def test_the_pipeline_says_how_many_gpus_it_feeds():
    figures = pipeline.read(measure.Run("small"), cold=True)
    assert figures["ms_min"] <= figures["ms"] <= figures["ms_max"]
    np.testing.assert_allclose(figures["times_8_gpus"] * 120, figures["pairs_per_s"])
    assert figures["mb_per_s"] > 0 and figures["raw_mb_per_s"] > 0
