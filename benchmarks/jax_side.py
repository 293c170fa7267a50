"""Our side of the cases: the training step, velocities, the sampler, and what the device can do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import kernel_profile, measure, turn
from benchmarks.measure import GIB, SIZES, Run, Size
from dso_jax.config import Config, SystemConfig, TrainConfig
from dso_jax.models import apply_flow, attention, flow_context, init_flow, lora
from dso_jax.objectives import ObjectiveConfig
from dso_jax.sampler import SamplerConfig, sample
from dso_jax.training import flops, policy, sharding
from dso_jax.training.optimizer import learning_rate, make_optimizer
from dso_jax.training.step import TrainState, init_state, make_step

DTYPE = "bfloat16"


def describe() -> dict[str, str]:
    """Device and versions, for the record."""
    return {"device": jax.devices()[0].device_kind} | measure.versions("jax", "jaxlib", "flax")


class Model(NamedTuple):
    """A network with random weights, ready to train.

    Attributes:
        config: of the run that would train it.
        policy: how its parameters become velocities.
        state: what a step changes.
        weights: what it does not.
    """

    config: Config
    policy: policy.Policy
    state: TrainState
    weights: policy.Weights


def build(
    size: Size, objective: str, samples: int, system: dict[str, Any], *, real: bool = True
) -> Model:
    """A model in bf16 on the first device.

    Args:
        size: of the network.
        objective: sft, dro or dpo.
        samples: latents that pass through the policy in a step.
        system: fields of `SystemConfig` that differ from the defaults, and `accumulation`.
        real: False leaves it at the shapes of its arrays.
    """
    system = dict(system)
    parts_of_a_step = system.pop("accumulation", 1)
    pairs = samples if objective == "sft" else samples // 2
    config = Config(
        objective=ObjectiveConfig(name=objective),
        lora=size.lora,
        train=TrainConfig(batch_size=pairs, accumulation=parts_of_a_step),
        system=dataclasses.replace(SystemConfig(dtype=DTYPE), **system),
    )
    made: list[policy.Policy] = []

    def parts(key: jax.Array) -> tuple[TrainState, policy.Weights]:
        base = SimpleNamespace(flow_config=size.flow, flow_params=init_flow(size.flow, key))
        model, trainable, weights = policy.build(config, base, key, _mesh())
        made.append(model)
        return init_state(trainable, make_optimizer(config.optim)), weights

    state, weights = jax.eval_shape(parts, jax.random.key(0))
    if not real:
        return Model(config, made[0], state, weights)
    state, weights = state._replace(trainable=fill(state.trainable)), fill(weights)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    state = jax.device_put(zeros._replace(trainable=state.trainable))
    return Model(config, made[0], state, jax.device_put(weights))


def fill(shapes: Any) -> Any:
    """Random weights of these shapes, in numpy, which compiles nothing.

    No leaf is zero, and activations keep their scale: a matrix unit runs faster on zeros. Large
    leaves repeat the same draws after 16 M numbers, each from a place of its own.
    """
    rng = np.random.default_rng(0)
    pool = rng.standard_normal(2**24, np.float32)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = getattr(path[-1], "key", "")
        values = np.roll(pool, rng.integers(len(pool)))[: leaf.size]
        if name in ("scale", "gamma"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1 if name in ("bias", "pos_emb") else leaf.shape[-2] ** -0.5
        return np.resize(values.astype(leaf.dtype), leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make(
    size: Size, objective: str, samples: int, system: dict[str, Any], *, real: bool = True
) -> tuple[Any, tuple]:
    """The jitted training step and the arrays for it; arguments as those of `build`."""
    model = build(size, objective, samples, system, real=real)
    config, pairs = model.config, model.config.train.batch_size
    win, cond = inputs(size, pairs, seed=1)
    lose, _ = inputs(size, pairs, seed=2)
    function = make_step(
        model.policy,
        config.objective,
        make_optimizer(config.optim),
        learning_rate(config.optim),
        config.train.accumulation,
        _mesh(),
    )
    batch = {"win": win, "lose": lose, "cond": cond}
    return function, (model.state, model.weights, batch, jax.random.key(3))


def inputs(size: Size, rows: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Random latents and conditions."""
    rng, flow = np.random.default_rng(seed), size.flow
    latents = rng.standard_normal((rows, flow.in_channels, *[flow.resolution] * 3), np.float32)
    cond = rng.standard_normal((rows, size.tokens, flow.cond_channels), np.float32)
    return jnp.asarray(latents), jnp.asarray(cond, DTYPE)


def step(run: Run, objective: str, samples: int, grid: int | None = None, **system: Any) -> dict:
    """A training step: draws, forward, backward, clip, AdamW."""
    size = SIZES[run.size] if grid is None else SIZES[run.size].with_grid(grid)
    # The products that the derivative needs, with nothing computed twice, and those of this step.
    plain = system | {"remat": "none", "attention": "xla"}
    needed = _count(*make(size, objective, samples, plain, real=False))
    function, arguments = make(size, objective, samples, system)
    executed = flops.count(function, *arguments)
    call, figures = _stepper(function, arguments, system)
    figures |= measure.timed(call, run.repeats)
    figures["samples_per_s"] = samples / figures["ms"] * 1e3
    return measure.rates(figures | _peak(), needed=needed, executed=executed)


def profile(run: Run, objective: str, samples: int, **system: Any) -> dict:
    """A training step by kinds of kernels; see kernel_profile.py."""
    function, arguments = make(SIZES[run.size], objective, samples, system)
    call, figures = _stepper(function, arguments, system)
    figures |= measure.timed(call, run.repeats)
    figures |= kernel_profile.summary(kernel_profile.kernel_times(call, 3))
    figures["idle ms"] = figures["ms"] - sum(figures[f"{kind} ms"] for kind in kernel_profile.KINDS)
    return figures


