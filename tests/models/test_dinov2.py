"""DINOv2 in Flax against the torch reference, with the same random weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dso_jax.models import DINOV2_SIZES, DINOv2Config, apply_dinov2, bicubic, init_dinov2
from dso_jax.models.dinov2 import DinoVisionTransformer
from tests.models.comparison import FAST_COMPILE, FORWARD, difference
from tests.models.sizes import DINOV2S, arguments
from weight_port import from_torch

torch = pytest.importorskip("torch")

from tests.reference import torch_dinov2  # noqa: E402
from tests.reference.torch_tools import arrays, randomize  # noqa: E402

PARTS = ("norm1", "attn", "ls1", "norm2", "mlp", "ls2")
forward = jax.jit(apply_dinov2, static_argnums=0, static_argnames=("normed", "dtype"))


def build(config, seed=0):
    """The torch model with random weights, and the same weights as our tree."""
    model = torch_dinov2.DinoVisionTransformer(**arguments(config))
    randomize(model, seed)
    return model, from_torch("dinov2", config, arrays(model))


def images(config, rows, columns, seed=1):
    shape = (2, 3, rows * config.patch_size, columns * config.patch_size)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", ["stored", "smaller", "larger"])
@pytest.mark.parametrize("name", DINOV2S)
def test_whole_model(name, shape):
    config = DINOV2S[name]
    grid = config.grid
    rows, columns = {
        "stored": (grid, grid),
        "smaller": (grid - 1, 2),
        "larger": (2 * grid + 1, grid + 2),
    }[shape]
    model, params = build(config)
    x = images(config, rows, columns)
    with torch.no_grad():
        expected = model(torch.from_numpy(x))
    ours = forward(config, params, x)
    assert ours.shape == (2, 1 + config.num_registers + rows * columns, config.width)
    assert difference(ours, expected) <= FORWARD


@pytest.mark.parametrize("name", DINOV2S)
def test_layer_by_layer(name):
    """Every stage gets the reference's own input, so that a fault names its layer."""
    config = DINOV2S[name]
    model, params = build(config)
    seen: dict[str, tuple] = {}
    blocks = [f"blocks.{i}" for i in range(config.num_blocks)]
    inner = [f"{block}.{part}" for block in blocks for part in PARTS]
    for path in [*blocks, *inner, "norm"]:

        def hook(_, args, output, path=path):
            seen[path] = (args[0].numpy(), output)

        model.get_submodule(path).register_forward_hook(hook)
    x = images(config, config.grid, config.grid + 1)
    with torch.no_grad():
        model.norm(model(torch.from_numpy(x)))
        seen["embed"] = (x.transpose(0, 2, 3, 1), model.embed(torch.from_numpy(x)))
    outputs = stages(config, params, {path: given for path, (given, _) in seen.items()})
    errors = {path: difference(output, seen[path][1]) for path, output in outputs.items()}
    assert len(errors) == 2 + config.num_blocks * (1 + len(PARTS))
    assert max(errors.values()) <= FORWARD, errors


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def stages(config, params, inputs):
    """Output of every stage of ours, each for its own given input."""
    shapes = nnx.eval_shape(lambda: DinoVisionTransformer(config, rngs=nnx.Rngs(0)))
    model = nnx.merge(nnx.split(shapes)[0], params)
    graphdef, stack = nnx.split(model.blocks)
    ours = {"embed": model.embed, "norm": model.norm}
    for index in range(config.num_blocks):
        block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=index: leaf[i], stack))
        ours |= {f"blocks.{index}.{part}": getattr(block, part) for part in PARTS}
        ours[f"blocks.{index}"] = block
    return {path: layer(inputs[path]) for path, layer in ours.items()}


@pytest.mark.parametrize(("antialias", "offset"), [(True, 0.0), (False, 0.0), (False, 0.1)])
@pytest.mark.parametrize("size", [1, 2, 5, 37])
def test_bicubic_is_that_of_torch(size, antialias, offset):
    basis = torch.eye(size)[None, :, :, None].repeat(1, 1, 1, 2)
    for new_size in (1, 2, 3, 7, 16, 36, 37, 38, 74, 100):
        if offset:
            target = {"scale_factor": ((new_size + offset) / size, 1.0)}
        else:
            target = {"size": (new_size, 2)}
        expected = torch.nn.functional.interpolate(
            basis, mode="bicubic", antialias=antialias, **target
        )[0, :, :, 0].T
        ours = bicubic.matrix(size, new_size, antialias=antialias, offset=offset)
        assert difference(ours, expected) <= FORWARD


def test_epsilons():
    config = DINOV2S["registers"]
    model = nnx.eval_shape(lambda: DinoVisionTransformer(config, rngs=nnx.Rngs(0)))
    norms = (model.blocks.norm1, model.blocks.norm2, model.norm)
    assert [norm.epsilon for norm in norms] == [torch_dinov2.NORM_EPS] * 3


def test_normed_output():
    config = DINOV2S["swiglu"]
    model, params = build(config)
    x = images(config, config.grid, config.grid)
    with torch.no_grad():
        expected = model.norm(model(torch.from_numpy(x)))
    assert difference(forward(config, params, x, normed=True), expected) <= FORWARD


def test_bf16_blocks_stay_near_fp32():
    config = DINOV2S["registers"]
    _, params = build(config)
    x = images(config, 4, 4)
    half = forward(config, params, x, dtype="bfloat16")
    assert half.dtype == jnp.float32
    assert 0 < difference(half, forward(config, params, x)) < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 5}, "width 24 is not a multiple of num_heads 5"),
        ({"image_size": 30}, "image_size 30 is not a multiple of patch_size 7"),
        ({"ffn": "moe"}, "ffn 'moe'"),
        ({"interpolate_offset": 0.1}, "interpolate_offset needs"),
    ],
)
def test_config_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        DINOv2Config(**{**arguments(DINOV2S["registers"]), **settings})


def test_images_of_another_size_are_refused():
    config = DINOV2S["registers"]
    params = jax.eval_shape(lambda: init_dinov2(config, jax.random.key(0)))
    with pytest.raises(ValueError, match="29x28 pixels: expected multiples of patch_size 7"):
        apply_dinov2(config, params, jnp.zeros((1, 3, 29, 28)))


# Millions of parameters as timm and the model cards list them.
PUBLISHED = {"s": 22.06, "b": 86.58, "l": 304.37, "g": 1136.48}


@pytest.mark.parametrize("name", DINOV2_SIZES)
def test_sizes_are_the_published_ones(name):
    config = DINOV2_SIZES[name]
    tree = jax.eval_shape(lambda: init_dinov2(config, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(tree))
    without_extras = count - config.width * (1 + config.num_registers)  # mask token, registers
    assert round(without_extras / 1e6, 2) == PUBLISHED[name.removeprefix("dinov2_vit")[0]]
    assert (config.num_registers, config.grid) == (4 if "_reg" in name else 0, 37)
    assert config.width // config.num_heads == 64
    if name == "dinov2_vitl14_reg":
        assert count == 304_372_736
    if config.ffn == "swiglu":
        assert config.hidden == 4096
