"""Conditions computed from images on the devices are those that would have been stored."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from dso_jax import conditioning, data, toybox
from dso_jax.cli import main as dso
from dso_jax.dataset.writer import DatasetWriter
from dso_jax.errors import UsageError
from dso_jax.models import FLOW_SIZES, DINOv2Config, init_dinov2, lora
from dso_jax.training import online, sharding
from tests.training.conftest import labels, make_config

# Five tokens beside the four patches of an image.
ENCODER = DINOv2Config(width=8, num_blocks=1, num_heads=2, image_size=28)


@pytest.fixture(scope="module")
def encoder():
    shapes = jax.eval_shape(lambda key: init_dinov2(ENCODER, key), jax.random.key(0))
    rng = np.random.default_rng(1)
    draw = functools.partial(rng.normal, scale=0.3)
    return ENCODER, jax.tree.map(
        lambda leaf: jnp.asarray(draw(size=leaf.shape), leaf.dtype), shapes
    )


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    """A dataset with images, and with the conditions that they give."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 28, 28, 3), np.uint8)
    latents = rng.normal(size=(24, 2, 4, 4, 4)).astype(np.float32)
    path = tmp_path_factory.mktemp("pictures")
    conditions = conditioning.encode(encoder[0], encoder[1], images)
    DatasetWriter(path, {"base": "tiny"}).append(labels(6, 4), latents, conditions, images)
    return path


def configs(folder, out):
    stored = make_config(folder, out / "stored", "sft", steps=2)
    return stored, dataclasses.replace(stored, conditions="online", out=str(out / "online"))


@pytest.mark.parametrize("devices", [1, 4])
def test_what_is_computed_is_what_is_stored(encoder, folder, tmp_path, devices):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    batches = []
    for config in configs(folder, tmp_path):
        dataset = online.open_dataset(config)
        network = online.load_encoder(config, dataset, mesh, encoder)
        batch = data.at(data.batches(dataset, 8, seed=0), 3)
        batches.append(online.make_feed(config, network, mesh)(batch))
    stored, computed = batches
    assert computed["cond"].shape == (8, 9, 8)
    assert len(computed["cond"].addressable_shards) == devices
    np.testing.assert_allclose(computed["cond"], stored["cond"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(computed["win"], stored["win"])


def test_what_does_not_fit_is_named(encoder, folder, base, tmp_path, monkeypatch, capsys):
    config = configs(folder, tmp_path)[1]
    dataset = online.open_dataset(config)
    for change, message in (
        ({"image_size": 42}, r"meta.json: image_shape is .28, 28, 3., the encoder takes .42, 42"),
        ({"width": 16}, "image encoder gives conditions of 16 channels, tiny takes 8"),
    ):
        other = dataclasses.replace(ENCODER, **change), encoder[1]
        with pytest.raises(UsageError, match=message):
            online.check_fit(dataset, other, base)
    monkeypatch.setattr("dso_jax.pretrained.load", lambda name, dtype, sharding: base)
    arguments = ["--data", str(folder), "--out", str(tmp_path / "run"), "--conditions", "online"]
    assert dso.main(["train", *arguments, "--image-encoder", "nothing"]) == 2
    assert "image encoder 'nothing': no such file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_toyboxs_pictures_give_its_conditions(tmp_path):
    """`dso generate --prompts toybox --store both` says in meta.json which encoder it took."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
    latents = rng.normal(size=(24, 2, 4, 4, 4)).astype(np.float32)
    conditions = toybox.condition(pixels.astype(np.float32) / 255)
    writer = DatasetWriter(tmp_path, {"encoder": "toybox"})
    writer.append(labels(6, 4), latents, conditions, pixels)
    base = SimpleNamespace(name="toybox", flow_config=FLOW_SIZES["toybox"])
    mesh, cond = sharding.make_mesh(jax.devices()[:4]), []
    for config in configs(tmp_path, tmp_path / "out"):
        dataset = online.open_dataset(config)
        network = online.load_encoder(config, dataset, mesh)
        online.check_fit(dataset, network, base)
        batch = data.at(data.batches(dataset, 8, seed=0), 0)
        cond.append(online.make_feed(config, network, mesh)(batch)["cond"])
    np.testing.assert_array_equal(cond[0], cond[1])


@pytest.mark.slow  # compiles two steps
def test_training_on_images_is_training_on_their_conditions(encoder, folder, base, tmp_path):
    stored, computed = (
        lora.adapter_leaves(train.main(config, base=base, encoder=encoder).params)
        for config in configs(folder, tmp_path)
    )
    for ours, theirs in zip(jax.tree.leaves(computed), jax.tree.leaves(stored), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
