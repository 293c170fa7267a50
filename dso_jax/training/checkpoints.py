"""Checkpoints with orbax: what trains, its optimizer state, and where the run stands.

The frozen base is not in them; its sha256 is, and a run does not resume on another one. Orbax
writes to a temporary folder and renames it, so a kill during a save leaves the previous
checkpoint, and leftovers are removed at the next start.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from dso_jax.errors import UsageError
from dso_jax.training.step import TrainState

logger = logging.getLogger(__name__)


class Origin(NamedTuple):
    """What a checkpoint is only valid with."""

    base_sha256: str  # of the generator's weights
    data_fingerprint: str  # of the samples table


class Checkpoints:
    """The `checkpoints/` folder of one run.

    Args:
        folder: made if it does not exist.
        origin: checked when a checkpoint is restored.
        keep: newest checkpoints that stay, beside the best by the score given to `save`.
    """

    def __init__(self, folder: Path, origin: Origin, keep: int) -> None:
        self._origin = origin
        policies = [
            preserve.LatestN(keep),
            preserve.BestN(
                get_metric_fn=lambda metrics: metrics["score"],
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preserve.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            # The adapter is small: waiting for the disk is cheaper than losing an error of it.
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, run: dict[str, Any], score: float | None = None) -> None:
        """Save synchronously; every failure raises.

        Args:
            state: after `state.step` steps.
            run: JSON values to come back with it: data position, configuration, best score.
            score: held-out stability, higher is better; None if it was not measured.
        """
        step = int(state.step)
        written = self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_flatten(state)),
                run=ocp.args.JsonSave({**run, **self._origin._asdict()}),
            ),
            metrics=None if score is None else {"score": score},
        )
        if not written:
            raise RuntimeError(f"checkpoint of step {step} was not written")
        self._manager.wait_until_finished()

    def restore(
        self, like: TrainState, sharding: NamedSharding
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint as (state, run), placed as `sharding` says; None without one.

        Args:
            like: a state with the shapes to expect, for example the initial one.

        Raises:
            UsageError: it belongs to another base or dataset, or holds other parameters.
        """
        step = self.latest()
        if step is None:
            return None
        where = f"{self._manager.directory / str(step)}"
        saved = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))
        for name, expected in self._origin._asdict().items():
            if saved["run"][name] != expected:
                raise UsageError(
                    f"{where}: was trained with {name} {saved['run'][name][:12]}..., this run has "
                    f"{expected[:12]}...; choose another --out"
                )
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            for name, leaf in _flatten(like).items()
        }
        try:
            flat = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )["state"]
        except ValueError as error:  # orbax lists the differing leaves
            raise UsageError(f"{where}: does not fit this configuration: {error}") from error
        leaves = [flat[name] for name in abstract]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), saved["run"]

    def close(self) -> None:
        """Release orbax's threads."""
        self._manager.close()


def _flatten(state: TrainState) -> dict[str, jax.Array]:
    """Leaves by path: no container type of optax or flax gets into the file, nor a frozen leaf."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
