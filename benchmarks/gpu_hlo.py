"""What a training step would do on an H200, without one: compiled for it here, then counted.

    pip install 'jax[cuda12]'                          the compiler; no GPU is needed
    python benchmarks/gpu_hlo.py                       every way of `cases.WAYS`, DRO, 12 samples
    python benchmarks/gpu_hlo.py -f 'products|full' --out benchmarks/results/gpu_hlo.json

Each way is compiled for TRELLIS-image-large at full width from shapes alone (XLA compiles for a
described GPU), and its kernels are counted by `hlo_cost`: copies, elementwise passes, products and
attention calls, with their bytes and operations, and the compiler's own figure of memory. The
milliseconds are an estimate by bandwidth and rates, to rank ways before a GPU's time is spent on
them: on the steps that were measured on an H200 it is 0 to 10 % low. Kernels are not tuned as they
would be on the device (no autotuning), and cuDNN's workspace is not in the memory.

A way that unrolls the blocks is compiled with 2 and with 4 of them and extended by a line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from benchmarks import hlo_cost  # noqa: E402
from benchmarks.cases import OBJECTIVES, REMAT, USUAL, WAYS  # noqa: E402
from dso_jax.atomic import write_text  # noqa: E402
from dso_jax.cli.environment import cuda_plugins  # noqa: E402
from dso_jax.config import Config, SystemConfig, TrainConfig  # noqa: E402
from dso_jax.models import FlowConfig  # noqa: E402
from dso_jax.objectives import ObjectiveConfig  # noqa: E402
from dso_jax.training import plan, setup, sharding  # noqa: E402

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150754820096 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 patch: 2 } runtime_version { major: 12 minor: 8 }
"""
# Choose kernels without trying them.
FLAGS = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": "false"}
CUDNN = 91002  # the same version, as JAX asks for it
UNROLLED = (2, 4)  # blocks compiled in place of all
GROUPS = {"copy": "copies", "fill": "copies", "attention forward": "attention"}
GROUPS |= {"attention backward": "attention", "product": "products"}


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles the ways that match and prints a line of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Raw)
    parser.add_argument("-f", metavar="REGEX", default="", help="ways whose names match")
    parser.add_argument("--objective", choices=OBJECTIVES, default="dro")
    parser.add_argument("--samples", type=int, default=USUAL, help="latents in a step")
    parser.add_argument("--out", type=Path, help="a JSON file to write the figures to")
    options = parser.parse_args(argv)
    ways = {name: {"remat": name} for name in REMAT} | WAYS
    chosen = {name: way for name, way in ways.items() if re.search(options.f, name)}
    if not chosen:
        parser.error(f"-f {options.f}: matches none of {', '.join(ways)}")
    if not cuda_plugins():
        parser.error("needs XLA's compiler for CUDA, though no GPU: pip install 'jax[cuda12]'")
    # Read when the first program is compiled. The CPU runs what little runs.
    os.environ["XLA_FLAGS"] = " ".join(f"--{name}={value}" for name, value in FLAGS.items())
    jax.config.update("jax_platforms", "cpu")
    found: dict[str, Any] = {}
    record = {"jax": jax.__version__, "target": "NVIDIA H200", "xla": FLAGS, "measured": False}
    record |= {"objective": options.objective, "samples": options.samples, "ways": found}
    print(f"{'way':24}" + "".join(f"{title:>13}" for title in TITLES))
    for name, system in chosen.items():
        found[name] = figures(options.objective, options.samples, system)
        cells = "".join(f"{found[name][key]:13.1f}" for key in TITLES.values())
        print(f"{name:24}{cells}", flush=True)
        if options.out:
            write_text(options.out, json.dumps(record, indent=1) + "\n")
    return 0


Raw = argparse.RawDescriptionHelpFormatter
TITLES = {
    "estimate ms": "ms",
    "attention": "attention_ms",
    "products": "products_ms",
    "elementwise": "elementwise_ms",
    "copies": "copies_ms",
    "GB moved": "gigabytes",
    "kernels": "kernels",
    "GiB": "gib",
    "compile s": "compile_s",
}


def figures(objective: str, samples: int, system: dict[str, Any]) -> dict[str, float]:
    """What a step of all blocks takes; `system` as the ways of `cases.WAYS`."""
    flow = FlowConfig()
    if system.get("unroll", 1) == 1:
        return _compiled(objective, samples, system, flow.num_blocks)
    short, long = (_compiled(objective, samples, system, blocks) for blocks in UNROLLED)
    turns = (flow.num_blocks - UNROLLED[0]) / (UNROLLED[1] - UNROLLED[0])
    return {name: short[name] + turns * (long[name] - short[name]) for name in short}


def _compiled(
    objective: str, samples: int, system: dict[str, Any], blocks: int
) -> dict[str, float]:
    pairs = samples if objective == "sft" else samples // 2
    system = dict(system)
    train = TrainConfig(batch_size=pairs, accumulation=system.pop("accumulation", 1))
    config = Config(
        base="TRELLIS-image-large",
        data="",
        objective=ObjectiveConfig(name=objective),
        train=train,
        system=dataclasses.replace(SystemConfig(dtype="bfloat16", attention="cudnn"), **system),
    )
    with _without_a_gpu() as devices:
        mesh = sharding.make_mesh(devices)
        program = plan.build(config, dataclasses.replace(FlowConfig(), num_blocks=blocks), mesh)
        lowered = program.step.trace(*program.arguments).lower(lowering_platforms=("cuda",))
        begin = time.monotonic()
        compiled = lowered.compile(setup.compiler_options(config.system.xla))
    kernels = hlo_cost.kernels(compiled.as_text())
    sums = {"attention": 0.0, "products": 0.0, "elementwise": 0.0, "copies": 0.0}
    for kernel in kernels:
        sums[GROUPS.get(kernel.kind, kernel.kind)] += 1e3 * kernel.seconds
    found = {
        "ms": sum(sums.values()),
        **{f"{name}_ms": value for name, value in sums.items()},
        "gigabytes": sum(kernel.turns * kernel.bytes for kernel in kernels) / 1e9,
        "kernels": sum(kernel.turns for kernel in kernels),
        "gib": plan.memory(compiled) / 2**30,
        "compile_s": time.monotonic() - begin,
    }
    return {name: round(value, 2) for name, value in found.items()}


@contextlib.contextmanager
def _without_a_gpu() -> Iterator[list[Any]]:
    """An H200 that can be compiled for; JAX asks a real one for three things on the way."""
    with (
        mock.patch("jax._src.xla_bridge.canonicalize_platform", lambda name: "cuda"),
        mock.patch("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: CUDNN),
        mock.patch("dso_jax.models.attention.probe", lambda *_: None),
    ):
        described = topologies.get_topology_desc(
            platform="cuda", topology="1x1x1", target_config=H200
        )
        yield list(described.devices)


if __name__ == "__main__":
    sys.exit(main())
