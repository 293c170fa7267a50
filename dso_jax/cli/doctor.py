"""`dso doctor`: what is installed, what works, what is missing and what that disables."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dso_jax.cli import environment

REQUIRED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "mujoco", "mujoco-mjx")
REQUIRED += ("trimesh", "numpy", "scipy", "scikit-image", "pyarrow", "safetensors")
OPTIONAL = {
    "torch": ("reading .pt files, parity tests, benchmarks against torch", "torch"),
    "peft": ("checking exported adapters with PEFT itself", "torch"),
    "huggingface_hub": ("generators by their name on the Hugging Face hub", "hub"),
    "onnxruntime": ("removing the background of images without transparency", "background"),
}
ATTENTION: tuple[Literal["xla", "cudnn"], ...] = ("xla", "cudnn")
TOYBOX_PARTS = ("flow", "decoder", "encoder")


def main(argv: Sequence[str]) -> int:
    """Prints the examination; exit code 1 if a package is missing or JAX finds no device."""
    parser = argparse.ArgumentParser(prog="dso doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    report = examine()
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    return 0 if report["usable"] else 1


def examine() -> dict:
    """Collects the facts; see `show` for their meaning.

    Returns:
        versions (package -> version or None), platform, devices, device_error, attention (backend
        -> "works" or the reason why not), compilation_cache, missing (what, disables, remedy) and
        usable.
    """
    versions = {"python": platform.python_version()}
    versions |= {name: _version(name) for name in ("dso-jax", *REQUIRED, *OPTIONAL)}
    devices, device_error = _devices() if versions["jax"] else ([], "jax is not installed")
    on_gpu = any(device["platform"] != "cpu" for device in devices)
    return {
        "versions": versions,
        "platform": platform.platform(),
        "devices": devices,
        "device_error": device_error,
        "attention": {name: _attention(name) for name in ATTENTION} if devices else {},
        "compilation_cache": os.environ.get("JAX_COMPILATION_CACHE_DIR") or None,
        "missing": _missing(versions, on_gpu),
        "usable": bool(devices) and all(versions[name] for name in REQUIRED),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[list[dict], str | None]:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:  # JAX_PLATFORMS names one that JAX cannot start
        return [], str(error).splitlines()[0]
    return [
        {"id": d.id, "platform": d.platform, "kind": d.device_kind, "memory_bytes": _memory(d)}
        for d in devices
    ], None


def _memory(device) -> int | None:
    """Bytes that JAX may use of the device, where it says so (a CPU does not)."""
    statistics = device.memory_stats()
    return None if statistics is None else statistics.get("bytes_limit")


def _attention(implementation: Literal["xla", "cudnn"]) -> str:
    """Runs attention and its gradient at the head size of TRELLIS, in the dtype of training."""
    import jax
    import jax.numpy as jnp

    def loss(query):
        out = jax.nn.dot_product_attention(query, query, query, implementation=implementation)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    query = jnp.ones((1, 128, 2, 64), jnp.bfloat16)
    try:
        gradient = jax.jit(jax.grad(loss))(query)
        finite = bool(jnp.isfinite(gradient.astype(jnp.float32)).all())
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return str(error).splitlines()[0][:120]
    return "works" if finite else "gives non-finite gradients"


def _missing(versions: dict[str, str | None], on_gpu: bool) -> list[dict[str, str]]:
    missing = [
        {"what": name, "disables": "everything", "remedy": environment.install("dev")}
        for name in REQUIRED
        if not versions[name]
    ]
    missing += [
        {"what": name, "disables": disables, "remedy": environment.install(extra)}
        for name, (disables, extra) in OPTIONAL.items()
        if not versions[name]
    ]
    if not on_gpu:
        missing.append(_missing_gpu())
    weights = Path(__file__).parent.parent / "toybox" / "weights"
    absent = [part for part in TOYBOX_PARTS if not list(weights.rglob(f"{part}.safetensors"))]
    if absent:
        what = f"toybox weights ({', '.join(absent)})"
        remedy = "dso toybox pretrain (minutes on one GPU)"
        missing.append({"what": what, "disables": "dso demo", "remedy": remedy})
    return missing


def _missing_gpu() -> dict[str, str]:
    plugins = environment.cuda_plugins()
    if plugins:
        remedy = f"{plugins[0]} is installed but JAX uses none: check the driver and --devices"
    elif shutil.which("nvidia-smi"):
        remedy = f"this machine has an NVIDIA driver: {environment.install('cuda13')} (or cuda12)"
    else:
        remedy = "none on this machine; everything runs on the CPU, training TRELLIS too slowly"
    disables = "cuDNN attention, training at TRELLIS size"
    return {"what": "a GPU that JAX can use", "disables": disables, "remedy": remedy}


def show(report: dict) -> None:
    """Prints the report of `examine` as tables."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    table = Table(title="dso doctor", title_justify="left", show_header=False, box=None)
    for name, version in report["versions"].items():
        table.add_row(name, version or "[yellow]not installed[/]")
    table.add_row("platform", escape(report["platform"]))
    for device in report["devices"]:
        memory = device["memory_bytes"]
        size = f", {memory / 2**30:.1f} GiB for JAX" if memory else ""
        table.add_row(f"device {device['id']}", f"{device['platform']}: {device['kind']}{size}")
    if report["device_error"]:
        table.add_row("devices", f"[red]{escape(report['device_error'])}[/]")
    for backend, outcome in report["attention"].items():
        colour = "green" if outcome == "works" else "yellow"
        table.add_row(f"attention {backend}", f"[{colour}]{escape(outcome)}[/]")
    table.add_row("compiled programs", escape(report["compilation_cache"] or "not kept"))
    console.print(table)
    for item in report["missing"]:
        text = (
            f"\nmissing: {item['what']}\n  disables: {item['disables']}\n  remedy: {item['remedy']}"
        )
        console.print(escape(text))
    console.print("\nready" if report["usable"] else "\n[red]not usable[/]")
