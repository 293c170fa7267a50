"""The Flax flow transformer against the torch reference, with the same random weights."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dso_jax import sampler
from dso_jax.models import LoRAConfig, apply_flow, layers, lora, multihead
from dso_jax.models.embedding import patchify, position_embedding
from dso_jax.models.transformer import SparseStructureFlow
from tests.models.comparison import FAST_COMPILE, FORWARD, GRADIENT, TRAJECTORY, difference
from tests.models.sizes import FLOWS, arguments
from weight_port import from_torch

torch = pytest.importorskip("torch")

from tests.reference.torch_flow import (  # noqa: E402
    BLOCK_NORM_EPS,
    OUT_NORM_EPS,
    MultiHeadRMSNorm,
    SparseStructureFlowModel,
)
from tests.reference.torch_tools import add_lora, arrays, randomize  # noqa: E402

TOKENS, BATCH = 5, 2
PARTS = ("self_attn", "cross_attn", "mlp", "norm1", "norm2", "norm3")
forward = jax.jit(apply_flow, static_argnums=0)
LORA = LoRAConfig(rank=3, alpha=5.0)


def build(config, seed=0):
    """The torch model with random weights, and the same weights as our tree."""
    model = SparseStructureFlowModel(**arguments(config))
    randomize(model, seed)
    return model, from_torch("flow", config, arrays(model))


def inputs(config, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, config.in_channels, *[config.resolution] * 3))
    cond = rng.normal(size=(BATCH, TOKENS, config.cond_channels))
    return x.astype(np.float32), np.array([0.031, 0.83], np.float32), cond.astype(np.float32)


def thousand(t):
    """Upstream's time; multiplied in fp32 on both sides, since cos(1000 t) amplifies a last bit."""
    return torch.from_numpy(np.float32(t) * np.float32(1000))


@pytest.mark.parametrize("name", FLOWS)
def test_whole_model(name):
    config = FLOWS[name]
    model, params = build(config)
    x, t, cond = inputs(config)
    with torch.no_grad():
        expected = model(torch.from_numpy(x), thousand(t), torch.from_numpy(cond))
    assert difference(forward(config, params, x, t, cond), expected) <= FORWARD


@pytest.mark.parametrize("name", FLOWS)
def test_layer_by_layer(name):
    """Every stage gets the reference's own input, so that a fault names its layer."""
    config = FLOWS[name]
    model, params = build(config)
    x, t, cond = inputs(config)
    seen: dict[str, tuple] = {}

    def watch(path):
        def hook(_, args, output):
            seen[path] = (*(a.detach().numpy() for a in args if a is not None), output.detach())

        return hook

    blocks = [f"blocks.{i}" for i in range(config.num_blocks)]
    inner = [f"{block}.{part}" for block in blocks for part in PARTS]
    for path in ["input_layer", "t_embedder", "out_layer", *blocks, *inner]:
        model.get_submodule(path).register_forward_hook(watch(path))
    model(torch.from_numpy(x), thousand(t), torch.from_numpy(cond))

    inputs_of = {path: list(map(jnp.asarray, args)) for path, (*args, _) in seen.items()}
    outputs = stages(config, params, inputs_of)
    errors = {path: difference(output, seen[path][-1]) for path, output in outputs.items()}
    assert len(errors) == 3 + config.num_blocks * (1 + len(PARTS))
    assert max(errors.values()) <= FORWARD, errors
    tokens = patchify(jnp.asarray(x), config.patch_size)
    np.testing.assert_array_equal(tokens, seen["input_layer"][0])


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def stages(config, params, inputs_of):
    """Output of every stage of ours, each for its own given input."""
    shapes = nnx.eval_shape(lambda: SparseStructureFlow(config, rngs=nnx.Rngs(0)))
    model = nnx.merge(nnx.split(shapes)[0], params)
    graphdef, stack = nnx.split(model.blocks)
    ours = {name: getattr(model, name) for name in ("input_layer", "t_embedder", "out_layer")}
    for index in range(config.num_blocks):
        block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=index: leaf[i], stack))
        ours |= {f"blocks.{index}.{part}": getattr(block, part) for part in PARTS}
        ours[f"blocks.{index}"] = block
        for path in (f"blocks.{index}.cross_attn", f"blocks.{index}"):  # theirs take the condition
            *others, cond = inputs_of[path]
            context = block.cross_attn.context(cond, cond.shape[1])
            inputs_of = {**inputs_of, path: [*others, context]}
    return {path: layer(*inputs_of[path]) for path, layer in ours.items()}


