"""The kernel of an accelerator against the same step as XLA makes it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sim_mjx import concatenate, drop, pool, slim, world
from sim_mjx.meshes import body_from_mesh
from tests.sim import shapes, slim_states

# The same arithmetic but for the order of a few sums; 20 steps amplify it.
ROUNDING = 1e-9


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rule", ["c4", pytest.param("skin", marks=pytest.mark.slow)])
def test_is_the_same_step(rule):
    """Interpreted, in float64: flying, touching, sliding, rocking and deep bodies."""
    # Everyone is quiet, so that the footing of all is looked at.
    protocol = dataclasses.replace(shapes.EVAL, contact=rule, quiet_speed=1e6)
    case = slim_states.random_case(slim_states.small_bodies(protocol), protocol, 70, seed=4)
    plain = jax.jit(functools.partial(slim.simulate, protocol, steps=20))
    kernel = jax.jit(functools.partial(slim.simulate_in_kernel, protocol, steps=20, interpret=True))
    waited_for = np.ones(70, bool)
    everyone, stands = kernel(case.body, case.state, active=jnp.asarray(waited_for))
    footing = jax.vmap(world.has_footing)(case.body, everyone)
    assert {True, False} == set(np.asarray(footing).tolist())
    np.testing.assert_array_equal(stands, footing)
    for expected, found in zip(plain(case.body, case.state), everyone, strict=True):
        scale = np.maximum(np.abs(expected).max(axis=1, keepdims=True), 1e-3)
        np.testing.assert_array_less(np.abs(found - expected) / scale, ROUNDING)
    # Bodies that no one waits for change no other's number, and a warp of them stays as it is.
    waited_for[1::3] = waited_for[64:] = False
    some, _ = kernel(case.body, case.state, active=jnp.asarray(waited_for))
    for expected, found in zip(everyone, some, strict=True):
        np.testing.assert_array_equal(expected[waited_for], found[waited_for])
    np.testing.assert_allclose(some.qpos[64:], case.state.qpos[64:], atol=1e-12)


@pytest.mark.parametrize("rule", ["c4", "skin"])
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.usefixtures("described_gpu")
def test_can_be_lowered_for_a_gpu(rule):
    """Every operation in it is one that Triton's language has; no GPU is asked."""
    protocol = dataclasses.replace(shapes.EVAL, contact=rule)
    body = world.simulation_body(shapes.leaning(0.5), protocol)
    shaped = lambda leaf: jax.ShapeDtypeStruct((64, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
    parts: list[Any] = [jax.ShapeDtypeStruct((64, n), np.float32) for n in (7, 6, 6)]
    state = world.State(*parts)
    simulate = jax.jit(functools.partial(slim.simulate_in_kernel, protocol, steps=100))
    program = simulate.trace(jax.tree.map(shaped, body), state).lower(lowering_platforms=("cuda",))
    assert "__gpu$xla.gpu.triton" in program.as_text()


def test_falls_back_to_the_other_program(caplog):
    """A compiler that knows nothing of it costs speed only."""

    def run(kernel: bool) -> str:
        if kernel:
            raise NotImplementedError("no such primitive\nand much more")
        return "plain"

    assert pool._fastest(run, kernel=True) == "plain"  # pyright: ignore[reportArgumentType]
    assert "NotImplementedError: no such primitive" in caplog.text
    assert not slim.has_kernel(jax.devices("cpu")[0])


@pytest.mark.gpu
def test_labels_of_a_gpu_are_those_of_the_plain_step(caplog):
    """The committed meshes, and the same bits in any company."""
    paths = [shapes.DATA / entry["mesh"] for entry in shapes.manifest()]
    bodies = [body_from_mesh(path, shapes.EVAL) for path in paths]
    for points in (64, 256):
        group = concatenate([body for body in bodies if body.points.shape[1] == points])
        rest = drop(group, shapes.EVAL, step="slim")
        assert "without the kernel" not in caplog.text
        plain = drop(group, shapes.EVAL, step="slim", devices=jax.devices("cpu")[:1])
        standing = plain.stable(shapes.EVAL)
        np.testing.assert_array_equal(rest.stable(shapes.EVAL), standing)
        assert np.abs(rest.tilt_deg - plain.tilt_deg)[standing].max() < 0.1
        if points > 64:
            continue
        order = np.random.default_rng(0).permutation(7 * len(group)) % len(group)
        again = drop(group[order], shapes.EVAL, step="slim", slots=37)
        np.testing.assert_array_equal(again.quaternion, rest.quaternion[order])
        np.testing.assert_array_equal(again.steps, rest.steps[order])
