"""Ways to share a training step out over devices, and the step of each, for `scaling_train`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks import jax_side
from benchmarks.measure import Size
from dso_jax.config import Config, SystemConfig, TrainConfig
from dso_jax.models import init_flow
from dso_jax.objectives import ObjectiveConfig
from dso_jax.training import policy, sharding
from dso_jax.training.optimizer import learning_rate, make_optimizer
from dso_jax.training.step import init_state, make_probe, make_step

PAIRS = 6  # on each device
REMAT = "attention"  # fits anywhere, compiles once for all blocks, and is nearly the fastest
OVERLAP = ("xla_gpu_enable_latency_hiding_scheduler=true",)


class Way(NamedTuple):
    """One way to share a step's pairs out."""

    name: str
    devices: tuple[int, ...]
    pairs: int
    fsdp: int = 1
    accumulation: int = 1
    xla: tuple[str, ...] = ()
    probed: bool = False

    @property
    def mesh(self) -> Mesh:
        chosen = [jax.devices()[number] for number in self.devices]
        return sharding.make_mesh(chosen, self.fsdp)


class Made(NamedTuple):
    """A way's programs, or their shapes before that."""

    config: Config
    step: Any
    probe: Any
    arguments: tuple  # state, weights, batch, key


def ways(count: int) -> list[Way]:
    """What is measured on `count` devices, what matters most first."""
    everything, total = tuple(range(count)), PAIRS * count
    listed = [Way("weak/1", (0,), PAIRS)]
    listed += [Way(f"weak/{count}", everything, total, probed=True)]
    listed += [
        Way(f"same/1-in-{parts}", (0,), total, accumulation=parts, probed=True)
        for parts in (count, count // 2)
    ]
    listed += [Way(f"weak/{n}", everything[:n], PAIRS * n) for n in (2, 4) if n < count]
    listed += [Way(f"fsdp/{count}", everything, total, fsdp=count)]
    if count > 2:
        listed += [Way(f"fsdp/{count // 2}x2", everything, total, fsdp=2)]
    if jax.default_backend() == "gpu":
        listed += [Way(f"fsdp/{count}-overlap", everything, total, fsdp=count, xla=OVERLAP)]
    return listed + [Way(f"alone/{n}", (n,), PAIRS) for n in everything[1:]]


def build(size: Size, way: Way) -> Made:
    """The step and the probe as `train.py` makes them, and the shapes of what they take."""
    mesh = way.mesh
    config = Config(
        objective=ObjectiveConfig(name="dro"),
        lora=size.lora,
        train=TrainConfig(batch_size=way.pairs, accumulation=way.accumulation),
        system=SystemConfig(dtype=jax_side.DTYPE, remat=REMAT, fsdp=way.fsdp, xla=way.xla),
    )
    sharding.check_batch(way.pairs, way.accumulation, mesh)
    optimizer, rate = make_optimizer(config.optim), learning_rate(config.optim)
    made: list[policy.Policy] = []

    def parts(key: jax.Array) -> tuple:
        base = SimpleNamespace(flow_config=size.flow, flow_params=init_flow(size.flow, key))
        model, trainable, weights = policy.build(config, base, key, mesh)
        made.append(model)
        return init_state(trainable, optimizer), weights

    everywhere = sharding.replicated(mesh)
    state, weights = jax.eval_shape(parts, jax.random.key(0))
    arguments = (
        _placed(state, lambda shape: everywhere),
        _placed(weights, sharding.by_shape(mesh)),
        _placed(shapes(size, way.pairs), lambda shape: sharding.by_example(mesh)),
        _placed(jax.eval_shape(lambda: jax.random.key(0)), lambda shape: everywhere),
    )
    step = make_step(made[0], config.objective, optimizer, rate, way.accumulation, mesh)
    probe = make_probe(made[0], config.objective, way.accumulation, mesh) if way.probed else None
    return Made(config, step, probe, arguments)


def shapes(size: Size, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Of a batch of pairs."""
    flow = size.flow
    latent = (count, flow.in_channels, *[flow.resolution] * 3)
    shapes = {"win": latent, "lose": latent, "cond": (count, size.tokens, flow.cond_channels)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def pairs(size: Size, count: int) -> dict[str, np.ndarray]:
    """Random numbers of these shapes."""
    rng = np.random.default_rng(1)
    return {
        name: rng.standard_normal(leaf.shape, np.float32)
        for name, leaf in shapes(size, count).items()
    }


def _placed(tree: Any, choose: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=choose(leaf.shape)), tree
    )
