"""Whole runs of train.py: what they leave behind, and how they end and go on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import train
from dso_jax import config_io, data
from dso_jax.cli import adapters
from dso_jax.cli import main as dso
from dso_jax.config import Config, SystemConfig
from dso_jax.errors import UsageError
from dso_jax.models import LoRAConfig, lora
from dso_jax.training import policy, sharding
from dso_jax.training.metrics import NonFiniteError
from tests.training.conftest import LORA, labels, make_config, write_dataset
from weight_port import read_peft_adapter

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(dataset_folder, tmp_path) -> Config:
    return make_config(dataset_folder, tmp_path / "run")


def change(config: Config, **train_fields) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train_fields))


def run(config: Config, base, **options) -> train.Result:
    return train.main(config, base=base, devices=jax.devices()[:1], **options)


def adapter(result: train.Result) -> dict:
    return jax.device_get(lora.adapter_leaves(result.params))


def lines(config: Config) -> list[dict]:
    """metrics.jsonl without what no two runs share."""
    rows = map(json.loads, (Path(config.out) / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k != "samples_per_s"} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(base, dataset_folder, tmp_path_factory):
    """Four steps in one go: (config, result)."""
    config = make_config(dataset_folder, tmp_path_factory.mktemp("whole") / "run")
    return config, run(config, base)


def test_a_run_leaves_config_metrics_checkpoints_and_adapter(uninterrupted):
    config, result = uninterrupted
    folder = Path(config.out)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "checkpoints", "adapter"}
    assert config_io.load(folder / "config.yaml") == config
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"2", "4"}
    stored, settings = read_peft_adapter(folder / "adapter")
    assert (settings.rank, settings.alpha) == (LORA.rank, LORA.alpha)
    chex.assert_trees_all_equal(stored, adapter(result))
    assert result.finished and result.steps == 4 and result.best is None


def test_metrics_are_there_from_step_0(uninterrupted):
    rows = lines(uninterrupted[0])
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["win_drift"] == rows[0]["margin"] == 0
    assert abs(rows[0]["loss"] - np.log(2)) < 1e-7
    for row in rows:
        wanted = {"loss", "loss_win", "loss_lose", "win_drift", "lose_drift", "margin"}
        wanted |= {"implicit_accuracy", "grad_norm", "update_norm", "param_norm", "lr"}
        assert wanted <= set(row)
        assert all(isinstance(row[name], float) for name in wanted)


def test_two_steps_and_two_more_are_four_to_the_bit(uninterrupted, base, config):
    whole_config, whole = uninterrupted
    assert run(change(config, steps=2), base).steps == 2
    resumed = run(config, base)
    chex.assert_trees_all_equal(resumed.params, whole.params)
    assert lines(config) == lines(whole_config)


def test_a_finished_run_is_not_trained_again(uninterrupted, base):
    config, whole = uninterrupted
    again = run(config, base)
    assert again.finished and len(again.rows) == 4
    chex.assert_trees_all_equal(again.params, whole.params)


def test_sigterm_saves_and_the_run_goes_on_from_there(uninterrupted, base, config):
    whole_config, whole = uninterrupted
    config = change(config, checkpoint_every=100, eval_every=1)

    def evaluate(params):
        if len(lines(config)) > 2:  # step 0, its evaluation, step 1
            os.kill(os.getpid(), signal.SIGTERM)
        return {"stable": 0.5}

    before = signal.getsignal(signal.SIGTERM)
    stopped = run(config, base, evaluate=evaluate)
    assert not stopped.finished and 0 < stopped.steps < 4
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (Path(config.out) / "adapter").exists()
    resumed = run(change(config, eval_every=0), base)
    assert resumed.finished
    chex.assert_trees_all_equal(resumed.params, whole.params)
    rows = [row for row in lines(config) if row["kind"] == "train"]
    assert rows == lines(whole_config)


def test_the_best_checkpoint_is_the_one_whose_samples_stand(base, config):
    scores = iter([0.5, 0.9, 0.7, 0.6, 0.8])
    seen = []

    def evaluate(params):
        seen.append(jax.device_get(lora.adapter_leaves(params)))
        return {"stable": next(scores), "tilt_deg": float("nan")}

    result = run(change(config, eval_every=1, keep=1), base, evaluate=evaluate)
    assert result.best == {"step": 1, "stable": 0.9}
    stored, _ = read_peft_adapter(Path(config.out) / "adapter-best")
    chex.assert_trees_all_equal(stored, seen[1])
    assert {p.name for p in (Path(config.out) / "checkpoints").iterdir()} == {"1", "4"}
    evaluated = [row for row in lines(config) if row["kind"] == "eval"]
    assert [row["step"] for row in evaluated] == [0, 1, 2, 3, 4]
    assert {row["tilt_deg"] for row in evaluated} == {None}  # NaN is no JSON


def test_a_kill_during_a_save_costs_only_the_steps_since_the_last_one(uninterrupted, config):
    """SIGKILL while the files of step 4 are being written: step 2 is there, and is enough."""
    whole_config, _ = uninterrupted
    program = f"""