def velocity(run: Run, samples: int, adapter: bool, **system: Any) -> dict:
    """One forward pass, with the adapter's branches or without."""
    size = SIZES[run.size]
    apply, arguments = _velocity(size, samples, adapter, system)
    counted = flops.count(apply, *arguments)
    compiled, figures = _compile(jax.jit(apply), arguments, system.get("xla", ()))
    figures |= measure.timed(lambda: jax.block_until_ready(compiled(*arguments)), run.repeats)
    return measure.rates(figures | _peak(), executed=counted)


def sampler(run: Run, samples: int, **system: Any) -> dict:
    """DSO's 12 steps with guidance, from noise to latents, each sample with an image of its own."""
    size = SIZES[run.size]
    model = build(size, "sft", samples, system)
    noise, cond = inputs(size, samples)
    options: dict[str, Any] = {"lora": size.lora, "execution": model.config.system.execution}

    def draw(params: dict, noise: jax.Array, cond: jax.Array) -> jax.Array:
        context = flow_context(size.flow, params, cond, **options)

        def velocity(x: jax.Array, t: jax.Array, context: Any) -> jax.Array:
            return apply_flow(size.flow, params, x, t, context, **options)

        return sample(velocity, noise, context, SamplerConfig())

    arguments = lora.combine(model.state.trainable, model.weights.frozen), noise, cond
    compiled, figures = _compile(jax.jit(draw), arguments, system.get("xla", ()))
    figures |= measure.timed(lambda: jax.block_until_ready(compiled(*arguments)), run.repeats)
    figures["samples_per_s"] = samples / figures["ms"] * 1e3
    return figures | _peak()


def matmul(run: Run) -> dict:
    """A product of two square bf16 matrices of random numbers."""
    edge = SIZES[run.size].matmul
    a, b = (
        jax.random.normal(key, (edge, edge), DTYPE) for key in jax.random.split(jax.random.key(0))
    )
    compiled, figures = _compile(jax.jit(jnp.matmul), (a, b))
    figures |= measure.timed(lambda: jax.block_until_ready(compiled(a, b)), run.repeats)
    return measure.rates(figures, executed=2 * edge**3)


def attend(run: Run, samples: int, cross: bool, backward: bool) -> dict:
    """Attention alone in the network's shapes; its backward pass takes five products of a score's
    size (the scores again, and the derivatives of weights, values, queries and keys)."""
    size = SIZES[run.size]
    flow, keys = size.flow, jax.random.split(jax.random.key(0), 4)
    length, heads = flow.num_tokens, flow.num_heads
    span = size.tokens if cross else length
    shapes = [
        (samples, count, heads, flow.model_channels // heads) for count in (length, span, span)
    ]
    q, k, v = (jax.random.normal(key, s, DTYPE) for key, s in zip(keys[:3], shapes, strict=True))
    seed = jax.random.normal(keys[3], shapes[0], DTYPE)
    backend = attention.resolve("auto", DTYPE)

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, implementation=backend)  # type: ignore[arg-type]

    def both(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple:
        out, pull = jax.vjp(forward, q, k, v)
        return out, pull(seed)

    compiled, figures = _compile(jax.jit(both if backward else forward), (q, k, v))
    figures |= measure.timed(lambda: jax.block_until_ready(compiled(q, k, v)), run.repeats)
    product = 2 * samples * length * span * flow.model_channels
    return measure.rates(figures, executed=(2 + 5 * backward) * product) | {"backend": backend}


def _stepper(
    function: Any, arguments: tuple, system: dict[str, Any]
) -> tuple[Callable[[], None], dict[str, Any]]:
    """What makes one step after the other, and what compiling it gave."""
    compiled, figures = _compile(function, arguments, system.get("xla", ()))
    held = list(arguments)  # the state is donated

    def call() -> None:
        held[0], stats = compiled(*held)
        jax.block_until_ready(stats)

    return call, figures


def _velocity(
    size: Size, samples: int, adapter: bool, system: dict[str, Any]
) -> tuple[Callable[..., jax.Array], tuple]:
    """((trainable, weights), x, t, cond) -> v, and arrays for it."""
    model = build(size, "sft", samples, system)

    def apply(parts: tuple, x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
        flow = model.policy.velocity(*parts) if adapter else model.policy.reference(parts[1])
        return flow(x, t, cond)

    x, cond = inputs(size, samples)
    return apply, ((model.state.trainable, model.weights), x, jnp.full(samples, 0.5), cond)


def _count(function: Any, arguments: tuple) -> int:
    return flops.count(function, *arguments)


def _mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh(jax.devices()[:1])


def _compile(
    function: Any, arguments: tuple, options: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    chosen = dict(option.split("=", 1) for option in options)  # as `system.xla`
    truth = {
        name: {"true": True, "false": False}.get(value, value) for name, value in chosen.items()
    }
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    figures: dict[str, Any] = {"trace_s": time.perf_counter() - start}
    with turn.beside_others():
        start = time.perf_counter()
        compiled = lowered.compile(truth)
        figures["compile_s"] = time.perf_counter() - start
    found = compiled.memory_analysis()
    need = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    figures["compiler_gib"] = (need - found.alias_size_in_bytes) / GIB
    return compiled, figures


def _peak() -> dict[str, float]:
    """Most memory that was in use in this process."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {} if peak is None else {"peak_gib": peak / GIB}
