"""The Flax structure VAE against the torch reference, with the same random weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dso_jax.models import apply_decoder, apply_encoder
from dso_jax.models.structure_vae import SparseStructureDecoder, pixel_shuffle
from tests.models.comparison import FAST_COMPILE, FORWARD, difference
from tests.models.sizes import DECODERS, ENCODERS, arguments
from weight_port import from_torch

torch = pytest.importorskip("torch")

from tests.reference import torch_structure  # noqa: E402
from tests.reference.torch_tools import arrays, randomize  # noqa: E402

BATCH, EDGE = 2, 3  # odd, so that a wrong padding or a swapped axis shows


@pytest.mark.parametrize("name", DECODERS)
def test_decoder(name):
    config = DECODERS[name]
    model = torch_structure.SparseStructureDecoder(**arguments(config))
    randomize(model, seed=0)
    params = from_torch("decoder", config, arrays(model))
    z = noise(config.latent_channels, EDGE)
    with torch.no_grad():
        expected = model(torch.from_numpy(z))
    ours = jax.jit(apply_decoder, static_argnums=0)(config, params, jnp.asarray(z))
    assert ours.shape[2:] == (EDGE * 2 ** (len(config.channels) - 1),) * 3
    assert difference(ours, expected) <= FORWARD


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name):
    config = ENCODERS[name]
    model = torch_structure.SparseStructureEncoder(**arguments(config))
    randomize(model, seed=1)
    params = from_torch("encoder", config, arrays(model))
    occupancy = noise(config.in_channels, EDGE * 2 ** (len(config.channels) - 1))
    with torch.no_grad():
        expected = model(torch.from_numpy(occupancy))
    ours = jax.jit(apply_encoder, static_argnums=0)(config, params, jnp.asarray(occupancy))
    for part, reference in zip(ours, expected, strict=True):
        assert difference(part, reference) <= FORWARD


@pytest.mark.parametrize("part", ["middle_block.0", "blocks.2", "out_layer"])
def test_decoder_by_parts(part):
    """Cutting the model behind a layer must cut both at the same place."""
    config = DECODERS["three_levels"]
    model = torch_structure.SparseStructureDecoder(**arguments(config))
    randomize(model, seed=2)
    seen = []
    model.get_submodule(part).register_forward_hook(lambda _, args, out: seen.extend((*args, out)))
    with torch.no_grad():
        model(torch.from_numpy(noise(config.latent_channels, EDGE)))
    before, after = (a.detach().numpy() for a in seen)
    ours = our_layer(config, from_torch("decoder", config, arrays(model)), part)
    result = jax.jit(ours, compiler_options=FAST_COMPILE)(jnp.moveaxis(jnp.asarray(before), 1, -1))
    assert difference(jnp.moveaxis(result, -1, 1), after) <= FORWARD


def test_pixel_shuffle_puts_every_offset_in_its_place():
    """Channel c*8 + 4 dx + 2 dy + dz becomes channel c at (2x + dx, 2y + dy, 2z + dz)."""
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 2, 16)).astype(np.float32)
    shuffled = np.asarray(pixel_shuffle(jnp.asarray(x)))
    for c, dx, dy, dz in np.ndindex(2, 2, 2, 2):
        expected = x[..., c * 8 + 4 * dx + 2 * dy + dz]
        np.testing.assert_array_equal(shuffled[:, dx::2, dy::2, dz::2, c], expected)


def noise(channels, edge):
    return np.random.default_rng(3).normal(size=(BATCH, channels, *[edge] * 3)).astype(np.float32)


def our_layer(config, params, part):
    shapes = nnx.eval_shape(lambda: SparseStructureDecoder(config, rngs=nnx.Rngs(0)))
    model = nnx.merge(nnx.split(shapes)[0], params)
    name, *index = part.split(".")
    if index:
        return getattr(model, name)[index[0]]
    return lambda x: model.out_layer["2"](jax.nn.silu(model.out_layer["0"](x)))
