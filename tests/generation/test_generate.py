"""Samples depend on what is asked for alone, and a killed dataset job repeats and loses nothing."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

import sim_mjx
from dso_jax import generate, pretrained, prompts
from dso_jax.errors import UsageError
from dso_jax.models import DecoderConfig, FlowConfig, init_decoder, init_flow
from dso_jax.sampler import SamplerConfig
from dso_jax.store import Dataset
from sim_mjx.rest import Rest

# XLA may order the sums of another batch size differently.
BATCH_RTOL = 1e-5
FAST = sim_mjx.Protocol.preset("fast")


@pytest.fixture(scope="module")
def base():
    flow = FlowConfig(
        resolution=4,
        in_channels=2,
        out_channels=2,
        model_channels=12,
        cond_channels=5,
        num_blocks=1,
        num_heads=2,
        patch_size=2,
    )
    decoder = DecoderConfig(latent_channels=2, channels=(8, 4), num_res_blocks=0)
    key = jax.random.key(0)
    params = jax.tree.map(lambda x: x + 0.1, init_flow(flow, key))  # no layer starts at zero
    return pretrained.Base(
        name="tiny",
        flow_config=flow,
        flow_params=params,
        decoder_config=decoder,
        decoder_params=init_decoder(decoder, key),
        sampler=SamplerConfig(steps=3, guidance_weight=1.0),
        sha256="0" * 64,
    )


def asked(count: int) -> prompts.Prompts:
    rng = np.random.default_rng(1)
    return prompts.Prompts(
        objects=np.array([f"thing-{i}" for i in range(count)]),
        views=np.zeros(count, np.int64),
        conditions=rng.normal(size=(count, 3, 5)).astype(np.float32),
        images=np.zeros((count, 4, 4, 3), np.float32),
    )


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


@pytest.fixture
def tipped(monkeypatch):
    """Labels by a rule on the logits instead of a simulation: this module is not about physics."""

    def label(logits, protocol, *, progress=None):
        falls = logits.mean((1, 2, 3)) > np.median(logits)
        angle = np.where(falls, np.pi / 4, 0.0)  # of half the rotation: 90 degrees about x
        zero = np.zeros_like(angle)
        quaternion = np.stack([np.cos(angle), np.sin(angle), zero, zero], 1)
        count = len(logits)
        rest = Rest.from_states(
            np.zeros((count, 3)),
            quaternion,
            np.full(count, 100),
            np.ones(count, bool),
            [None] * count,
        )
        return generate.Labelled(logits, rest, zero)

    monkeypatch.setattr(generate, "label", label)
    monkeypatch.setattr(generate, "OBJECTS_PER_SHARD", 2)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_killed_job_ends_in_the_same_folder(base, tipped, tmp_path):
    generate.write_dataset(base, asked(5), tmp_path / "whole", FAST, samples=3)

    def kill(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate.write_dataset(base, asked(5), tmp_path / "killed", FAST, samples=3, progress=kill)
    assert len(Dataset(tmp_path / "killed")) == 6
    counts = []
    generate.write_dataset(
        base, asked(5), tmp_path / "killed", FAST, samples=3, progress=counts.append
    )
    assert counts == [6, 6, 3]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_the_folder_holds_what_was_sampled_and_its_label(base, tipped, tmp_path):
    generate.write_dataset(base, asked(3), tmp_path / "data", FAST, samples=2, seed=7)
    dataset = Dataset(tmp_path / "data")
    samples = dataset.samples
    assert samples["object"].tolist() == [f"thing-{i}" for i in (0, 0, 1, 1, 2, 2)]
    assert samples["seed"][3] == generate.sample_seed("thing-1", 0, 1, 7)
    assert set(samples["protocol"]) == {FAST.hash()}
    np.testing.assert_array_equal(samples["stable"], samples["tilt_deg"] < 20)
    assert samples["stable"].any() and not samples["stable"].all()
    again = generate.sample_latents(
        base, base.flow_params, asked(3).conditions[[1]], samples["seed"][[3]]
    )
    np.testing.assert_allclose(dataset.latent(3), again[0], rtol=BATCH_RTOL, atol=BATCH_RTOL)


def test_a_folder_of_other_settings_is_refused(base, tipped, tmp_path):
    generate.write_dataset(base, asked(2), tmp_path / "data", FAST, samples=2)
    slow = dataclasses.replace(FAST, timestep=0.001)
    with pytest.raises(UsageError, match="protocol"):
        generate.write_dataset(base, asked(2), tmp_path / "data", slow, samples=2)
