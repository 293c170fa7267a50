"""A world small enough for a training step to take milliseconds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dso_jax.config import Config, OptimConfig, TrainConfig
from dso_jax.models import FlowConfig, LoRAConfig, init_flow
from dso_jax.objectives import ObjectiveConfig
from dso_jax.store import DatasetWriter

FLOW = FlowConfig(
    resolution=4,
    in_channels=2,
    out_channels=2,
    model_channels=16,
    cond_channels=8,
    num_blocks=2,
    num_heads=2,
    patch_size=2,
)
LORA = LoRAConfig(rank=2, alpha=4.0)


def make_base() -> SimpleNamespace:
    """A fake published generator. No leaf is zero, or the adapter would have no effect."""
    params = init_flow(FLOW, jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(params))))
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), params
    )
    return SimpleNamespace(name="tiny", sha256="0" * 64, flow_config=FLOW, flow_params=params)


def labels(objects: int, samples: int, views: int = 1) -> dict[str, np.ndarray]:
    """Columns of a samples table: every object has both labels, views take turns."""
    n = objects * samples
    index = np.arange(n)
    stable = index % 2 == 0
    return {
        "object": np.array([f"object-{i // samples:02d}" for i in index]),
        "view": index % views,
        "sample": index % samples,
        "seed": index,
        "condition_row": index // samples * views + index % views,
        "tilt_deg": np.where(stable, 1.0, 80.0),
        "rotation_deg": np.where(stable, 1.0, 80.0),
        "status": np.array(["rest"] * n),
        "margin_deg": np.full(n, 5.0),
        "stable": stable,
        "protocol": np.array(["0123abcd"] * n),
        "engine": np.array(["none"] * n),
    }


def write_dataset(folder: Path, columns: dict[str, np.ndarray], **meta) -> Path:
    """A dataset folder of one shard with these labels."""
    rng = np.random.default_rng(0)
    n, rows = len(columns["object"]), int(columns["condition_row"].max()) + 1
    latents = rng.normal(size=(n, 2, 4, 4, 4)).astype(np.float32)
    conditions = rng.normal(size=(rows, 3, 8)).astype(np.float32)
    DatasetWriter(folder, {"base": "tiny", **meta}).append(columns, latents, conditions)
    return folder


def make_config(data: Path, out: Path, name: str = "dpo", **train) -> Config:
    """A run of a few steps with a rate at which something happens."""
    settings = {"steps": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 2, "eval_every": 0}
    return Config(
        data=str(data),
        out=str(out),
        objective=ObjectiveConfig(name=name),
        lora=LORA,
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=0),
        train=TrainConfig(**(settings | train)),
    )


@pytest.fixture(scope="session")
def base() -> SimpleNamespace:
    return make_base()


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), labels(objects=6, samples=4))


@pytest.fixture
def config(dataset_folder, tmp_path) -> Config:
    return make_config(dataset_folder, tmp_path / "run")