import json, os, signal, sys
from tests.training.conftest import make_base, make_config
from tests.training.test_run import run
dumps = json.dumps
def killing(value, *args, **options):
    if isinstance(value, dict) and value.get("position") == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return dumps(value, *args, **options)
json.dumps = killing
run(make_config({config.data!r}, {config.out!r}), make_base())
"""

    def start(kill_at: int) -> int:
        command = [sys.executable, "-c", program, str(kill_at)]
        return subprocess.run(command, cwd=ROOT, timeout=200, check=False).returncode

    checkpoints = Path(config.out) / "checkpoints"
    assert start(kill_at=4) == -signal.SIGKILL
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left[0] == "2" and len(left) == 2 and "tmp" in left[1]
    assert start(kill_at=-1) == 0
    assert sorted(path.name for path in checkpoints.iterdir()) == ["2", "4"]
    assert lines(config) == lines(whole_config)
    stored, _ = read_peft_adapter(Path(config.out) / "adapter")
    expected, _ = read_peft_adapter(Path(whole_config.out) / "adapter")
    chex.assert_trees_all_equal(stored, expected)


def test_a_failed_save_raises_and_leaves_no_adapter(base, config, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        run(config, base)
    assert not (Path(config.out) / "adapter").exists()


def test_steps_without_a_finite_loss_stop_the_run_by_name(base, config, tmp_path):
    folder = write_dataset(tmp_path / "data", labels(6, 4), scale=1e30)  # squares overflow
    config = dataclasses.replace(change(config, steps=9), data=str(folder))
    with pytest.raises(NonFiniteError, match=r"steps 0\.\.2"):
        run(config, base)
    assert [row["streak"] for row in lines(config)] == [1, 2, 3]
    assert lines(config)[0]["loss"] is None


def test_resuming_something_else_is_refused(uninterrupted, base, tmp_path):
    config, _ = uninterrupted
    faster = dataclasses.replace(config.optim, learning_rate=0.5)
    with pytest.raises(UsageError, match=r"optim.learning_rate 0.01, this one has 0.5"):
        run(dataclasses.replace(config, optim=faster), base)
    other = write_dataset(tmp_path / "data", labels(objects=5, samples=4))
    with pytest.raises(UsageError, match="data_fingerprint"):
        run(dataclasses.replace(config, data=str(other)), base)
    base = dataclasses.replace(base, sha256="1" * 64)
    with pytest.raises(UsageError, match=r"base_sha256 000000000000..., this run has 111111111111"):
        run(config, base)


@pytest.mark.slow  # two more device counts to compile for
def test_a_run_resumes_on_other_numbers_of_devices(uninterrupted, base, config):
    _, whole = uninterrupted
    for steps, devices, fsdp in ((1, 4, 2), (2, 1, 1), (4, 2, 2)):
        moved = train.main(
            dataclasses.replace(change(config, steps=steps), system=SystemConfig(fsdp=fsdp)),
            base=base,
            devices=jax.devices()[:devices],
        )
        assert moved.steps == steps
    chex.assert_trees_all_close(adapter(moved), adapter(whole), rtol=1e-4, atol=1e-5)


def test_a_run_starts_from_the_adapter_of_another(uninterrupted, base, config, tmp_path):
    first, whole = uninterrupted
    config = change(config, steps=1, init_adapter=first.out)
    start = adapters.start(base, first.out)
    mesh = sharding.make_mesh(jax.devices()[:1])
    trainable = policy.build(config, base, jax.random.key(0), mesh, start)[1]
    leaves = [leaf for leaf in jax.tree.leaves(trainable) if leaf.size]
    chex.assert_trees_all_equal(leaves, jax.tree.leaves(adapter(whole)))
    # Whoever starts from it does not start at the reference: the first line says so.
    row = run(config, base).rows[0]
    assert row["step"] == 0 and row["win_drift"] != 0
    with pytest.raises(UsageError, match=r"train.init_adapter .*, this one has None"):
        run(change(config, init_adapter=None), base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoRAConfig(rank=4, alpha=4.0)}, "its rank is 2, lora.rank is 4"),
        ({"lora": LoRAConfig(rank=2, alpha=8.0)}, "its alpha is 4.0, lora.alpha is 8.0"),
        ({"trainable": ("all",)}, "`trainable` names nothing of an adapter"),
    ],
)
def test_an_adapter_of_other_settings_is_refused(uninterrupted, base, config, changes, message):
    config = dataclasses.replace(change(config, init_adapter=uninterrupted[0].out), **changes)
    with pytest.raises(UsageError, match=message):
        run(config, base)
    assert not Path(config.out).exists()


def test_an_adapter_of_another_base_is_refused(uninterrupted, base, config):
    config = change(config, init_adapter=uninterrupted[0].out)
    with pytest.raises(UsageError, match="base"):
        run(config, dataclasses.replace(base, sha256="2" * 64))
    with pytest.raises(UsageError, match="nowhere: no such run or adapter"):
        run(change(config, init_adapter="nowhere"), base)


def test_overwrite_starts_again(base, config):
    run(change(config, steps=1), base)
    with pytest.raises(UsageError, match=r"train.seed 0, this one has 1.*--train.overwrite"):
        run(change(config, seed=1), base)
    result = run(change(config, steps=1, seed=1, overwrite=True), base)
    assert [row["step"] for row in result.rows] == [0]
    assert not config_io.load(Path(config.out) / "config.yaml").train.overwrite


def test_other_shapes_than_the_generators_are_refused(base, config):
    wide = dataclasses.replace(base.flow_config, in_channels=4)
    with pytest.raises(UsageError, match=r"meta.json: latent_shape is \(2, 4, 4, 4\), tiny takes"):
        run(config, dataclasses.replace(base, flow_config=wide))
    wide = dataclasses.replace(base.flow_config, cond_channels=9)
    with pytest.raises(UsageError, match=r"meta.json: condition_shape is \(3, 8\), tiny takes 9"):
        run(config, dataclasses.replace(base, flow_config=wide))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: no such dataset folder"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["--train.batch_size", "7", "--train.accumulation", "7"], "train.batch_size 7 is not"),
        (["--out", "{file}/run"], "{file}/run: cannot be made"),
        (["--base", "nothing"], "base 'nothing'"),
        (["--trainable", "no_such_leaf"], "'no_such_leaf' matches no parameter"),
        (["--eval.objects", "2"], "set eval.objects to 0 for base 'tiny'"),
    ],
)
def test_unusable_arguments_exit_with_2_before_any_work(
    base, config, tmp_path, monkeypatch, capsys, arguments, message
):
    if "--base" not in arguments:
        monkeypatch.setattr("dso_jax.pretrained.load", lambda name, dtype, sharding: base)
    file = tmp_path / "file"
    file.touch()
    arguments = [text.format(file=file) for text in arguments]
    defaults = ["--data", config.data, "--out", config.out, "--train.batch_size", "8"]
    assert dso.main(["train", *defaults, "--lora.rank", "2", *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message.format(file=file) in errors
    assert not (Path(config.out) / "checkpoints").exists()


def test_the_command_returns_130_when_stopped_and_0_when_finished(
    base, config, tmp_path, monkeypatch
):
    monkeypatch.setattr("dso_jax.pretrained.load", lambda name, dtype, sharding: base)
    monkeypatch.setattr("jax.devices", lambda: [jax.local_devices()[0]])
    config_io.save(config, tmp_path / "given.yaml")
    command = ["train", "--config", str(tmp_path / "given.yaml"), "--train.steps", "3"]
    iterate = data.iterate

    def stopping(batches, start):
        for batch in iterate(batches, start):
            os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(data, "iterate", stopping)
        assert dso.main(command) == 130
    assert dso.main(command) == 0
    assert [row["step"] for row in lines(config)] == [0, 1, 2]
