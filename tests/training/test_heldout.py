"""Held-out evaluation during training: which prompts, which sampler, which figures."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from dso_jax.config import EvalConfig, SamplerOverride
from dso_jax.errors import UsageError
from dso_jax.evaluation import evaluate
from dso_jax.sampler import SamplerConfig
from dso_jax.training import heldout
from tests.training.conftest import LORA, make_config

BASE = SimpleNamespace(name="toybox", sampler=SamplerConfig(steps=9, guidance_weight=2.0))


@pytest.fixture
def calls(monkeypatch):
    """Records how samples are asked for, and answers with three of them."""
    recorded = []

    def fake(base, params, prompts, protocol, **options):
        recorded.append({"params": params, "prompts": prompts, "protocol": protocol, **options})
        columns = {
            "stable": np.array([True, False, False]),
            "status": np.array(["rest", "rest", "invalid"]),
            "tilt_deg": np.array([2.0, 90.0, np.nan]),
            "iou": np.array([0.5, 0.7, 0.0]),
        }
        return SimpleNamespace(stable=1 / 3, columns=columns)

    monkeypatch.setattr(evaluate, "evaluate", fake)
    return recorded


def configured(objects=3, every=10, skip=0, sampler=None, **options):
    config = make_config("", "", eval_every=every)
    return dataclasses.replace(
        config,
        eval=EvalConfig(objects=objects, skip=skip, **options),
        sampler=sampler or SamplerOverride(),
    )


def test_figures_count_what_broke_and_average_the_rest(calls):
    run = heldout.make_evaluate(configured(), BASE, LORA)
    assert run is not None
    assert run({}) == {"stable": 1 / 3, "invalid": 1 / 3, "tilt_deg": 46.0, "iou": 0.6}


def test_every_call_sees_the_same_objects_none_of_the_final_comparison(calls):
    run = heldout.make_evaluate(configured(skip=4, samples=5), BASE, LORA)
    assert run is not None
    run({"first": 1})
    run({"second": 2})
    names = [call["prompts"].objects.tolist() for call in calls]
    assert names[0] == names[1] and len(names[0]) == 3
    assert names[0][0].endswith("4")  # object 0 of the split ends in 0
    assert [call["params"] for call in calls] == [{"first": 1}, {"second": 2}]
    assert {call["samples"] for call in calls} == {5} and calls[0]["lora"] == LORA


def test_the_sampler_is_the_published_one_but_for_what_is_overridden(calls):
    run = heldout.make_evaluate(configured(sampler=SamplerOverride(steps=4)), BASE, None)
    assert run is not None
    run({})
    assert calls[0]["sampler"] == dataclasses.replace(BASE.sampler, steps=4)


def test_it_is_off_without_objects_or_without_a_turn():
    assert heldout.make_evaluate(configured(objects=0), BASE, LORA) is None
    assert heldout.make_evaluate(configured(every=0), BASE, LORA) is None


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (configured(protocol="slow"), "slow"),
        (configured(sampler=SamplerOverride(steps=0)), "sampler.steps"),
    ],
)
def test_an_unusable_protocol_or_sampler_is_refused(config, match):
    with pytest.raises(UsageError, match=match):
        heldout.make_evaluate(config, BASE, LORA)
