"""A generator's samples of held-out prompts: sampled, dropped as they are, written as meshes.

What is dropped is the occupancy, as in training; the meshes are for what needs surfaces (distances,
shapes, pictures). The noise of a sample depends on prompt and number alone, so samples of two
checkpoints differ by their weights only, and their perturbed starts are the same.

Legend: P prompts, N = P x count samples, prompt after prompt.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import trimesh
from jaxtyping import Float

from dso_jax import meshes
from dso_jax.evaluation import drops
from dso_jax.evaluation import evaluate as heldout
from dso_jax.evaluation.drops import Bucket, Drops
from dso_jax.evaluation.inputs import Item
from dso_jax.evaluation.parts import Columns
from dso_jax.generation import generate
from dso_jax.generation.prompts import Prompts
from dso_jax.models import LoRAConfig
from dso_jax.pretrained import Base
from sim_mjx import bodies_from_occupancy
from sim_mjx.bodies import BodyError

Progress = Callable[[int], None]
# Columns of another engine's drop are kept under its name and this.
OTHER = "in_{}_{}"
OTHER_COLUMNS = ("status", "stable", "tilt_deg")


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights to sample with.

    Attributes:
        name: for folders and titles: `base`, or `step-300`.
        params: of the flow.
        lora: the adapter's settings, if `params` have one.
        origin: what decides the weights, as JSON values.
        step: of training; None for the base and for adapters that do not say.
    """

    name: str
    params: Mapping
    lora: LoRAConfig | None
    origin: dict[str, Any]
    step: int | None = None


def items(
    prompts: Prompts, count: int, folder: pathlib.Path, truths: Sequence[pathlib.Path | None]
) -> list[Item]:
    """What the samples in a folder are, as files of that name; see `inputs`."""
    return [
        Item(
            path=folder / f"{name}-{int(view):03d}_{number:03d}.glb",
            object=str(name),
            category=str(name).split("/")[0] if "/" in str(name) else "",
            view=f"{int(view):03d}",
            sample=number,
            truth=truth,
        )
        for name, view, truth in zip(prompts.objects, prompts.views, truths, strict=True)
        for number in range(count)
    ]


def write_truths(prompts: Prompts, folder: pathlib.Path) -> list[pathlib.Path | None]:
    """The true objects as meshes, where they are known."""
    if prompts.truth is None:
        return [None] * len(prompts)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[pathlib.Path | None] = []
    for name, occupied in zip(prompts.objects, prompts.truth, strict=True):
        path = folder / f"{name}.glb"
        if path not in paths and not path.exists():
            _write(meshes.surface(np.where(occupied, 1.0, -1.0)), path)
        paths.append(path)
    return paths


def measure(
    model: Model,
    base: Base,
    prompts: Prompts,
    count: int,
    task: Drops,
    others: Mapping[str, Drops],
    folder: pathlib.Path,
    progress: Progress | None = None,
) -> Columns:
    """Samples, drops and writes the meshes of one model.

    Args:
        model: whose samples.
        base: its sampler and decoder.
        prompts: what is asked for.
        count: samples a prompt.
        task: how the samples are dropped.
        others: further engines; their labels are in columns named by `OTHER`.
        folder: of the meshes, named as `items` says.
        progress: called with finished samples.

    Returns:
        The columns of `drops.drop`, `iou` where the truth is known, and those of `others`.
    """
    rows = np.repeat(np.arange(len(prompts)), count)
    numbers = np.tile(np.arange(count), len(prompts))
    seeds = generate.sample_seeds(prompts, rows, numbers, heldout.EVALUATION_RUN)
    latents = generate.sample_latents(
        base, model.params, prompts.conditions, seeds, lora=model.lora, progress=progress
    )
    logits = generate.decode(base, latents)
    columns = _dropped(logits, prompts, rows, numbers, task, others)
    if prompts.truth is not None:
        columns["iou"] = heldout.iou(logits > 0, prompts.truth[rows])
    wanted = items(prompts, count, folder, [None] * len(prompts))
    for item, one in zip(wanted, logits, strict=True):
        item.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(meshes.surface(one, saturation=task.protocol.saturation), item.path)
        except BodyError:  # the drop has said why, and there is nothing to show
            item.path.unlink(missing_ok=True)
    return columns


def _dropped(
    logits: Float[np.ndarray, "N R R R"],
    prompts: Prompts,
    rows: np.ndarray,
    numbers: np.ndarray,
    task: Drops,
    others: Mapping[str, Drops],
) -> Columns:
    bodies, reasons = bodies_from_occupancy(logits, saturation=task.protocol.saturation)
    names = [
        f"{prompts.objects[r]}/{prompts.views[r]}/{n}" for r, n in zip(rows, numbers, strict=True)
    ]
    keys = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    bucket = Bucket(range(len(logits)), bodies, keys, reasons)
    columns = drops.drop(len(logits), [bucket], task)
    for name, other in others.items():
        found = drops.drop(len(logits), [bucket], other)
        columns |= {OTHER.format(name, column): found[column] for column in OTHER_COLUMNS}
    return columns


def _write(mesh: trimesh.Trimesh, path: pathlib.Path) -> None:
    """GLB files have y up."""
    x, y, z = np.asarray(mesh.vertices).T
    turned = trimesh.Trimesh(np.stack([x, z, -y], axis=1), mesh.faces, process=False)
    turned.export(path, file_type="glb", include_normals=True)
