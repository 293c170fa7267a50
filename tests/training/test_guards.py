"""What keeps a run from going bad unseen: figures by time, stop rules, bounds on the losers."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dso_jax import config_io, data
from dso_jax.cli import main as dso
from dso_jax.config import Config, GuardConfig
from dso_jax.dataset.store import Dataset
from dso_jax.objectives import ObjectiveConfig
from dso_jax.training import losses
from dso_jax.training.diagnosis import diagnose
from dso_jax.training.guards import reason_to_stop
from dso_jax.training.losses import Comparison
from tests.training.conftest import labels, make_config, write_dataset
from tests.training.test_run import ROOT, lines, run


@pytest.fixture
def config(dataset_folder, tmp_path) -> Config:
    return make_config(dataset_folder, tmp_path / "run")


def row(step: int, win_drift: float, ref_distance: float = 0.0) -> dict:
    loss_win = 0.5 + win_drift
    numbers = {"loss_win": loss_win, "win_drift": win_drift, "ref_distance": ref_distance}
    return {"kind": "train", "step": step, **numbers}


def test_figures_come_by_time():
    err = jnp.array([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]])
    ref = jnp.array([[1.0, 5.0], [1.0, 5.0], [1.0, 5.0], [1.0, 5.0]])
    distance = jnp.array([[0.0, 2.0], [2.0, 4.0], [0.0, 0.0], [4.0, 8.0]])
    found = Comparison(err, ref, distance, t=jnp.array([0.1, 0.3, 0.49, 1.0]))
    figures = diagnose(ObjectiveConfig("dro"), found)
    assert figures["ref_distance"] == np.mean([1, 3, 0, 6])
    by_time = {
        name: [float(figures[f"{name}_t{bucket}"]) for bucket in range(4)]
        for name in ("loss_win", "loss_lose", "win_drift", "lose_drift", "ref_distance")
    }
    nan = np.nan
    np.testing.assert_array_equal(by_time["loss_win"], [1, 2.5, nan, 4])
    np.testing.assert_array_equal(by_time["loss_lose"], [5, 6.5, nan, 8])
    np.testing.assert_array_equal(by_time["win_drift"], [0, 1.5, nan, 3])
    np.testing.assert_array_equal(by_time["lose_drift"], [0, 1.5, nan, 3])
    np.testing.assert_array_equal(by_time["ref_distance"], [1, 1.5, nan, 6])


def test_figures_of_single_samples_come_by_time_and_label():
    column = jnp.array([[1.0], [2.0], [3.0]])
    stable = jnp.array([True, False, True])
    found = Comparison(column, 0 * column, column, t=jnp.array([0.1, 0.2, 0.9]), stable=stable)
    figures = diagnose(ObjectiveConfig("dro", pairing="unpaired"), found)
    assert (figures["loss_win_t0"], figures["loss_lose_t0"]) == (1, 2)
    assert figures["loss_win_t3"] == 3 and jnp.isnan(figures["loss_lose_t3"])


def test_a_rule_looks_at_means_over_its_window():
    rise = GuardConfig(max_win_rise=0.2, window=2)
    assert reason_to_stop(rise, [row(0, 0.0), row(1, 0.15)]) is None  # 15 % in the mean
    assert reason_to_stop(rise, [row(1, 0.5)]) is None  # not a window yet
    text = reason_to_stop(rise, [row(0, 0.0), row(1, 0.15), row(2, 0.1)])
    assert text is not None and "25.0 % above the reference's" in text
    assert "guard.max_win_rise 0.2" in text
    apart = GuardConfig(max_ref_distance=1.0, window=1)
    assert reason_to_stop(apart, [row(0, -0.1, 1.0)]) is None
    text = reason_to_stop(apart, [row(0, -0.1, 1.5)])
    assert text is not None and "guard.max_ref_distance 1.0" in text
    assert reason_to_stop(GuardConfig(window=1), [row(0, 9.0, 1e9)]) is None  # both are off


def test_a_rule_passes_over_lines_without_numbers():
    rise = GuardConfig(max_win_rise=0.2, window=2)
    broken = row(2, 0.0) | {"loss_win": None, "win_drift": None}
    rows = [row(0, 0.15), row(1, 0.15), broken, {"kind": "eval", "step": 2, "stable": 0.5}]
    assert reason_to_stop(rise, rows) is not None


def test_a_guard_saves_stops_and_says_why(base, config, tmp_path, monkeypatch):
    guarded = dataclasses.replace(config, guard=GuardConfig(max_ref_distance=1e-9, window=2))
    result = run(guarded, base)
    # The first two updates of the warm-up leave steps 0 and 1 at the reference.
    assert (result.finished, result.steps) == (False, 3)
    assert result.guard is not None and "guard.max_ref_distance 1e-09" in result.guard
    assert lines(config)[-1] == {"kind": "stop", "step": 3, "reason": result.guard}
    folder = Path(config.out)
    assert (folder / "checkpoints" / "3").is_dir() and not (folder / "adapter").exists()

    monkeypatch.setattr("dso_jax.pretrained.load", lambda name, dtype, sharding: base)
    monkeypatch.setattr("jax.devices", lambda: [jax.local_devices()[0]])
    config_io.save(guarded, tmp_path / "given.yaml")
    command = ["train", "--config", str(tmp_path / "given.yaml")]
    assert dso.main(command) == 3  # again, and without another step
    assert [line["step"] for line in lines(config)] == [0, 1, 2, 3]
    assert dso.main([*command, "--guard.max_ref_distance", "9"]) == 0
    assert [(line["kind"], line["step"]) for line in lines(config)] == [
        ("train", step) for step in range(4)
    ]


def test_losses_that_are_not_finite_end_the_command_with_3(base, config, tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data", labels(6, 4), scale=1e30)  # squares overflow
    monkeypatch.setattr("dso_jax.pretrained.load", lambda name, dtype, sharding: base)
    monkeypatch.setattr("jax.devices", lambda: [jax.local_devices()[0]])
    config_io.save(dataclasses.replace(config, data=str(folder)), tmp_path / "given.yaml")
    assert dso.main(["train", "--config", str(tmp_path / "given.yaml")]) == 3


def test_a_full_disk_fails_the_save_aloud_and_keeps_the_last_checkpoint(base, config):
    """Writes beyond 512 bytes a file fail in the system call, as on a full disk.

    In a process of its own: when a save fails, other writers of it are still at work.
    """
    program = f"""
