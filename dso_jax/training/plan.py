"""What a run would take, without its weights and data: `train.py --plan`.

The step is compiled for the devices that are here, from shapes alone, and the compiler is asked
what it needs. For a card that is not here there is an estimate, and it is called one.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dso_jax import pretrained
from dso_jax.config import Config
from dso_jax.dataset import store
from dso_jax.errors import UsageError
from dso_jax.models import FLOW_SIZES, FlowConfig, init_flow
from dso_jax.training import cards, flops, policy, setup, sharding
from dso_jax.training.cards import GIB
from dso_jax.training.optimizer import learning_rate, make_optimizer
from dso_jax.training.step import init_state, make_step

# Condition tokens by width, where no dataset says it: DINOv2 ViT-L/14 with registers at 518 pixels,
# CLIP ViT-L/14's text encoder, the toybox.
TOKENS = {1024: 1374, 768: 77, 208: 16}


class Program(NamedTuple):
    """A training step made of shapes."""

    step: Any  # jitted
    arguments: tuple  # (state, weights, batch, key) as ShapeDtypeStructs with shardings
    policy: policy.Policy


def report(config: Config, device: str | None = None) -> str:
    """The plan as a text.

    Args:
        config: of the run; its data folder need not exist.
        device: a card of `cards.CARDS` to estimate for.

    Raises:
        UsageError: the batch, the mesh or the card is impossible.
    """
    card = None if device is None else cards.find(device)
    mesh = sharding.make_mesh(fsdp=config.system.fsdp)
    arithmetic = sharding.check_batch(config.train.batch_size, config.train.accumulation, mesh)
    flow = flow_config(config.base)
    program = build(config, flow, mesh)
    state, weights = program.arguments[:2]
    begin = time.monotonic()
    compiled = setup.compile_one(program.step, program.arguments, config.system.xla)
    spent = time.monotonic() - begin
    here = jax.devices()[0]
    need, held = memory(compiled), (_bytes(weights), _bytes(state))
    work = flops.count(build(_with_xla(config), flow, mesh).step, *program.arguments)
    stated = (compiled.cost_analysis() or {}).get("flops", 0.0) * mesh.devices.size
    lines = [
        f"{config.base}, {config.objective.name.upper()}: {arithmetic}",
        setup.describe(state.trainable, weights),
        f"compiled in {spent:.1f} s for {mesh.devices.size} x {here.device_kind}, "
        f"remat {config.system.remat}, {config.system.dtype}, fsdp {config.system.fsdp}",
        f"memory of a device, by the compiler: {need / GIB:.3f} GiB: base {held[0] / GIB:.3f}, "
        f"what trains and its optimizer {held[1] / GIB:.3f}, "
        f"batch, activations and workspace {(need - sum(held)) / GIB:.3f}",
        f"matrix products of a step: {work / 1e12:.4g} TFLOP, recomputation included (the "
        f"compiler's cost analysis says {stated / 1e12:.4g}, counting a loop's body once)",
        _largest_here(config, flow, mesh, need),
    ]
    if here.platform == "cpu":
        lines.append("on a CPU, attention keeps its weights in memory; on a GPU, cuDNN's does not")
    if card is None:
        card = next((c for c in cards.CARDS.values() if c.kind in here.device_kind), None)
        device = here.device_kind
    if card is not None:
        lines += _estimate(config, flow, card, str(device), held, work, mesh.devices.size)
    return "\n".join(lines)


def build(config: Config, flow: FlowConfig, mesh: Any) -> Program:
    """The step of `config` and the shapes of its arguments."""
    made: list[policy.Policy] = []

    def parts(key: jax.Array) -> tuple:
        base = SimpleNamespace(flow_config=flow, flow_params=init_flow(flow, key))
        model, trainable, weights = policy.build(config, base, key, mesh)
        made.append(model)
        return init_state(trainable, optimizer), weights

    optimizer = make_optimizer(config.optim)
    state, weights = jax.eval_shape(parts, jax.random.key(0))
    everywhere, choose = sharding.replicated(mesh), sharding.by_shape(mesh)
    place = _placed(state, lambda shape: everywhere), _placed(weights, choose)
    batch = _placed(_batch(config, flow), lambda shape: sharding.by_example(mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    rate = learning_rate(config.optim)
    step = make_step(made[0], config.objective, optimizer, rate, config.train.accumulation, mesh)
    return Program(step, (*place, batch, key), made[0])


def memory(compiled: Any) -> int:
    """Bytes that a compiled step takes on a device, its arguments included."""
    found = compiled.memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )


def flow_config(base: str) -> FlowConfig:
    """The transformer of a generator, from its description alone.

    Raises:
        UsageError: nothing is known about `base`.
    """
    if base in FLOW_SIZES:
        return FLOW_SIZES[base]
    return pretrained.flow_config(base)


def _largest_here(config: Config, flow: FlowConfig, mesh: Any, need: int) -> str:
    """The largest batch of the devices here, by a line through this one and its double."""
    size, parts = config.train.batch_size, mesh.devices.size * config.train.accumulation
    double = dataclasses.replace(config.train, batch_size=2 * size)
    program = build(dataclasses.replace(config, train=double), flow, mesh)
    compiled = setup.compile_one(program.step, program.arguments, config.system.xla)
    slope = (memory(compiled) - need) / size
    statistics = jax.devices()[0].memory_stats() or {}
    total = statistics.get("bytes_limit")
    if total is None:  # a CPU: its devices share the machine's memory
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        total = machine // mesh.devices.size
    most = int((cards.USABLE * total - need) / max(slope, 1) + size) // parts * parts
    return (
        f"largest batch in {total / GIB:.1f} GiB a device: about {max(most, 0)} pairs a step at "
        f"accumulation {config.train.accumulation} (by a line through {size} and {2 * size})"
    )


def _estimate(
    config: Config,
    flow: FlowConfig,
    card: cards.Card,
    name: str,
    held: tuple[int, int],
    work: float,
    devices: int,
) -> list[str]:
    """The same for a card that is not here; `held`: bytes of base and of what trains."""
    system, accumulation = config.system, config.train.accumulation
    members = 1 if config.objective.name == "sft" else 2
    one = cards.sample_bytes(flow, system.remat, jnp.dtype(system.dtype).itemsize) * members
    fixed = held[0] + held[1] * 4 / 3  # weights, two moments, and gradients of what trains
    each = config.train.batch_size // (devices * accumulation)
    need, room = fixed + each * one, cards.USABLE * card.memory * GIB
    most = max(int((room - fixed) // one), 0)
    fits = "fits" if need <= room else "DOES NOT FIT"
    return [
        f"estimate for {devices} x {name} ({card.kind}, {card.memory} GiB, {card.peak:.0f} TFLOP/s "
        "by its data sheet), not measured there:",
        f"  {need / GIB:.1f} GiB a device with {each} pairs in flight: {fits}; at most {most} in "
        f"flight, {most * devices * accumulation} pairs a step",
        f"  {cards.seconds(card, work, devices):.2f} s a step at {100 * cards.EFFICIENCY:.0f} % of "
        "the peak",
    ]


def _batch(config: Config, flow: FlowConfig) -> dict[str, jax.ShapeDtypeStruct]:
    latent = (flow.in_channels, *[flow.resolution] * 3)
    stored = config.conditions == "stored"
    if stored and (Path(config.data) / "meta.json").is_file():
        folder = Path(config.data)
        cond = store.row_shape(folder, store.read_meta(folder), "condition_shape")
    elif flow.cond_channels in TOKENS:
        cond = (TOKENS[flow.cond_channels], flow.cond_channels)
    else:
        raise UsageError(f"--plan: {config.base} takes conditions of unknown length; give --data")
    size, objective = config.train.batch_size, config.objective
    if objective.pairing == "unpaired":
        shapes = {"x": (2 * size, *latent), "cond": (2 * size, *cond)}
        extra = {"stable": jax.ShapeDtypeStruct((2 * size,), bool)}
    else:
        shapes = {"win": (size, *latent), "lose": (size, *latent), "cond": (size, *cond)}
        gap = jax.ShapeDtypeStruct((size,), jnp.float32)
        extra = {"gap": gap} if objective.min_tilt_gap else {}
    return {k: jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in shapes.items()} | extra


def _placed(tree: Any, choose: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=choose(leaf.shape)), tree
    )


def _bytes(tree: Any) -> int:
    """Bytes of shapes on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves
    )


def _with_xla(config: Config) -> Config:
    """The same with an attention whose products can be seen."""
    return dataclasses.replace(config, system=dataclasses.replace(config.system, attention="xla"))
