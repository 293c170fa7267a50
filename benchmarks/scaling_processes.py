"""Two processes with half of the GPUs each train a toy as one with all of them; for `scaling.py`.

What runs is `python train.py`, as on two hosts; the data are random rows of the toybox's shapes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, pipeline, turn
from benchmarks.measure import Size
from benchmarks.scaling import ROOT, Results
from dso_jax.cli.environment import cuda_plugins
from dso_jax.models import LoRAConfig
from dso_jax.training import plan
from weight_port import read_peft_adapter

STEPS = {"full": 10, "small": 2}
PAIRS = 16  # a step
TOKENS = 16  # of the toybox's conditions
LIMIT = {"full": 75, "small": 300}  # seconds
DEVICES = {"full": 4, "small": 2}
METRICS = ("loss", "loss_win", "loss_lose", "grad_norm", "param_norm")


def main(folder: Path, size: str) -> None:
    """Starts all three processes at once and compares what they leave behind."""
    results = Results(folder, "processes", measure.versions("jax", "jaxlib", "orbax-checkpoint"))
    with turn.beside_others(), tempfile.TemporaryDirectory() as name:
        results.run("train.py", lambda: _compare(Path(name), size))


def _compare(folder: Path, size: str) -> dict[str, Any]:
    shape = Size(plan.flow_config("toybox"), TOKENS, LoRAConfig(), 0)
    pipeline.write(folder / "data", shape, objects=16, images=False, edge=0)
    devices = _devices(size)
    half = len(devices) // 2
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    several = [f"--system.coordinator=localhost:{port}", "--system.processes=2"]
    begin = time.perf_counter()
    started = [_start(folder, "one", size, devices, ["--system.processes=1"])]
    for number, own in enumerate((devices[:half], devices[half:])):
        more = [*several, f"--system.process={number}"]
        started.append(_start(folder, "two", size, own, more))
    said = []
    try:
        for process in started:
            text, _ = process.communicate(timeout=LIMIT[size] - (time.perf_counter() - begin))
            said.append(text)
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    if any(codes):
        failed = next(text for text, code in zip(said, codes, strict=True) if code)
        raise RuntimeError(f"exit codes {codes}: ...{failed[-1500:]}")
    if "process 0 of 2" not in said[1]:
        raise RuntimeError(f"the two did not train together: ...{said[1][-1500:]}")
    return _apart(folder / "one", folder / "two") | {
        "seconds": time.perf_counter() - begin,
        "devices": devices,
    }


def _start(
    folder: Path, name: str, size: str, devices: list[str], more: list[str]
) -> subprocess.Popen:
    visible = ",".join(devices) if cuda_plugins() else f"cpu:{len(devices)}"
    command = [sys.executable, "train.py", "--config", "configs/toybox-dro.yaml"]
    command += [f"--devices={visible}", f"--data={folder / 'data'}", f"--out={folder / name}"]
    command += [f"--train.steps={STEPS[size]}", f"--train.batch_size={PAIRS}", *more]
    command += ["--train.log_every=1", "--optim.warmup_steps=1"]
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environ = os.environ | {"XLA_FLAGS": ""}
    return subprocess.Popen(command, cwd=ROOT, env=environ, **pipe)


def _devices(size: str) -> list[str]:
    """Numbers of the GPUs, or of as many virtual devices."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible:
        return visible.split(",")
    if cuda_plugins():
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
        return [str(number) for number in range(len(told.stdout.splitlines()))]
    return [str(number) for number in range(DEVICES[size])]


def _apart(one: Path, two: Path) -> dict[str, Any]:
    """The largest difference of each logged figure as a share, and that of the adapters."""
    logs = []
    for folder in (one, two):
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logs.append([row for row in map(json.loads, lines) if row["kind"] == "train"])
    figures: dict[str, Any] = {"steps": len(logs[0])}
    for metric in METRICS:
        a, b = (np.array([row[metric] for row in rows]) for rows in logs)
        figures[metric] = float(np.abs(b - a).max() / np.abs(a).max())
    ours, theirs = (read_peft_adapter(folder / "adapter")[0] for folder in (one, two))
    flat = [_leaves(tree) for tree in (ours, theirs)]
    apart = max(float(np.abs(a - b).max()) for a, b in zip(*flat, strict=True))
    figures["adapter"] = apart / max(float(np.abs(a).max()) for a in flat[0])
    return figures


def _leaves(tree: Any) -> list[np.ndarray]:
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])]
    return [np.asarray(tree)]
