"""The slim step against `mjx.step`, number by number in float64."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sim_mjx import pool, world
from tests.sim import shapes, slim_states

# One step differs by rounding only; over 100 steps contacts amplify it.
ONE_STEP, ONE_STEP_SHARE = 1e-9, 0.999
HUNDRED_STEPS, HUNDRED_STEPS_SHARE = 1e-6, 0.99


@pytest.fixture
def double():
    """64 bits in JAX; the cached template of the stock step is made anew."""
    world._mjx_template.cache_clear()
    with jax.enable_x64(True):
        yield
    world._mjx_template.cache_clear()


def agreement(protocol, count, seed):
    bodies = slim_states.small_bodies(protocol)
    case = slim_states.random_case(bodies, protocol, count, seed)
    errors = slim_states.relative_error(protocol, case)
    for steps, error in errors.items():
        for k, name in enumerate(slim_states.KINDS):
            of_kind = error[case.kind == k]
            quantiles = " ".join(f"{q:.1e}" for q in np.quantile(of_kind, (0.5, 0.9, 0.99, 1)))
            print(f"{protocol.contact} {steps} steps {name}: p50 p90 p99 max {quantiles}")
    return (errors[1] < ONE_STEP).mean(), (errors[100] < HUNDRED_STEPS).mean()


@pytest.mark.parametrize("contact_rule", ["c4", "skin"])
def test_has_no_matrix_products(contact_rule):
    """An accelerator may round those to ten bits, which moves tilts by degrees."""
    protocol = dataclasses.replace(shapes.EVAL, contact=contact_rule)
    body = jax.tree.map(jnp.asarray, world.simulation_body(shapes.leaning(0.5), protocol))
    slots = pool.empty(protocol.skin, 2, body)
    program = jax.make_jaxpr(functools.partial(pool.advance, protocol, "slim"))(slots)
    # Solver loops that end early are a `while`; of a fixed number of rounds, as on a GPU, a `scan`.
    assert "while" in str(program) or "scan" in str(program)
    assert "dot_general" not in str(program)


@pytest.mark.usefixtures("double")
def test_agrees_with_stock():
    one, hundred = agreement(shapes.EVAL, 300, seed=1)
    assert one >= ONE_STEP_SHARE
    assert hundred >= HUNDRED_STEPS_SHARE


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_agrees_with_stock_on_ten_thousand_states():
    one, hundred = agreement(shapes.EVAL, 10_000, seed=2)
    print(f"{one:.4%} after one step, {hundred:.4%} after 100")
    assert one >= ONE_STEP_SHARE
    assert hundred >= HUNDRED_STEPS_SHARE


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_agrees_with_stock_under_the_skin_rule():
    one, hundred = agreement(dataclasses.replace(shapes.EVAL, contact="skin"), 3000, seed=3)
    assert one >= ONE_STEP_SHARE
    assert hundred >= HUNDRED_STEPS_SHARE
