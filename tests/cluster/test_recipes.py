"""The recipes of configs/cluster: their own commands, as two processes of this machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dso_jax import pretrained
from dso_jax.cli.main import main
from dso_jax.dataset.store import Dataset
from dso_jax.dataset.writer import DatasetWriter
from tests.cluster import launchers
from tests.sim import shapes
from tests.training.conftest import labels

JOBS = ("label.yaml", "generate.yaml", "train.yaml")
NAMES = ("lantern", "towel3", "table", "bread", "crate", "tatami")


def meshes(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in NAMES:
        shutil.copy(shapes.mesh_path(name), folder)
    return folder


def alone(folder: Path) -> list[dict]:
    """The rows of one process for the files in `folder`/meshes."""
    out = folder / "alone.parquet"
    line = ["label", str(folder / "meshes"), "--out", str(out), "--engine", "mujoco"]
    assert main([*line, "--block", "2", "--workers", "0"]) == 0
    return pq.read_table(out).to_pylist()


@pytest.mark.slow
def test_an_array_of_two_labels_what_one_process_does(tmp_path):
    meshes(tmp_path / "meshes")
    line = ["label", str(tmp_path / "meshes"), "--out", str(tmp_path / "labels.parquet")]
    small = ["--engine", "mujoco", "--block", "2", "--workers", "0"]
    said = launchers.array([*line, *small], tmp_path)
    assert pq.read_table(tmp_path / "labels.parquet").to_pylist() == alone(tmp_path)
    assert not (tmp_path / "labels.parquet.parts").exists()
    counts = [re.search(r"^(\d) files: ", one, re.MULTILINE) for one in said]
    assert [count and count[1] for count in counts] == ["4", "2"]  # of three blocks


@pytest.mark.slow
def test_two_pods_label_what_one_process_does(tmp_path):
    meshes(tmp_path / "meshes")
    small = ["--engine", "mujoco", "--block", "2", "--workers", "0"]
    launchers.pods("label.yaml", small, tmp_path, {})
    assert pq.read_table(tmp_path / "labels.parquet").to_pylist() == alone(tmp_path)
    assert (tmp_path / "bodies").is_dir()


# Two blocks of one prompt each, with as little to do as a block can have.
SAMPLED = ("--samples", "129", "--steps", "1", "--batch", "16")


def check_generated(data: Path, said: list[str]) -> None:
    """A whole dataset, of which each process made a half."""
    assert main(["dataset", "validate", str(data)]) == 0
    samples = Dataset(data).samples
    assert np.unique(samples["shard"], return_counts=True)[1].tolist() == [129, 129]
    assert not list(data.glob("samples-*.parquet"))  # put together by the last one
    assert all("129 samples in" in one for one in said)


@pytest.mark.slow
def test_an_array_of_two_generates_one_dataset(tmp_path):
    line = ["generate", "--prompts", "toybox:2", "--out", str(tmp_path / "pairs"), *SAMPLED]
    check_generated(tmp_path / "pairs", launchers.array(line, tmp_path))


@pytest.mark.slow
def test_two_pods_generate_one_dataset(tmp_path):
    toybox = {
        "/data/TRELLIS-image-large": "toybox",
        "--images": "--prompts",
        "/data/prompts/*/*.png": "toybox:2",
    }
    said = launchers.pods("generate.yaml", SAMPLED, tmp_path, toybox)
    check_generated(tmp_path / "pairs", said)


def pairs(folder: Path) -> Path:
    """A dataset of noise in the shapes of the toybox's generator."""
    config = pretrained.flow_config("toybox")
    columns = labels(objects=4, samples=4)
    rng = np.random.default_rng(0)
    rows, edge = len(columns["object"]), config.resolution
    latents = rng.normal(size=(rows, config.in_channels, edge, edge, edge))
    conditions = rng.normal(size=(max(columns["condition_row"]) + 1, 16, config.cond_channels))
    writer = DatasetWriter(folder, {"base": "toybox"})
    writer.append(columns, latents.astype(np.float32), conditions.astype(np.float32))
    return folder


TRAINED = ("--train.steps", "2", "--train.batch_size", "4", "--train.eval_every", "0")


def check_trained(run: Path, said: list[str]) -> None:
    """One run of both processes, on a device each."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"][-1] == 1
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert "process 0 of 2: 1 of 2 devices" in "\n".join(said)


@pytest.mark.slow
def test_the_processes_of_a_step_train_one_run(tmp_path):
    config = launchers.ROOT / "configs" / "toybox-dpo.yaml"
    line = ["--config", config, "--data", pairs(tmp_path / "pairs"), "--out", tmp_path / "run"]
    said = launchers.step([*map(str, line), *TRAINED], tmp_path)
    check_trained(tmp_path / "run", said)


@pytest.mark.slow
def test_the_pods_of_a_job_train_one_run(tmp_path):
    shutil.copy(launchers.ROOT / "configs" / "toybox-dpo.yaml", tmp_path / "dro.yaml")
    pairs(tmp_path / "pairs")
    here = {"dso-train-0.dso-train:8476": f"localhost:{launchers.free_port()}"}
    said = launchers.pods("train.yaml", TRAINED, tmp_path, here)
    check_trained(tmp_path / "runs" / "dro", said)


def test_the_shell_scripts_are_sound():
    for path in launchers.bash_files():
        subprocess.run(["bash", "-n", str(path)], check=True)
        lines = path.read_text("utf-8").splitlines()
        # SLURM stops looking for its options at the first command.
        last = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH "))
        assert all(line.startswith("#") for line in lines[:last])


@pytest.mark.parametrize("name", JOBS)
def test_a_job_states_its_size_alike(name):
    job = launchers.documents(name)["Job"]
    spec, template = job["spec"], job["spec"]["template"]["spec"]
    (container,) = template["containers"]
    (count,) = (e["value"] for e in container["env"] if e["name"] == "JAX_NUM_PROCESSES")
    assert spec["completions"] == spec["parallelism"] == int(count)
    assert spec["completionMode"] == "Indexed" and template["restartPolicy"] == "Never"
    assert {m["name"] for m in container["volumeMounts"]} == {
        v["name"] for v in template["volumes"]
    }
    assert container["command"][0] == "dso" and f"#   kubectl apply -f configs/cluster/{name}" in (
        launchers.RECIPES / name
    ).read_text("utf-8")


def test_the_pods_of_a_training_run_find_the_first():
    found = launchers.documents("train.yaml")
    service, job = found["Service"], found["Job"]
    name, template = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert template["subdomain"] == service["metadata"]["name"]
    # A pod of an Indexed Job is called JOB-INDEX.
    first = f"--system.coordinator={name}-0.{template['subdomain']}:"
    assert any(word.startswith(first) for word in template["containers"][0]["args"])
