"""Loading a flow model and its accuracy in bf16, beside torch on the same device.

    python benchmarks/weights.py --out benchmarks/results/weights.json          # full size
    python benchmarks/weights.py --size tiny                                    # seconds, anywhere

Random weights in the published types (555.5 M parameters, 1.13 GB at full size) are written once.
Each measurement has a process of its own, so that none inherits the memory of another, and so that
two CUDA runtimes never meet. Accuracy: the same inputs through torch and through us, in bf16 and in
fp32 (no TF32); errors are taken against torch's fp32. Needs torch and safetensors.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dso_jax.models import FlowConfig  # noqa: E402

SIZES = {
    "full": FlowConfig(),
    "tiny": FlowConfig(
        resolution=4, model_channels=96, cond_channels=48, num_blocks=3, num_heads=2
    ),
}
COND_TOKENS = {"full": 1374, "tiny": 20}
POLL_SECONDS = 0.002


def main() -> int:
    """Runs every measurement and writes one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--batch", type=int, default=2, help="samples of the accuracy check")
    parser.add_argument("--repeat", type=int, default=5, help="loads; the first one is apart")
    parser.add_argument("--out", type=Path, help="JSON file; standard output otherwise")
    parser.add_argument("--work", type=Path, help="folder for weights and outputs (4 GB)")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, *arguments = options.part
        print(json.dumps(PARTS[name](options, *arguments)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        report = measure(options, Path(folder))
    text = json.dumps(report, indent=2) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text, end="")
    return 0


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every part in its own process; see the module's text."""
    weights, inputs = folder / "flow.safetensors", folder / "inputs.npz"
    write_weights(SIZES[options.size], weights)
    write_inputs(options, inputs)

    def part(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--size", options.size]
        command += ["--repeat", str(options.repeat), "--part", *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    report: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "file_bytes": weights.stat().st_size,
        "load": {name: part(f"load_{name}", str(weights)) for name in ("jax", "torch")},
    }
    outputs = {}
    for name in ("torch", "jax"):
        for dtype in ("float32", "bfloat16"):
            out = folder / f"{name}-{dtype}.npy"
            part(f"forward_{name}", dtype, str(weights), str(inputs), str(out))
            outputs[name, dtype] = np.load(out).astype(np.float64)
    truth = outputs.pop(("torch", "float32"))
    report["error_against_torch_fp32"] = {
        f"{name} {dtype}": {
            "rms": float(np.sqrt(np.mean((v - truth) ** 2) / np.mean(truth**2))),
            "max": float(np.abs(v - truth).max() / np.abs(truth).max()),
        }
        for (name, dtype), v in outputs.items()
    }
    errors = report["error_against_torch_fp32"]
    report["bf16_error_ours_over_torchs"] = {
        kind: errors["jax bfloat16"][kind] / errors["torch bfloat16"][kind]
        for kind in ("rms", "max")
    }
    return report


def write_weights(config: FlowConfig, path: Path) -> None:
    """Random weights with the types of the release; no layer is left at zero."""
    from dso_jax.models.embedding import position_embedding
    from weight_port import files, models

    rng = np.random.default_rng(0)
    tensors = {}
    for slot in models.slots("flow", config):
        for name in slot.names:
            shape = slot.torch_shape
            value = rng.standard_normal(shape, dtype=np.float32)
            if name == "pos_emb":
                value = position_embedding(config)
            elif len(shape) == 2 and not name.endswith("gamma"):
                value *= shape[1] ** -0.5
            else:
                value = 0.1 * value + (not name.endswith("bias"))
            tensors[name] = value.astype(np.float16 if slot.rule.half else np.float32)
    files.write(path, tensors)


def write_inputs(options: argparse.Namespace, path: Path) -> None:
    """Latents, times and conditions, all fp32."""
    config, rng = SIZES[options.size], np.random.default_rng(1)
    edge = config.resolution
    x = rng.standard_normal((options.batch, config.in_channels, edge, edge, edge), np.float32)
    shape = (options.batch, COND_TOKENS[options.size], config.cond_channels)
    t = np.linspace(0.2, 0.9, options.batch, dtype=np.float32)
    np.savez(path, x=x, t=t, cond=rng.standard_normal(shape, np.float32))


def load_jax(options: argparse.Namespace, weights: str) -> dict[str, Any]:
    """`weight_port` onto the default device, blocks in bf16."""
    import jax
    import jax.numpy as jnp

    import weight_port
    from dso_jax.pretrained.placement import place
    from weight_port import files

    jnp.zeros(1).block_until_ready()

    def load() -> Any:
        return weight_port.from_torch(
            "flow",
            SIZES[options.size],
            files.read(weights).tensors,
            dtype=np.float32,
            half=jnp.bfloat16,
            place=lambda leaf: place(leaf, None),
        )

    device = jax.devices()[0]
    leaves = jax.tree.leaves(load())
    record = {"device": device.device_kind, "jax": jax.__version__}
    record["largest_leaf_bytes"] = max(leaf.nbytes for leaf in leaves)
    del leaves
    return record | timed(load, options.repeat, device.memory_stats)


def load_torch(options: argparse.Namespace, weights: str) -> dict[str, Any]:
    """safetensors' own loader onto the device, fp16 tensors then cast to bf16 there."""
    import torch
    from safetensors.torch import load_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.zeros(1, device=device)

    def load() -> Any:
        tensors = load_file(weights, device=device)
        half = torch.float16
        tensors = {k: v.bfloat16() if v.dtype == half else v for k, v in tensors.items()}
        if device == "cuda":
            torch.cuda.synchronize()
        return tensors

    load()
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__} | timed(load, options.repeat, None)


def timed(
    load: Callable[[], Any], repeat: int, stats: Callable[[], dict | None] | None
) -> dict[str, Any]:
    """Seconds of each load, and how far anonymous host memory grew above its start meanwhile."""
    seconds, growth = [], []
    for _ in range(repeat):
        start, peak, done = anonymous_bytes(), 0, threading.Event()

        def watch(done: threading.Event = done) -> None:
            nonlocal peak
            while not done.wait(POLL_SECONDS):
                peak = max(peak, anonymous_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        kept = load()
        seconds.append(time.perf_counter() - began)
        done.set()
        watcher.join()
        growth.append(max(peak, anonymous_bytes()) - start)
        del kept
    peak_device = (stats() or {}).get("peak_bytes_in_use") if stats else None
    return {
        "seconds": seconds,
        "median_seconds": float(np.median(seconds)),
        "host_growth_bytes": max(growth),
        "device_peak_bytes": peak_device,
    }


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process (the mapped file is not anonymous)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def forward_jax(
    options: argparse.Namespace, dtype: str, weights: str, inputs: str, out: str
) -> dict[str, Any]:
    import jax

    import weight_port
    from dso_jax.models import apply_flow
    from weight_port import files

    config, data = SIZES[options.size], np.load(inputs)
    params = weight_port.from_torch(
        "flow", config, files.read(weights).tensors, dtype=np.float32, half=np.dtype(dtype)
    )
    apply = jax.jit(lambda p, x, t, c: apply_flow(config, p, x, t, c, dtype=dtype))
    velocity = apply(params, data["x"], data["t"], data["cond"])
    np.save(out, np.asarray(velocity))
    return {}


def forward_torch(
    options: argparse.Namespace, dtype: str, weights: str, inputs: str, out: str
) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    from tests.reference.torch_flow import SparseStructureFlowModel

    config = dict(SIZES[options.size].__dict__)
    del config["pe_mode"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SparseStructureFlowModel(**config)
    model.load_state_dict(load_file(weights))
    model = model.to(device).cast_torso(getattr(torch, dtype)).eval()
    data = np.load(inputs)
    x, t, cond = (torch.from_numpy(data[name]).to(device) for name in ("x", "t", "cond"))
    with torch.inference_mode():
        velocity = model(x, 1000 * t, cond)
    np.save(out, velocity.float().cpu().numpy())
    return {}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "load_jax": load_jax,
    "load_torch": load_torch,
    "forward_jax": forward_jax,
    "forward_torch": forward_torch,
}

if __name__ == "__main__":
    sys.exit(main())
