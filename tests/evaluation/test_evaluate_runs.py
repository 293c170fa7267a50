"""`dso evaluate` on run folders: what is one, what is refused, and a whole one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dso_jax import pretrained
from dso_jax.cli import evaluate as command
from dso_jax.cli import evaluate_runs
from dso_jax.config import Config
from dso_jax.errors import UsageError
from dso_jax.evaluation.result import Result
from dso_jax.models import LoRAConfig
from dso_jax.training import policy, runs
from dso_jax.training.checkpoints import Checkpoints, Origin
from dso_jax.training.optimizer import make_optimizer
from dso_jax.training.step import init_state


@pytest.fixture
def run(tmp_path):
    """A toybox run with one checkpoint, whose adapter has not learnt anything."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = Config(base="toybox", data="data", out=str(folder), lora=LoRAConfig(rank=2, alpha=2.0))
    base = pretrained.load("toybox")
    _, trainable, _ = policy.build(config, base, jax.random.key(0))
    state = init_state(trainable, make_optimizer(config.optim))._replace(step=jnp.int32(3))
    keeper = Checkpoints(folder / "checkpoints", Origin(base.sha256, "data"), keep=1)
    keeper.save(state, {"position": 3, "best": None, "config": {}})
    keeper.close()
    runs.write_config(folder, config)
    return folder


def test_a_run_is_told_from_meshes(tmp_path):
    (tmp_path / "meshes").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("base: toybox\n")
    meshes, run = str(tmp_path / "meshes"), str(tmp_path / "run")
    assert evaluate_runs.find([meshes, meshes]) is None
    assert evaluate_runs.find([run]) == tmp_path / "run"
    with pytest.raises(UsageError, match="is a run; give it alone"):
        evaluate_runs.find([meshes, run])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--truth", "x"], "--truth is for meshes; a run brings its own"),
        (["--before", "x"], "--before is for meshes"),
        (["--checkpoints", "7"], "no checkpoint of step 7; there are 3"),
        (["--images", "x.png"], "knows the toybox's pictures alone"),
    ],
)
def test_what_a_run_cannot_use_is_said(run, tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        command.main([str(run), *arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_that_learnt_nothing_is_its_base(run, tmp_path):
    arguments = [str(run), "--checkpoints", "all", "--objects", "2", "--samples", "2"]
    arguments += ["--engines", "mujoco", "--protocol", "fast", "--baselines", "best-of-n"]
    arguments += ["--workers", "0", "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    found = Result.load(tmp_path / "out")
    assert len(found) == 4 and found.summary["best"]["step"] == 3
    np.testing.assert_array_equal(found.columns["tilt_deg"], found.columns["before_tilt_deg"])
    np.testing.assert_array_equal(found.columns["iou"], found.columns["before_iou"])
    assert found.summary["verdict"]["ok"] and found.summary["change"]["cd"]["value"] == 0.0
    assert list(found.summary["baselines"])[1:3] == ["best of 1", "best of 2"]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "toybox" in page