import resource
from dso_jax.training.checkpoints import Checkpoints
from tests.training.conftest import make_base, make_config
from tests.training.test_run import run
save = Checkpoints.save
def save_on_a_full_disk(self, state, run, score=None):
    if run["position"] == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
    save(self, state, run, score)
Checkpoints.save = save_on_a_full_disk
run(make_config({config.data!r}, {config.out!r}), make_base())
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=ROOT, timeout=200, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1 and "too large" in done.stderr.lower()
    folder = Path(config.out)
    assert not (folder / "adapter").exists()
    complete = [path.name for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    assert complete == ["2"]
    again = run(config, base)
    assert again.finished and [line["step"] for line in lines(config)] == [0, 1, 2, 3]


def test_a_clipped_loser_pushes_no_more():
    err = jnp.array([[1.0, 3.0], [1.0, 0.5]])
    config = ObjectiveConfig("dro", loser_clip=2.0)
    assert losses.objective(config, err, None, None) == np.mean([1 - 2, 1 - 0.5])
    slope = jax.grad(lambda e: losses.objective(config, e, None, None))(err)
    np.testing.assert_array_equal(slope, [[0.5, 0], [0.5, -0.5]])
    unpaired = ObjectiveConfig("dro", pairing="unpaired", loser_clip=2.0)
    stable = jnp.array([True, False])
    assert losses.objective(unpaired, jnp.full((2, 1), 3.0), None, stable) == (3 - 2) / 2


@pytest.mark.parametrize("name", ["dro", "dpo"])
def test_a_pair_too_close_pulls_towards_its_winner_only(name):
    err = jnp.array([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]])
    ref, gap = jnp.full((3, 2), 2.0), jnp.array([30.0, 4.0, jnp.nan])
    config = ObjectiveConfig(name, min_tilt_gap=5.0, beta=1.0)
    slope = jax.grad(lambda e: losses.objective(config, e, ref, None, gap))(err)
    assert (slope[:, 0] > 0).all()
    assert slope[0, 1] < 0 and slope[1, 1] == slope[2, 1] == 0
    figures = diagnose(config, Comparison(err, ref, err, jnp.zeros(3), gap=gap))
    assert figures["small_gaps"] == np.float32(2 / 3)


def test_gaps_are_read_from_the_labels(tmp_path):
    columns = labels(objects=3, samples=4)
    columns["tilt_deg"] = np.arange(12.0)
    dataset = Dataset(write_dataset(tmp_path / "data", columns))
    batch = data.at(data.batches(dataset, 4, seed=0, tilt_gap=True), 0)
    pairs = [data.at(data.pairs(dataset, 0), index) for index in range(4)]
    np.testing.assert_array_equal(batch["gap"], [pair.loser - pair.winner for pair in pairs])
    assert "gap" not in data.at(data.batches(dataset, 4, seed=0), 0)


@pytest.mark.slow  # a program of its own to compile
def test_a_run_takes_the_gaps_along(base, config):
    far = dataclasses.replace(config.objective, min_tilt_gap=100.0)  # labels differ by 79 degrees
    result = run(dataclasses.replace(config, objective=far), base)
    assert [line["small_gaps"] for line in result.rows] == [1.0] * 4
    json.dumps(result.rows)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "dpo", "loser_clip": 1.0},
        {"name": "dro", "loser_clip": 0.0},
        {"name": "sft", "min_tilt_gap": 5.0},
        {"name": "dro", "pairing": "unpaired", "min_tilt_gap": 5.0},
        {"name": "dpo", "min_tilt_gap": -1.0},
    ],
)
def test_options_without_effect_are_refused(fields):
    with pytest.raises(ValueError, match=r"loser_clip|min_tilt_gap"):
        ObjectiveConfig(**fields)