def test_epsilons():
    """Inputs as small as sqrt(eps), where an epsilon shows; 1e-5 and 1e-6 differ by 20 % there."""
    width, heads = 24, 3
    x = 1e-3 * np.random.default_rng(6).normal(size=(2, 5, width)).astype(np.float32)
    x[0, 0] = 0
    for affine, eps in ((False, 1e-6), (True, 1e-6), (False, 1e-5)):
        ours = layers.Float32LayerNorm(width, affine=affine, eps=eps, rngs=nnx.Rngs(0))
        theirs = torch.nn.functional.layer_norm(torch.from_numpy(x), (width,), eps=eps)
        assert difference(ours(jnp.asarray(x)), theirs) <= FORWARD
    config = FLOWS["patch1"]
    model = nnx.eval_shape(lambda: SparseStructureFlow(config, rngs=nnx.Rngs(0)))
    block = model.blocks
    assert [n.epsilon for n in (block.norm1, block.norm2, block.norm3)] == [BLOCK_NORM_EPS] * 3
    assert model.final_norm.epsilon == OUT_NORM_EPS

    norm = MultiHeadRMSNorm(width // heads, heads)
    tiny = np.float32(1e-9) * x.reshape(2, 5, heads, -1)  # around the clamp at a length of 1e-12
    ours, back = jax.vjp(multihead.MultiHeadRMSNorm(heads, width // heads), jnp.asarray(tiny))
    assert difference(ours, norm(torch.from_numpy(tiny)).detach()) <= FORWARD
    assert jnp.isfinite(back(jnp.ones_like(ours))[0]).all()


@pytest.mark.parametrize("name", ["patch1", "patch2_share_mod"])
def test_lora_gradients(name):
    config = FLOWS[name]
    model, params = build(config)
    randomize(add_lora(model, LORA.targets, LORA.rank, LORA.alpha), seed=5)
    weights = arrays(model)
    base = {k.replace(".base_layer", ""): v for k, v in weights.items() if ".lora_" not in k}
    adapter = {k: v for k, v in weights.items() if ".lora_" in k}
    params = from_torch("flow", config, base)
    params = lora.with_adapter(params, stacked(adapter))
    x, t, cond = inputs(config)
    target = np.random.default_rng(5).normal(size=(BATCH, config.out_channels, *x.shape[2:]))
    target = target.astype(np.float32)

    output = model(torch.from_numpy(x), thousand(t), torch.from_numpy(cond))
    torch.mean((output - torch.from_numpy(target)) ** 2).backward()
    expected = {k: p.grad.numpy() for k, p in model.named_parameters() if p.grad is not None}
    assert set(expected) == set(adapter)

    trainable, frozen = lora.partition(params, lora.trainable_mask(params, ["lora"]))

    batch = [jnp.asarray(a) for a in (x, t, cond)]

    def loss(trainable):
        v = apply_flow(config, lora.combine(trainable, frozen), *batch, lora=LORA)
        return jnp.mean((v - target) ** 2)

    gradient = lora.adapter_leaves(
        jax.jit(jax.grad(loss), compiler_options=FAST_COMPILE)(trainable)
    )
    reference = stacked(expected)
    errors = jax.tree.map(difference, gradient, reference)
    assert max(jax.tree.leaves(errors)) <= GRADIENT, errors


def stacked(adapter: dict[str, np.ndarray]) -> dict:
    """`blocks.{i}.M.lora_A.weight` -> our tree, by hand: the port's own code is not used here."""
    tree: dict = {}
    for name in sorted(adapter, key=lambda n: int(n.split(".")[1])):
        _, _, attention, module, leaf, _ = name.split(".")
        at = tree.setdefault("blocks", {}).setdefault(attention, {}).setdefault(module, {})
        at.setdefault(leaf, []).append(adapter[name].T)
    return jax.tree.map(np.stack, tree, is_leaf=lambda node: isinstance(node, list))


@pytest.mark.parametrize("name", ["patch1", "patch2_share_mod"])
def test_guided_trajectory(name):
    """12 steps from one noise, against the loop of the specification written out in numpy."""
    config = FLOWS[name]
    if config.in_channels != config.out_channels:
        config = type(config)(**{**config.__dict__, "out_channels": config.in_channels})
    model, params = build(config)
    noise, _, cond = inputs(config)

    calls = 0

    def reference_velocity(x, t, cond):
        nonlocal calls
        calls += 1
        times = thousand(np.full(BATCH, t, np.float32))
        with torch.no_grad():
            return model(torch.from_numpy(x), times, torch.from_numpy(cond)).numpy()

    u = np.linspace(1, 0, 13)
    times = 3 * u / (1 + 2 * u)
    x, guided = noise, 0
    for t, previous in itertools.pairwise(times):
        v = reference_velocity(x, t, cond)
        if 0.5 <= t <= 1.0:
            guided += 1
            v = (1 + 7.5) * v - 7.5 * reference_velocity(x, t, np.zeros_like(cond))
        x = x - np.float32(t - previous) * v
    assert (guided, calls) == (10, 22)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def ours(noise, cond):
        def velocity(x, t, cond):
            return apply_flow(config, params, x, t, cond)

        return sampler.sample(velocity, noise, cond, sampler.SamplerConfig())

    assert difference(ours(noise, cond), x) <= TRAJECTORY


@pytest.mark.parametrize("name", FLOWS)
def test_position_embedding(name):
    config = FLOWS[name]
    model = SparseStructureFlowModel(**arguments(config))
    ours = position_embedding(config)
    assert difference(ours, model.pos_emb) <= FORWARD
    tail = config.model_channels % 6
    assert tail == 0 or not ours[:, -tail:].any()
