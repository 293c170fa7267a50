"""The checkpoints of a run of `dso train`, as models to sample with."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from dso_jax.config import Config
from dso_jax.errors import UsageError
from dso_jax.evaluation.samples import Model
from dso_jax.models import lora
from dso_jax.pretrained import Base
from dso_jax.training import policy

_TRAINABLE = "trainable."


def steps(run: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints, in order."""
    folder = run / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(one.name) for one in found if one.name.isdecimal())


def choose(run: pathlib.Path, which: str) -> list[int]:
    """The steps that `all`, `best`, `last` or a number name.

    `best` is the one that held-out evaluation during training preferred; the last one without it.

    Raises:
        UsageError: the run has no such checkpoint.
    """
    there = steps(run)
    if not there:
        raise UsageError(f"{run}: no checkpoint in {run / 'checkpoints'}")
    if which == "all":
        return there
    wanted = there[-1]
    if which == "best":
        best = _saved(run, there[-1])["best"]
        wanted = wanted if best is None else int(best["step"])
    elif which != "last":
        if not which.isdecimal():
            raise UsageError(f"--checkpoints {which}: expected best, last, all or a step")
        wanted = int(which)
    if wanted not in there:
        raise UsageError(
            f"{run}: no checkpoint of step {wanted}; there are {', '.join(map(str, there))} "
            "(train.keep says how many stay)"
        )
    return [wanted]


def load(run: pathlib.Path, step: int, config: Config, base: Base) -> Model:
    """The weights of one checkpoint.

    Args:
        run: its folder.
        step: which one.
        config: of the run.
        base: what it was trained from.

    Raises:
        UsageError: it was trained from another base, or does not fit the configuration.
    """
    where, saved = run / "checkpoints" / str(step), _saved(run, step)
    if saved["base_sha256"] != base.sha256:
        raise UsageError(
            f"{where}: was trained from a base with sha256 {saved['base_sha256'][:12]}..., "
            f"{base.name} has {base.sha256[:12]}..."
        )
    # All digits of the base: what is stored beside them is in fp32 too.
    whole = dataclasses.replace(config, system=dataclasses.replace(config.system, dtype="float32"))
    model, trainable, weights = policy.build(whole, base, jax.random.key(0))
    leaves, tree = jax.tree_util.tree_flatten_with_path(trainable)
    names = [_TRAINABLE + jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in leaves]
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
        for name, (_, leaf) in zip(names, leaves, strict=True)
    }
    found = _restored(where / "state", wanted)
    params = lora.combine(jax.tree.unflatten(tree, [found[n] for n in names]), weights.frozen)
    origin = {"run": str(run.absolute()), "step": step, "time": where.stat().st_mtime_ns}
    return Model(f"step-{step}", params, model.lora, origin, step)


def _saved(run: pathlib.Path, step: int) -> dict[str, Any]:
    """What a checkpoint says of its run."""
    path = run / "checkpoints" / str(step) / "run" / "metadata"
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error


def _restored(path: pathlib.Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Some leaves; the optimizer's state stays on the disk."""
    restore = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    with ocp.PyTreeCheckpointer() as reader:
        stored = reader.metadata(path.absolute()).item_metadata.tree
        # Asked before anything is read: orbax leaves threads behind when it finds out half-way.
        for name, leaf in wanted.items():
            shape = tuple(stored[name].shape) if name in stored else None
            if shape != leaf.shape:
                raise UsageError(
                    f"{path}: does not fit the run's configuration: {name} has shape {shape}, "
                    f"expected {leaf.shape}"
                )
        return reader.restore(path.absolute(), args=restore)
