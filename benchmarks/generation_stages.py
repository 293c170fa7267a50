"""Stages of `dso generate` alone, warm, with their inputs on the device.

Legend: B samples a call, G images, S condition tokens, D width, R edge of a grid.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import sim_mjx
from benchmarks import measure
from benchmarks.generation_inputs import Size, realistic_logits
from dso_jax import conditioning, pretrained
from dso_jax.generation import generate
from dso_jax.generation.generator import fast_execution
from dso_jax.models import Execution, apply_decoder
from dso_jax.sampler import SamplerConfig
from dso_jax.training import flops
from sim_mjx.stream import DropStream

# Ways to run the sampler beside that of the command: fields of `Execution`, and XLA's options.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "": ({}, {}),
    "-fused": ({"projections": "fused"}, {}),
    "-xla-norms": ({"norms": "xla"}, {}),
    "-triton": ({}, {"xla_gpu_enable_triton_gemm": True}),
}
SECONDS = 2.0  # a case is called until so much is measured
# Precision of fp32 products: what torch does by default, fp32 out of 16-bit products, and TF32.
PRECISIONS = ("highest", "BF16_BF16_F32_X3", "TF32_TF32_F32_X3", "TF32_TF32_F32")


def sampler(record, work: Path, size: Size, batches: list[int], options) -> None:
    """From seeds to latents; the B samples of a call are of B / 4 images."""
    dtype = _dtype()
    usual = fast_execution() if _on_gpu() else Execution(dtype=dtype)
    base = pretrained.load(str(work / "pipeline"), dtype=dtype)
    wanted, programs = {}, {}
    for batch in batches:
        for way, (fields, xla) in WAYS.items():
            if way and batch != batches[0]:
                continue
            name = f"sampler/b{batch}{way}"
            if _asked(record, name, options):
                execution = dataclasses.replace(usual, **fields)
                wanted[name] = (batch, execution, xla if _on_gpu() else {})
    with ThreadPoolExecutor(4) as pool:  # XLA compiles side by side
        for name, (batch, execution, xla) in wanted.items():
            work_of = (base, size, batch, execution, xla, options.samples)
            programs[name] = pool.submit(_compiled_sampler, *work_of)
    for name, (batch, execution, xla) in wanted.items():
        about = {"batch": batch, "execution": str(execution), "xla": xla, "device": _kind()}
        record.run(name, lambda p=programs[name], b=batch: _sampler(p.result(), b), **about)


def _compiled_sampler(base, size: Size, batch: int, execution: Execution, xla: dict, samples: int):
    images = max(1, batch // samples)
    run = generate._sampler(base.flow_config, None, SamplerConfig(), execution)
    tokens = 1 + size.encoder.num_registers + size.encoder.grid**2
    shape = (images, tokens, size.flow.cond_channels)
    cond = jax.random.normal(jax.random.key(0), shape).astype(execution.dtype)
    seeds = jnp.arange(batch, dtype=jnp.uint32).reshape(images, -1)
    started = time.monotonic()
    program = run.lower(base.flow_params, cond, seeds).compile(xla)
    seconds = time.monotonic() - started
    counted = flops.count(run, base.flow_params, cond, seeds)
    return program, (base.flow_params, cond, seeds), seconds, counted


def _sampler(made, batch: int) -> dict[str, Any]:
    program, arguments, compiling, counted = made
    need = program.memory_analysis()
    figures = {"compile_s": compiling} | _timed(lambda: program(*arguments))
    figures["samples_per_s"] = batch / figures["ms"] * 1e3
    figures["temporary_gib"] = need.temp_size_in_bytes / measure.GIB if need else 0.0
    return measure.rates(figures, executed=counted)


def encode(record, work: Path, size: Size, batches: list[int], options) -> None:
    """DINOv2 on `conditioning.BATCH` pictures; errors against fp32."""
    config, params = pretrained.load_image_encoder(str(work / "encoder.safetensors"))
    count = conditioning.BATCH if options.size == "full" else 2
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.integers(0, 255, (count, *[config.image_size] * 2, 3), np.uint8))

    def features(params: dict, pixels: jax.Array, dtype: str) -> jax.Array:
        return conditioning.features(config, params, pixels, dtype=dtype)

    ways = {f"encode/{name}": (name, "float32") for name in PRECISIONS}
    ways["encode/bfloat16"] = ("highest", "bfloat16")
    _compare(record, ways, options, features, (params, pixels), count)


def decode(record, work: Path, size: Size, batches: list[int], options) -> None:
    """The structure decoder on 16 latents; errors against fp32."""
    folder = pretrained.resolve(str(work / "pipeline"))
    config, params, _ = pretrained.load_model(folder, pretrained.DECODER)
    count = 16 if options.size == "full" else 2
    shape = (count, size.flow.in_channels, *[size.flow.resolution] * 3)
    latents = jax.random.normal(jax.random.key(1), shape)

    def logits(params: dict, latents: jax.Array, dtype: str) -> jax.Array:
        return apply_decoder(config, params, latents, dtype=dtype)[:, 0]

    ways = {
        "decode/fp32": ("highest", "float32"),
        "decode/tf32": ("high", "float32"),
        "decode/fp16": ("highest", "float16"),
        "decode/bf16": ("highest", "bfloat16"),
    }
    _compare(record, ways, options, logits, (params, latents), count)


def _compare(record, ways, options, function: Callable, arguments: tuple, count: int) -> None:
    """The same function at several precisions, the first of which is the truth."""
    programs = {}
    truth: list[np.ndarray] = []

    def measured(name: str) -> dict[str, Any]:
        program, seconds = programs[name].result()
        figures = {"compile_s": seconds} | _timed(lambda: program(*arguments))
        figures["ms_a_row"] = figures["ms"] / count
        found = np.asarray(program(*arguments), np.float64)
        if name == next(iter(ways)):
            truth.append(found)
        if not truth:
            return figures
        flipped = float(np.mean((found > 0) != (truth[0] > 0)))
        return figures | _error(found, truth[0]) | {"signs_flipped": flipped}

    with ThreadPoolExecutor(4) as pool:  # XLA compiles side by side; traces are made here
        for name, (precision, dtype) in ways.items():
            if not _asked(record, name, options):
                continue
            with _precision(precision):
                run = jax.jit(functools.partial(function, dtype=dtype))
                programs[name] = pool.submit(_compile, run.trace(*arguments))
    for name in programs:
        record.run(name, functools.partial(measured, name))


def _compile(traced: Any) -> tuple[Any, float]:
    started = time.monotonic()
    return traced.lower().compile(), time.monotonic() - started


def conv(record, work: Path, size: Size, batches: list[int], options) -> None:
    """A 3^3 convolution of each level of the decoder, four ways, 16 samples."""
    edge, jobs = size.flow.resolution, {}
    with ThreadPoolExecutor(4) as pool:
        for level, width in enumerate(size.decoder.channels):
            side = edge * 2**level
            keys = jax.random.split(jax.random.key(level))
            x = jax.random.normal(keys[0], (16, *[side] * 3, width), jnp.float16)
            kernel = jax.random.normal(keys[1], (3, 3, 3, width, width), jnp.float16) * 0.01
            for way, function in CONVOLUTIONS.items():
                name = f"conv/{side}^3x{width}-{way}"
                if _asked(record, name, options):
                    dtype = jnp.float32 if way == "fp32" else jnp.float16
                    arguments = x.astype(dtype), kernel.astype(dtype)
                    traced = jax.jit(function).trace(*arguments)
                    jobs[name] = pool.submit(_compile, traced), arguments
    for name, (program, arguments) in jobs.items():
        record.run(name, functools.partial(_convolution, program, *arguments))


def _convolution(compiled: Future, x: jax.Array, kernel: jax.Array) -> dict[str, Any]:
    program, seconds = compiled.result()
    figures = {"compile_s": seconds} | _timed(lambda: program(x, kernel), seconds=0.3)
    return measure.rates(figures, executed=2 * x.size * 27 * kernel.shape[-1])


def _cudnn(x: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers = ("NXYZC", "XYZIO", "NXYZC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=numbers)


def _fp32(x: jax.Array, kernel: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return _cudnn(x, kernel)


def _planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As a convolution in two dimensions over three planes that lie side by side as channels."""
    batch, side, width = x.shape[0], x.shape[1], x.shape[-1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    near = jnp.concatenate([padded[:, i : i + side] for i in range(3)], -1)
    flat = near.reshape(batch * side, side, side, 3 * width)
    weights = jnp.moveaxis(kernel, 0, 2).reshape(3, 3, 3 * width, -1)
    numbers = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(flat, weights, (1, 1), "SAME", dimension_numbers=numbers)
    return out.reshape(batch, side, side, side, -1)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As one product with all 27 neighbours side by side."""
    side = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
    spans = [slice(i, i + side) for i in range(3)]
    near = jnp.concatenate([padded[:, a, b, c] for a in spans for b in spans for c in spans], -1)
    return near @ kernel.reshape(-1, kernel.shape[-1])


CONVOLUTIONS = {"cudnn": _cudnn, "planes": _planes, "product": _product, "fp32": _fp32}


def labels(record, work: Path, size: Size, batches: list[int], options) -> None:
    """Bodies of voxelised meshes on one thread, and drops with the device for themselves."""
    protocol = sim_mjx.Protocol.resolve("dso-eval")
    logits = realistic_logits(size.solids)
    started, cpu = time.monotonic(), time.process_time()
    bodies, reasons = sim_mjx.bodies_from_occupancy(logits, saturation=protocol.saturation)
    spent = {"wall_ms": time.monotonic() - started, "cpu_ms": time.process_time() - cpu}
    record.run("labels/bodies", lambda: {k: 1e3 * v / len(logits) for k, v in spent.items()})
    good = np.flatnonzero([reason is None for reason in reasons])
    rows = np.resize(good, options.drops)
    many = jax.tree.map(lambda leaf: leaf[rows], bodies)

    def dropped(count: int, slots: int | None) -> dict[str, Any]:
        part = jax.tree.map(lambda leaf: leaf[:count], many)
        with DropStream(protocol, slots=slots) as stream:
            stream.put(part)
            stream.close()
            started = time.monotonic()
            ((_, rest),) = stream.results()
        seconds = time.monotonic() - started
        stable = float(np.mean(rest.stable(protocol)))
        return {"seconds": seconds, "labels_per_s": count / seconds, "stable": stable}

    for slots in (4096, 1024, None):
        for count in (options.drops, 256):
            name = f"labels/{count}-in-{slots or 'default'}"
            if _asked(record, name, options) and (slots or count != 256):
                about = {"slots": slots, "count": count}
                record.run(name, lambda s=slots, c=count: dropped(c, s) and dropped(c, s), **about)


@contextlib.contextmanager
def _precision(name: str) -> Iterator[None]:
    """The networks ask for "highest" where they are traced; gives them another one."""
    real = jax.default_matmul_precision
    with mock.patch.object(jax, "default_matmul_precision", lambda _: real(name)):
        yield


def _timed(call: Callable[[], Any], seconds: float = SECONDS) -> dict[str, Any]:
    """Milliseconds of a call: a first one apart, then until `seconds` are full, two at least.

    One is enough where it takes five times as long.
    """
    jax.block_until_ready(call())
    spent: list[float] = []
    while (len(spent) < 2 and sum(spent) < 5 * seconds) or sum(spent) < seconds:
        if len(spent) == 20:
            break
        started = time.perf_counter()
        jax.block_until_ready(call())
        spent.append(time.perf_counter() - started)
    return {"ms": 1e3 * float(np.median(spent)), "ms_min": 1e3 * min(spent), "calls": len(spent)}


def _error(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    apart = found - truth
    return {
        "rms_error": float(np.sqrt(np.mean(apart**2) / np.mean(truth**2))),
        "largest_error": float(np.abs(apart).max() / np.abs(truth).max()),
    }


def _asked(record, name: str, options: argparse.Namespace) -> bool:
    there = name in record.cases and "error" not in record.cases[name]
    return not there and re.search(options.cases, name) is not None


def _dtype() -> Any:
    return "bfloat16" if _on_gpu() else "float32"


def _on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def _kind() -> str:
    return jax.devices()[0].device_kind
