"""Samples depend on what is asked for alone."""

import hashlib
import threading

import jax
import numpy as np
import pytest

from dso_jax.generation import batches, generate
from tests.generation.tiny import asked, make_base

# XLA may order the sums of another batch size differently.
BATCH_RTOL = 1e-5


@pytest.fixture(scope="module")
def base():
    return make_base()


def test_seeds_name_the_draw_and_fit_a_key():
    seeds = {
        generate.sample_seed(obj, view, number, run)
        for obj in ("a", "b")
        for view in (0, 1)
        for number in range(5)
        for run in (0, 1)
    }
    assert len(seeds) == 40
    assert all(0 <= seed < 2**31 for seed in seeds)
    digest = hashlib.sha256(b"a/0/0/0").digest()
    assert generate.sample_seed("a", 0, 0) == int.from_bytes(digest[:4], "little") >> 1


def test_samples_do_not_depend_on_the_batch(base):
    cond, seeds = asked(5).conditions, np.arange(5)
    together = generate.sample_latents(base, base.flow_params, cond, seeds, batch=5)
    parts = generate.sample_latents(base, base.flow_params, cond, seeds, batch=2)
    assert together.shape == (5, 2, 4, 4, 4)
    np.testing.assert_allclose(parts, together, rtol=BATCH_RTOL, atol=BATCH_RTOL)
    assert np.abs(together[0] - together[1]).max() > 0.1
    logits = generate.decode(base, together, batch=2)
    assert logits.shape == (5, 8, 8, 8)
    whole = generate.decode(base, together)
    np.testing.assert_allclose(logits, whole, rtol=BATCH_RTOL, atol=BATCH_RTOL)


def test_progress_counts_every_sample_once(base):
    counts = []
    cond = asked(5).conditions
    generate.sample_latents(
        base, base.flow_params, cond, np.arange(5), batch=2, progress=counts.append
    )
    assert counts == [2, 2, 1]


def test_nothing_to_sample_is_an_error(base):
    with pytest.raises(ValueError, match="no samples were asked for"):
        generate.decode(base, np.zeros((0, 2, 4, 4, 4), np.float32))


def test_draws_of_a_condition_share_it_and_keep_their_seeds(base):
    cond, seeds = asked(2).conditions, np.arange(4)
    apart = generate.sample_latents(base, base.flow_params, cond.repeat(2, axis=0), seeds, batch=2)
    # Two draws of one condition in a call, and more of them than a call holds.
    for batch in (2, 1):
        found = generate.sample_latents(base, base.flow_params, cond, seeds, batch=batch)
        np.testing.assert_allclose(found, apart, rtol=BATCH_RTOL, atol=BATCH_RTOL)
    with pytest.raises(ValueError, match="3 draws of 2 conditions, expected as many of each"):
        generate.sample_latents(base, base.flow_params, cond, seeds[:3])


def test_noise_may_be_given(base):
    """As torch drew it, for example."""
    cond, seeds = asked(2).conditions, np.arange(2)
    noise = np.stack([jax.random.normal(jax.random.key(s), (2, 4, 4, 4)) for s in seeds])
    own = generate.sample_latents(base, base.flow_params, cond, seeds, batch=2)
    given = generate.sample_latents(base, base.flow_params, cond, noise, batch=2)
    np.testing.assert_allclose(given, own, rtol=BATCH_RTOL, atol=BATCH_RTOL)


def test_batches_keep_to_their_group_on_any_number_of_functions():
    rows, seen = np.arange(11), []

    def double(taken):
        seen.append(np.asarray(taken).tolist())
        return 2 * taken

    expected = [[0, 1], [2, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    for functions in (double, [double] * 4):
        seen.clear()
        found = batches.run(functions, rows, size=2, groups=[3, 2, 6])
        assert found.tolist() == (2 * rows).tolist()
        assert sorted(seen) == expected


def test_a_call_that_blocks_holds_up_no_other_device():
    """As that of a sampler on a GPU, which returns when nearly all of it is done."""
    rows, together = np.arange(12), threading.Barrier(3)

    def double(taken):
        together.wait(timeout=30)
        return 2 * taken

    assert batches.run([double] * 3, rows, size=2).tolist() == (2 * rows).tolist()


def test_an_error_in_a_batch_ends_the_others():
    begun = []

    def fail(taken):
        begun.append(taken)
        raise RuntimeError("out of memory")

    for functions in ([fail], [fail] * 3):
        begun.clear()
        with pytest.raises(RuntimeError, match="out of memory"):
            batches.run(functions, np.arange(100), size=1)
        assert len(begun) <= len(functions) + 1
    assert not [one for one in threading.enumerate() if one.name.startswith("batches")]
