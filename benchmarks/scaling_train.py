"""The step of `train.py` at full size on parts of a host's GPUs; a part of `scaling.py`.

`weak` has as many pairs on each device, `same` the pairs of all devices on one, in several
micro-batches: two ways of cutting them show how far rounding alone makes losses and gradients
differ. `fsdp` spreads the weights. `alone` is the step of one device on each of them, `together` on
all at once and without a word between them: what `weak` could reach.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import jax_side, measure, turn
from benchmarks.measure import GIB, SIZES, Size
from benchmarks.scaling import EXPECTED, Results
from benchmarks.scaling_ways import PAIRS, REMAT, Way, build, pairs, ways
from dso_jax.training import losses, plan, processes, setup, sharding
from dso_jax.training.optimizer import make_optimizer
from dso_jax.training.step import init_state

REPEATS = {"full": 5, "small": 2}
COMPILING = 150  # seconds; what is not ready then is left out
BYTES = (2**20, 2**28)  # that the devices sum over each other


def main(folder: Path, size: str) -> None:
    """Compiles everything side by side, then measures one after another."""
    count = jax.device_count()
    if count < 2:
        raise SystemExit("train: needs several devices; see --devices")
    results = Results(folder, "train", jax_side.describe() | {"devices": count, "remat": REMAT})
    todo = [way for way in ways(count) if way.name not in results.cases]
    threads = ThreadPoolExecutor(2 * len(ways(count)))
    with turn.beside_others():
        start = time.perf_counter()
        processes.self_test(sharding.make_mesh(), 60)
        results.say(f"devices summed a number each after {time.perf_counter() - start:.1f} s")
        programs = _compile(todo, SIZES[size], threads, results)
        shapes = build(SIZES[size], Way("", (0,), PAIRS)).arguments
        weights = jax_side.fill((shapes[0].trainable, shapes[1]))
        host = *weights, pairs(SIZES[size], PAIRS * count)
        results.say("weights and batch made")
        wait([future for both in programs.values() for future in both], COMPILING)
        results.say("compiled")
    threads.shutdown(wait=False)
    turn.alone()
    results.say("alone on the machine")
    for size_bytes in BYTES if size == "full" else BYTES[:1]:
        results.run(f"sum/{size_bytes}", lambda n=size_bytes: _sum(n, REPEATS[size]))
    kept: dict[str, Any] = {}  # of the ways whose batch is the same
    ready: list[Any] = []  # to step on one device each
    for way in todo:
        one = not way.probed and len(way.devices) == 1
        single = ready if one else None
        results.run(way.name, lambda: _measure(way, programs, host, kept, size, single))  # noqa: B023
        if way.name.startswith("weak/"):
            for metric in ("ms", "ms_queued"):
                results.ratio(f"efficiency/{way.name}.{metric}", "weak/1", way.name, metric)
        if way.name.startswith("fsdp/"):
            results.ratio(f"slowdown/{way.name}", way.name, f"weak/{count}", "ms")
    if len(ready) == count:
        results.run("together", lambda: _together(ready, REPEATS[size]))
        results.ratio("efficiency/together", "weak/1", "together", "ms")
        results.ratio(f"efficiency/weak/{count} of together", "together", f"weak/{count}", "ms")
    if f"same/1-in-{count}" in kept:
        results.run("agreement", lambda: _agreement(kept, f"same/1-in-{count}"))


def _compile(
    todo: list[Way], size: Size, threads: ThreadPoolExecutor, results: Results
) -> dict[str, list[Future]]:
    """[made, step, probe] of each way; the first alone, since the others find its tuning done."""

    def compiled(lowered: Any, name: str, options: Any) -> Any:
        begin = time.perf_counter()
        program = lowered.compile(options)
        results.say(f"{name}: compiled in {time.perf_counter() - begin:.1f} s")
        return program

    made: dict[str, list[Future]] = {}
    for way in todo:
        shaped: Future = Future()
        made[way.name] = [shaped]
        try:
            found = build(size, way)
            lowered = {"step": found.step.lower(*found.arguments)}
            if way.probed:
                lowered["probe"] = found.probe.lower(*found.arguments)
        except EXPECTED as error:
            shaped.set_exception(error)
            continue
        options = setup.compiler_options(way.xla)
        shaped.set_result(found)
        for name, low in lowered.items():
            made[way.name].append(threads.submit(compiled, low, f"{way.name} {name}", options))
        if len(made) == 1:
            wait(made[way.name], COMPILING / 2)
    return made


def _measure(
    way: Way, programs: dict, host: tuple, kept: dict, size: str, ready: list | None
) -> dict[str, Any]:
    """Times of a step and memory; leaves losses and gradients in `kept`, and itself in `ready`."""
    made, step, *probe = (future.result(timeout=0) for future in programs[way.name])
    mesh, (trainable, frozen, batch) = way.mesh, host
    devices = list(mesh.devices.flat)
    before = [_in_use(device) for device in devices]
    weights = sharding.place(frozen, sharding.by_shape(mesh))
    jax.block_until_ready(weights)
    figures: dict[str, Any] = {
        "devices": len(devices),
        "samples": 2 * way.pairs,
        "base_gib_computed": _bytes(weights) / GIB,
        "base_gib": [(_in_use(d) - b) / GIB for d, b in zip(devices, before, strict=True)],
        "compiler_gib": plan.memory(step) / GIB,
    }
    everywhere = sharding.replicated(mesh)
    state = init_state(trainable, make_optimizer(made.config.optim))
    mine = {name: value[: way.pairs] for name, value in batch.items()}
    key = sharding.place(jax.random.key(3), everywhere)
    held = [sharding.place(state, everywhere), weights, sharding.to_device(mine, mesh), key]
    del state, weights
    if probe:
        found = jax.device_get(probe[0](*held))
        loss = losses.objective(made.config.objective, jnp.asarray(found.err), None, None)
        # Micro-batch a has every A-th pair.
        errors = found.err.reshape(way.accumulation, -1, 2).swapaxes(0, 1).reshape(-1, 2)
        kept[way.name] = {"errors": errors, "loss": float(loss)}
        figures["loss"] = kept[way.name]["loss"]

    def call() -> dict:
        held[0], stats = step(*held)
        return jax.block_until_ready(stats)

    figures["grad_norm"] = float(call()["grad_norm"])
    if way.probed:  # the first moment after one step is a tenth of the clipped gradient
        moment = optax.tree.get(held[0].opt_state, "mu")
        kept[way.name]["gradient"] = [np.asarray(leaf) for leaf in jax.tree.leaves(moment)]
        kept[way.name]["grad_norm"] = figures["grad_norm"]
    repeats = max(1, REPEATS[size] // way.accumulation)
    figures |= measure.timed(call, repeats)
    if ready is None or way.name.startswith("weak/"):
        start = time.perf_counter()
        for _ in range(repeats):  # as the loop does it, which waits for no step
            held[0], stats = step(*held)
        jax.block_until_ready(stats)
        figures["ms_queued"] = 1e3 * (time.perf_counter() - start) / repeats
    figures["samples_per_s"] = figures["samples"] / figures["ms"] * 1e3
    figures["peak_gib"] = max(_in_use(device, "peak_bytes_in_use") for device in devices) / GIB
    if ready is not None:
        ready.append((step, held))
    return figures


def _together(ready: list, repeats: int) -> dict[str, Any]:
    def call() -> None:
        told = []
        for step, held in ready:
            held[0], stats = step(*held)
            told.append(stats)
        jax.block_until_ready(told)

    return measure.timed(call, repeats)


def _agreement(kept: dict, one: str) -> dict[str, Any]:
    """How far every way is from the step of one device on the same pairs, as shares."""
    figures: dict[str, Any] = {}
    first = kept[one]
    length = np.sqrt(sum(float(np.square(leaf).sum()) for leaf in first["gradient"]))
    for name, other in kept.items():
        if name == one:
            continue
        apart = sum(
            float(np.square(a - b).sum())
            for a, b in zip(first["gradient"], other["gradient"], strict=True)
        )
        errors = np.abs(other["errors"] / first["errors"] - 1)
        figures |= {
            f"{name}.loss": abs(other["loss"] / first["loss"] - 1),
            f"{name}.errors": float(errors.max()),
            f"{name}.grad_norm": abs(other["grad_norm"] / first["grad_norm"] - 1),
            f"{name}.gradient": float(np.sqrt(apart) / length),
        }
    return figures


def _sum(size: int, repeats: int) -> dict[str, Any]:
    """All devices sum `size` bytes each; bytes a second that a device sends, as NCCL counts."""
    mesh = sharding.make_mesh()
    count = mesh.devices.size
    add = jax.jit(lambda rows: rows.sum(0), out_shardings=sharding.replicated(mesh))
    rows = jax.device_put(np.ones((count, size // 4), np.float32), sharding.by_example(mesh))
    figures = measure.timed(lambda: jax.block_until_ready(add(rows)), repeats)
    moved = 2 * (count - 1) / count * size
    return figures | {"gb_per_s": moved / figures["ms_min"] / 1e6}


def _bytes(tree: Any) -> int:
    """Of one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def _in_use(device: Any, name: str = "bytes_in_use") -> int:
    return (device.memory_stats() or {}).get(name, 0)
