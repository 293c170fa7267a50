"""What SLURM and Kubernetes do to start a recipe's processes, on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "configs" / "cluster"
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
# JAX makes the coordinator's port of the job's number, from here on.
_SLURM_PORT = 61440
# For `srun`: the job step's processes, with the variables from which JAX learns about them.
_SRUN = """#!{python}
import os, subprocess, sys
count = int(os.environ["SLURM_NTASKS"])
step = os.environ | {{"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}}
ranks = [{{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}} for i in range(count)]
both = [subprocess.Popen(sys.argv[1:], env=step | rank) for rank in ranks]
sys.exit(max(process.wait() for process in both))
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    """That of a job: `dso` is on its PATH, and `srun` as in SLURM."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name, text in {
        "dso": f'#!/bin/sh\nexec "{sys.executable}" -W ignore -m dso_jax.cli.main "$@"\n',
        "srun": _SRUN.format(python=sys.executable),
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_", "JAX_P"))}
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    ours = {"PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return kept | ours | more


def run_all(jobs: Sequence[tuple[list[str], dict[str, str]]], folder: Path) -> list[str]:
    """Runs command lines at the same time; what each said, once all have ended well."""
    processes = [
        subprocess.Popen(
            words,
            env=environ,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words, environ in jobs
    ]
    try:
        said = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * len(said), "\n".join(said)
    return said


def array(arguments: Sequence[str], folder: Path, count: int = 2) -> list[str]:
    """`sbatch --array=5-... shards.sbatch ARGUMENTS`."""
    first = 5
    jobs = []
    for task in range(first, first + count):
        slurm = {"ID": str(task), "COUNT": str(count), "MIN": str(first)}
        named = {f"SLURM_ARRAY_TASK_{key}": value for key, value in slurm.items()}
        # A batch script is itself a job of one task.
        environ = environment(folder, SLURM_NTASKS="1", SLURM_PROCID="0", **named)
        jobs.append((["bash", str(RECIPES / "shards.sbatch"), *arguments], environ))
    return run_all(jobs, folder)


def step(arguments: Sequence[str], folder: Path, count: int = 2) -> list[str]:
    """`sbatch train.sbatch ARGUMENTS`."""
    job = free_port(_SLURM_PORT) - _SLURM_PORT
    environ = environment(folder, SLURM_NTASKS=str(count), SLURM_JOB_ID=str(job))
    return run_all([(["bash", str(RECIPES / "train.sbatch"), *arguments], environ)], folder)


def documents(name: str) -> dict[str, dict[str, Any]]:
    """Kind -> object of a Kubernetes file."""
    found = yaml.safe_load_all((RECIPES / name).read_text("utf-8"))
    return {one["kind"]: one for one in found}


def pods(
    name: str, arguments: Sequence[str], folder: Path, changes: Mapping[str, str], count: int = 2
) -> list[str]:
    """The pods of a Job, fewer of them.

    Args:
      arguments: after its own.
      folder: stands for /data.
      changes: text of its arguments -> what it is here.
    """
    (container,) = documents(name)["Job"]["spec"]["template"]["spec"]["containers"]
    jobs = []
    for index in range(count):
        given = {entry["name"]: _value(entry, index) for entry in container["env"]}
        given["JAX_NUM_PROCESSES"] = str(count)
        # Of every pod; the job's controller adds the second.
        cluster = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": str(index)}
        words = [*container["command"], *container["args"], *arguments]
        for old, new in {**changes, "/data": str(folder)}.items():
            words = [word.replace(old, new) for word in words]
        for variable, value in given.items():  # as the kubelet does
            words = [word.replace(f"$({variable})", value) for word in words]
        jobs.append((words, environment(folder, **cluster, **given)))
    return run_all([(_found(words, environ), environ) for words, environ in jobs], folder)


def _value(entry: Mapping[str, Any], index: int) -> str:
    if "value" in entry:
        assert isinstance(entry["value"], str)  # Kubernetes refuses numbers
        return entry["value"]
    assert entry["valueFrom"] == {"fieldRef": {"fieldPath": _INDEX}}
    return str(index)


def _found(words: list[str], environ: Mapping[str, str]) -> list[str]:
    """The command by its path: a new process is looked for on the parent's PATH."""
    return [str(Path(environ["PATH"].split(os.pathsep)[0]) / words[0]), *words[1:]]


def free_port(least: int = 2**15) -> int:
    """A port from there on that nobody listens at."""
    for port in range(least, least + 4096):
        with socket.socket() as found:
            if found.connect_ex(("localhost", port)) != 0:
                return port
    raise OSError("no free port")


def bash_files() -> Iterator[Path]:
    return RECIPES.glob("*.sbatch")
