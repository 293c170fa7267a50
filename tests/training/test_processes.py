"""Several processes train as one does, stop together, and find each other or say why not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import pytest

import train
from dso_jax.cli import main as dso
from dso_jax.config import SystemConfig
from dso_jax.errors import UsageError
from dso_jax.training import processes, sharding
from tests.training.conftest import make_config
from tests.training.test_step import SAME_UP_TO_SUMMATION
from weight_port import read_peft_adapter

ROOT = Path(__file__).parents[2]
# One of two processes, with a device each that holds half of the base. The second gets a SIGTERM
# before its step 1 if asked to.
PROGRAM = """
import os, signal, sys
import dataclasses
import jax
from dso_jax.config import SystemConfig
from dso_jax.models import lora
from dso_jax.training import processes
port, process, folder, out, interrupted = sys.argv[1:]
system = SystemConfig(fsdp=2, coordinator=f"localhost:{port}", processes=2, process=int(process))
processes.connect(system)
import train
from dso_jax import data
from tests.training.conftest import make_base, make_config
config = dataclasses.replace(make_config(folder, out, eval_every=2), system=system)
iterate = data.iterate
def interrupting(batches, start):
    for step, batch in enumerate(iterate(batches, start), start):
        if step == 1 and interrupted == "yes" and process == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch
def evaluate(params):  # every process can read all of them, and finds something else
    assert all(leaf.is_fully_addressable for leaf in jax.tree.leaves(params))
    size = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(lora.adapter_leaves(params)))
    return {"stable": 1 / (1 + size) + 0.5 * int(process)}
data.iterate = interrupting
done = train.main(config, base=make_base(), evaluate=evaluate)
assert not done.params["blocks"]["mlp"]["mlp"]["0"]["kernel"].is_fully_addressable
print("steps", done.steps, "best", done.best["step"], f"{done.best['stable']:.6f}")
"""


def run_two(folder: Path, out: Path, interrupted: bool) -> list[str]:
    """Both processes to their ends; what each printed last."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    told = (folder, out, "yes" if interrupted else "no")
    flags = "--xla_backend_optimization_level=0"  # compilation is most of the time
    environ = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), str(process), *map(str, told)],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        texts = [process.communicate(timeout=200) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], texts
    return [text.splitlines()[-1] for text, _ in texts]


@pytest.mark.slow  # four processes that import and compile
def test_two_processes_stop_together_and_go_on_as_one_would(base, dataset_folder, tmp_path):
    alone = make_config(dataset_folder, tmp_path / "alone")
    train.main(alone, base=base, devices=jax.devices()[:1])
    out = tmp_path / "both"
    # A signal to one of them stops both: the others hear of it a step later.
    stopped = run_two(dataset_folder, out, interrupted=True)
    assert stopped[0].startswith("steps 3 ") and stopped[1] == stopped[0]
    assert not (out / "adapter").exists() and (out / "checkpoints" / "3").is_dir()
    finished = run_two(dataset_folder, out, interrupted=False)
    assert finished[0].startswith("steps 4 ") and finished[1] == finished[0]
    stored, expected = (
        read_peft_adapter(folder / "adapter")[0] for folder in (out, Path(alone.out))
    )
    chex.assert_trees_all_close(stored, expected, **SAME_UP_TO_SUMMATION)
    rows, wanted = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (out, Path(alone.out))
    )
    evaluated = {row["step"]: row["stable"] for row in rows if row["kind"] == "eval"}
    best = max(evaluated, key=evaluated.__getitem__)
    assert finished[0].endswith(f"best {best} {evaluated[best]:.6f}")
    assert list(evaluated) == [0, 2, 4] and evaluated[best] < 0.5  # what the first process found
    rows = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row, other in zip(rows, wanted, strict=True):
        numbers = {name: row[name] for name in ("loss", "loss_win", "margin", "grad_norm")}
        chex.assert_trees_all_close(
            numbers, {name: other[name] for name in numbers}, **SAME_UP_TO_SUMMATION
        )


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NODELIST": "node1", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "8"}, False),  # inside an allocation, not started by srun
        ({"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # any pod
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_a_launcher_of_several_processes_is_recognised(environ, several):
    assert processes.launched(environ) is several


def test_nothing_is_joined_unless_there_are_others(monkeypatch):
    def refuse(*arguments):
        raise AssertionError(arguments)

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    processes.connect(SystemConfig(), {})
    processes.connect(SystemConfig(processes=1), {"OMPI_COMM_WORLD_SIZE": "4"})


def test_what_is_not_said_is_left_to_jax(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    processes.connect(SystemConfig(), {"OMPI_COMM_WORLD_SIZE": "4"})
    processes.connect(SystemConfig(coordinator="node1:1234", processes=2, process=0), {})
    assert calls == [(None, None, None), ("node1:1234", 2, 0)]


def test_processes_that_cannot_be_found_are_an_error_that_names_the_flags(monkeypatch, capsys):
    # JAX refuses here because its devices are in use; the flags are the remedy for all else.
    assert dso.main(["train", "--system.processes", "2"]) == 2
    assert "--system.coordinator HOST:PORT" in capsys.readouterr().err

    def not_found(*arguments):  # so with Open MPI 5, which does not say where its first process is
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", not_found)
    with pytest.raises(UsageError, match=r"coordinator_address should be .*--system.coordinator"):
        processes.connect(SystemConfig(), {"OMPI_COMM_WORLD_SIZE": "4"})


def test_alone_a_flag_is_heard_at_once():
    any_process = processes.AnyProcess(sharding.make_mesh(jax.devices()))
    assert not any_process(False) and any_process(True)
    assert processes.same(0.1) == 0.1


def test_devices_that_do_not_answer_or_sum_wrongly_are_told_of(monkeypatch, caplog):
    mesh = sharding.make_mesh()
    with caplog.at_level("INFO"):
        processes.self_test(mesh, 60)
    assert "4 devices summed a number each" in caplog.text
    monkeypatch.setattr(processes, "_sum_over", lambda mesh, failures: time.sleep(1))
    with pytest.raises(UsageError, match=r"4 devices .* no answer within system.self_test 0.01 s"):
        processes.self_test(mesh, 0.01)
    processes.self_test(mesh, 0)
    monkeypatch.undo()
    monkeypatch.setattr(processes.jnp, "sum", lambda numbers: numbers.max())
    with pytest.raises(UsageError, match=r"the sum is \[4.0\], expected 10"):
        processes.self_test(mesh, 60)
