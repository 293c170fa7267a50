"""Checkpoints against the base: curves, the best that is no cheat, and weights from a run."""

from __future__ import annotations

import dataclasses
import types
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dso_jax.errors import UsageError
from dso_jax.evaluation import checkpoints, engines, samples, sweep
from dso_jax.evaluation.drops import Drops
from dso_jax.evaluation.files import Bench
from dso_jax.evaluation.parts import Parts
from dso_jax.evaluation.run import Settings
from dso_jax.evaluation.samples import Model
from dso_jax.evaluation.sweep import Sweep
from dso_jax.generation import generate
from dso_jax.generation.prompts import Prompts
from dso_jax.models import lora
from dso_jax.pretrained import Base
from dso_jax.sampler import SamplerConfig
from dso_jax.training import policy
from dso_jax.training.checkpoints import Checkpoints, Origin
from dso_jax.training.optimizer import make_optimizer
from dso_jax.training.step import init_state
from sim_mjx import engines as simulators
from tests.sim import shapes
from tests.training.conftest import make_base, make_config

R = 16


def mushroom(foot: int, plate: bool) -> np.ndarray:
    """Logits of a block on a foot, in the middle at 3, under a corner at 0; on a plate or not."""
    solid = np.zeros((R, R, R), bool)
    solid[3:13, 3:13, 6:14] = True
    solid[3 + foot : 7 + foot, 3 + foot : 7 + foot, 1:6] = True
    if plate:
        solid[2:14, 2:14, 1:3] = True
    return np.where(solid, 1.0, -1.0).astype(np.float32)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A generator whose samples are what its parameters say, and two prompts."""
    asked = []

    def sample(base, params, conditions, seeds, **_):
        asked.append(params["says"])
        return np.array([params["says"]] * len(seeds))

    def decode(base, latents):
        # Every second sample is upright whatever the weights.
        return np.stack([mushroom(3 if i % 2 else s[0], s[1]) for i, s in enumerate(latents)])

    monkeypatch.setattr(generate, "sample_latents", sample)
    monkeypatch.setattr(generate, "decode", decode)
    base = types.SimpleNamespace(
        name="tiny", sha256="0" * 64, flow_params={"says": (0, False)}, sampler=SamplerConfig()
    )
    prompts = Prompts(
        objects=np.array(["pole-a", "pole-b"]),
        views=np.zeros(2, int),
        conditions=np.zeros((2, 1, 1), np.float32),
        images=np.zeros((2, 1, 1, 3)),
        truth=np.stack([mushroom(3, False) > 0] * 2),
    )
    settings = Settings(
        Drops(shapes.EVAL, simulators.resolve("mujoco")),
        others=("legacy",),
        baselines=("best-of-n",),
    )
    bench = Bench(Parts(tmp_path / "parts"), workers=0)
    return Sweep(cast(Base, base), prompts, 2, tmp_path / "samples"), settings, bench, asked


MODELS = [
    Model("step-1", {"says": (0, False)}, None, {"step": 1}, 1),
    Model("step-2", {"says": (3, False)}, None, {"step": 2}, 2),
    Model("step-3", {"says": (3, True)}, None, {"step": 3}, 3),
]


def test_the_best_stands_and_is_no_cheat(world):
    asked, settings, bench, _ = world
    found = sweep.evaluate(asked, MODELS, settings, bench, {})
    assert found.summary["best"] == {"name": "step-2", "step": 2, "suspect": ["step-3"]}
    curve = found.curves["checkpoints"]
    assert curve["step"] == [0, 1, 2, 3]
    assert curve["stable"] == [0.5, 0.5, 1.0, 1.0]
    assert curve["cd"][2] < min(curve["cd"][1], curve["cd"][3])
    assert curve["iou"][2] == 1.0
    assert found.summary["change"]["stable"]["value"] == 0.5
    assert found.summary["baselines"]["best of 2"]["stable"]["value"] == 1.0
    assert found.summary["engines"]["legacy"]["meshes"] == 4
    assert found.columns["before_stable"].tolist() == [False, True] * 2
    assert found.columns["path"][1].endswith("pole-a-000_001.glb")
    assert not [name for name in found.columns if name.startswith("in_")]


def test_models_that_are_sampled_are_not_sampled_again(world):
    asked, settings, bench, calls = world
    first = sweep.evaluate(asked, MODELS[:1], settings, bench, {})
    assert len(calls) == 2  # base and model
    again = sweep.evaluate(asked, MODELS[:2], settings, bench, {})
    assert len(calls) == 3
    np.testing.assert_array_equal(
        first.columns["before_tilt_deg"], again.columns["before_tilt_deg"]
    )


def test_an_empty_sample_is_invalid_and_has_no_mesh(world, monkeypatch):
    asked, settings, *_ = world
    monkeypatch.setattr(generate, "decode", lambda base, z: np.full((len(z), R, R, R), -1.0))
    found = samples.measure(
        MODELS[0], asked.base, asked.prompts, 2, settings.drops,
        {"legacy": engines.task("legacy", shapes.EVAL)}, asked.folder,
    )  # fmt: skip
    assert found["status"].tolist() == ["invalid"] * 4 and set(found["reason"]) == {"empty"}
    assert found["in_legacy_status"].tolist() == ["invalid"] * 4
    assert not list(asked.folder.glob("*.glb"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with two checkpoints, and the weights in them."""
    folder, base = tmp_path_factory.mktemp("run"), make_base()
    config = make_config("", folder)
    _, trainable, _ = policy.build(config, cast(Base, base), jax.random.key(0))
    saved = {step: jax.tree.map(lambda x, s=step: x + s, trainable) for step in (2, 4)}
    keeper = Checkpoints(folder / "checkpoints", Origin(base.sha256, "data"), keep=5)
    for step, weights in saved.items():
        state = init_state(weights, make_optimizer(config.optim))._replace(step=jnp.int32(step))
        best = {"step": 2, "stable": 0.5} if step == 4 else None
        keeper.save(state, {"position": step, "best": best, "config": {}})
    keeper.close()
    return saved, folder, config, base


def test_weights_are_those_that_were_trained(run):
    saved, folder, config, base = run
    assert checkpoints.choose(folder, "all") == [2, 4]
    assert checkpoints.choose(folder, "best") == checkpoints.choose(folder, "2") == [2]
    assert checkpoints.choose(folder, "last") == [4]
    for step, trained in saved.items():
        found = checkpoints.load(folder, step, config, base)
        assert (found.step, found.lora) == (step, config.lora)
        params = dict(found.params)
        leaves = lora.adapter_leaves(params)
        jax.tree.map(np.testing.assert_array_equal, leaves, lora.adapter_leaves(trained))
        jax.tree.map(np.testing.assert_array_equal, lora.strip(params), base.flow_params)


def test_a_run_that_does_not_fit_is_refused(run, tmp_path):
    _, folder, config, base = run
    with pytest.raises(UsageError, match="was trained from a base with sha256 000000000000"):
        checkpoints.load(folder, 4, config, dataclasses.replace(base, sha256="f" * 64))
    wider = dataclasses.replace(config, lora=dataclasses.replace(config.lora, rank=3))
    with pytest.raises(UsageError, match="does not fit the run's configuration"):
        checkpoints.load(folder, 4, wider, base)
    with pytest.raises(UsageError, match="no checkpoint of step 3; there are 2, 4"):
        checkpoints.choose(folder, "3")
    with pytest.raises(UsageError, match="expected best, last, all or a step"):
        checkpoints.choose(folder, "finest")
    with pytest.raises(UsageError, match="no checkpoint in"):
        checkpoints.choose(tmp_path, "all")
