"""The log: valid JSON whatever the numbers, continued where a killed run left it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dso_jax.training.metrics import (
    MetricLog,
    NonFiniteError,
    Throughput,
    check_finite,
    headline,
    progress_bar,
)


def refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def test_lines_are_strict_json(tmp_path):
    log = MetricLog(tmp_path / "m.jsonl", start=0)
    log.write("train", 0, {"loss": np.float32(0.5), "skipped": np.int32(2), "drift": np.nan})
    log.write("eval", 0, {"stable": float("inf")})
    log.close()
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        {"kind": "train", "step": 0, "loss": 0.5, "skipped": 2, "drift": None},
        {"kind": "eval", "step": 0, "stable": None},
    ]


def test_a_resumed_log_drops_what_it_will_write_again(tmp_path):
    path = tmp_path / "m.jsonl"
    rows = [{"kind": kind, "step": step} for step in range(4) for kind in ("eval", "train")]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"kind": "tra')
    log = MetricLog(path, start=2)
    assert log.rows == rows[:5]  # the evaluation after two steps is done, step 2 is not
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:5]
    MetricLog(path, start=0).close()
    assert path.read_text() == ""


def test_other_processes_write_nothing(tmp_path):
    log = MetricLog(tmp_path / "m.jsonl", start=0, active=False)
    log.write("train", 0, {"loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())


def test_throughput_leaves_pauses_out(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    speed = Throughput(samples=10)
    speed.tick()
    now += 2.0
    with speed.pause():
        now += 30.0
    assert speed.rate() == 5.0
    now += 1.0
    assert speed.rate() == 0.0  # no step since the last call


def test_non_finite_steps_are_named_once_there_are_too_many():
    check_finite({"streak": 2, "step": 9}, limit=3)
    with pytest.raises(NonFiniteError, match=r"steps 7\.\.9"):
        check_finite({"streak": 3, "step": 9}, limit=3)


def test_the_headline_survives_a_loss_that_is_not_finite():
    assert headline({"loss": None, "samples_per_s": 2.0}) == "loss not finite  2.0 samples/s"
    assert headline({"loss": 0.69314, "samples_per_s": 2.0}) == "loss 0.6931  2.0 samples/s"


def test_progress_becomes_log_lines_where_nobody_watches(monkeypatch, caplog):
    monkeypatch.setattr("dso_jax.training.metrics.SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level("INFO"), progress_bar("DPO", 0, 4) as update:
        update(1, "loss 1")
        update(2)
    assert [record.message for record in caplog.records] == ["DPO 1/4  loss 1", "DPO 2/4  loss 1"]
