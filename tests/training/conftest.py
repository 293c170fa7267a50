"""A world small enough for a training step to take milliseconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dso_jax.config import Config, OptimConfig, TrainConfig
from dso_jax.dataset.writer import DatasetWriter
from dso_jax.models import FlowConfig, LoRAConfig, init_flow
from dso_jax.objectives import ObjectiveConfig

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


@dataclasses.dataclass(frozen=True)
class Base:
    """What training needs of a published generator."""

    name: str
    sha256: str
    flow_config: FlowConfig
    flow_params: dict


def make_base() -> Base:
    """A fake published generator. No leaf is zero, or an adapter would have no effect."""
    shapes = jax.eval_shape(lambda key: init_flow(FLOW, key), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )
    return Base("tiny", "0" * 64, FLOW, params)


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


def write_dataset(folder: Path, columns: dict[str, np.ndarray], scale: float = 1.0) -> Path:
    """A dataset folder of one shard with these labels; `scale` is that of the latents."""
    rng = np.random.default_rng(0)
    n, rows = len(columns["object"]), int(columns["condition_row"].max()) + 1
    latents = (scale * rng.normal(size=(n, 2, 4, 4, 4))).astype(np.float32)
    conditions = rng.normal(size=(rows, 3, 8)).astype(np.float32)
    writer = DatasetWriter(folder, {"base": "tiny"})
    writer.append(columns, latents, conditions)
    writer.finish()
    return folder


def make_config(data: str | Path, out: str | Path, name: str = "dpo", **train: Any) -> Config:
    """A run of a few steps with a rate at which something happens."""
    settings = {"steps": 4, "batch_size": 8, "log_every": 1, "checkpoint_every": 2}
    return Config(
        data=str(data),
        out=str(out),
        objective=ObjectiveConfig(name=name),
        lora=LORA,
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
        train=TrainConfig(**{**settings, "eval_every": 0, **train}),
    )


@pytest.fixture(scope="session")
def base() -> Base:
    return make_base()


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), labels(objects=6, samples=4))
