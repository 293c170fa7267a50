"""The recipe: config -> mesh -> data -> base -> LoRA -> jitted step -> loop.

    python train.py --config configs/toybox-dro.yaml --optim.learning_rate 1e-4

Every part is a module of `dso_jax`; this file only puts them in order. `main` can be called from
Python, as the demo and the tests do.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Devices and memory are decided before JAX is imported; `dso train` does that, then calls main.
    from dso_jax.cli.main import main as dso

    sys.exit(dso(["train", *sys.argv[1:]]))

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax

from dso_jax import config_io, data
from dso_jax.cli import adapters
from dso_jax.config import Config
from dso_jax.models import LoRAConfig, lora
from dso_jax.training import guards, heldout, online, policy, processes, runs, setup, sharding
from dso_jax.training.checkpoints import Checkpoints, Origin
from dso_jax.training.interrupt import stop_on_signal
from dso_jax.training.metrics import MetricLog, Throughput, check_finite, headline, progress_bar
from dso_jax.training.optimizer import learning_rate, make_optimizer
from dso_jax.training.step import init_state, make_diagnose, make_probe, make_step

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        params: the policy's parameters after the last step, adapter included.
        lora: the adapter's configuration; None if the base itself was trained.
        steps: steps taken since the very start.
        finished: False after a clean stop by a signal or a guard.
        guard: what the guard that stopped it said; None if none did.
        rows: the lines of metrics.jsonl.
        best: {"step", "stable"} of the best held-out evaluation; None without one.
    """

    params: dict
    lora: LoRAConfig | None
    steps: int
    finished: bool
    guard: str | None
    rows: list[dict[str, Any]]
    best: dict[str, Any] | None


def main(
    config: Config,
    *,
    base: Any = None,
    encoder: Any = None,
    evaluate: Callable[[dict], dict[str, float]] | None = None,
    devices: Sequence[Any] | None = None,
) -> Result:
    """Train, or go on with a run that was interrupted.

    Args:
        config: the resolved configuration.
        base: an already loaded generator; `config.base` is loaded otherwise.
        encoder: an already loaded image encoder, if conditions are computed online.
        evaluate: params -> figures of held-out samples, `stable` (a share) among them; by default
            what `config.eval` describes.
        devices: to train on; all that are visible by default.

    Raises:
        UsageError: configuration, data or run folder cannot be used; nothing has been done.
        NonFiniteError: too many steps in a row without a finite loss and gradient.
    """
    # ---------------------------------------------------------------- what there is to train
    config_io.check(config)
    train, objective = config.train, config.objective
    mesh = sharding.make_mesh(devices, config.system.fsdp)
    logger.info(sharding.check_batch(train.batch_size, train.accumulation, mesh))
    processes.self_test(mesh, config.system.self_test)
    dataset = online.open_dataset(config)
    batches = data.batches(
        dataset,
        train.batch_size,
        train.seed,
        pairing=objective.pairing,
        tilt_gap=objective.min_tilt_gap > 0,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    base = setup.load_base(config, mesh) if base is None else base
    setup.check_fit(dataset, base)
    encoder = online.load_encoder(config, dataset, mesh, encoder)
    online.check_fit(dataset, encoder, base)
    start = adapters.start(base, train.init_adapter)
    adapter_key, step_key = setup.keys(train.seed, mesh)
    model, trainable, weights = policy.build(config, base, adapter_key, mesh, start)
    logger.info(setup.describe(trainable, weights))
    if evaluate is None:
        evaluate = heldout.make_evaluate(config, base, model.lora)
    folder = runs.open_run(config)

    # ---------------------------------------------------------------- fresh or resumed
    everywhere = sharding.replicated(mesh)
    optimizer, rate = make_optimizer(config.optim), learning_rate(config.optim)
    weights = sharding.place(weights, sharding.by_shape(mesh))
    state = sharding.place(init_state(trainable, optimizer), everywhere)
    origin = Origin(base.sha256, dataset.fingerprint)
    checkpoints = Checkpoints(folder / "checkpoints", origin, train.keep)
    position, best = 0, None
    restored = checkpoints.restore(state, everywhere)
    if restored is not None:
        state, saved = restored
        position, best = saved["position"], saved["best"]
        logger.info("%s: resumed at step %d", folder, position)
    first = processes.is_first()
    if first:
        runs.write_config(folder, config)

    # ---------------------------------------------------------------- compile
    feed = online.make_feed(config, encoder, mesh)
    batch = feed(data.at(batches, position))
    step_fn, probe_fn = setup.compile_all(
        make_step(model, objective, optimizer, rate, train.accumulation, mesh),
        make_probe(model, objective, train.accumulation, mesh),
        arguments=(state, weights, batch, step_key),
        options=config.system.xla,
    )
    diagnose = make_diagnose(objective, mesh)

    # ---------------------------------------------------------------- what a run leaves behind
    log = MetricLog(folder / "metrics.jsonl", position, active=first)

    def write_adapter(name: str, figures: dict[str, Any]) -> None:
        if first and model.lora is not None:
            texts = {"objective": objective.name} | {k: str(v) for k, v in figures.items()}
            params = lora.combine(state.trainable, weights.frozen)
            runs.write_adapter(folder / name, params, model.lora, base.sha256, texts)

    def look() -> float | None:
        """Evaluate on held-out objects, keep the adapter if it is the best; the stable share."""
        nonlocal best
        if evaluate is None:
            return None
        params = processes.local(lora.combine(state.trainable, weights.frozen), mesh)
        figures = evaluate(params)
        stable = processes.same(float(figures["stable"]))
        log.write("eval", position, figures | {"stable": stable})
        logger.info("step %d, held out: %.1f %% stable", position, 100 * stable)
        if best is None or stable > best["stable"]:
            best = {"step": position, "stable": stable}
            write_adapter("adapter-best", best)
        return stable

    def save(score: float | None) -> None:
        run = {"position": position, "best": best, "config": dataclasses.asdict(config)}
        checkpoints.save(state, run, score)

    # ---------------------------------------------------------------- the loop
    iterator = data.iterate(batches, position)
    with (
        contextlib.closing(log),
        contextlib.closing(checkpoints),
        stop_on_signal() as stop,
        progress_bar(objective.name.upper(), position, train.steps, first) as progress,
    ):
        if position == 0 and train.eval_every:
            look()
        speed = Throughput(setup.samples_per_step(config))
        any_process = processes.AnyProcess(mesh)
        alarm = guards.reason_to_stop(config.guard, log.rows)  # a resumed run may be past it
        stopping = any_process(stop.requested) or alarm is not None
        while position < train.steps and not stopping:
            batch = feed(next(iterator))
            logged = position % train.log_every == 0 or position == train.steps - 1
            probed = probe_fn(state, weights, batch, step_key) if logged else None
            state, stats = step_fn(state, weights, batch, step_key)
            position += 1
            speed.tick()
            if probed is not None:
                values = jax.device_get(diagnose(probed) | stats) | {"samples_per_s": speed.rate()}
                row = log.write("train", position - 1, values)
                check_finite(row, train.max_skipped)
                alarm = guards.reason_to_stop(config.guard, log.rows)
                progress(position, headline(row))
            last = position == train.steps
            with speed.pause():
                score = None
                if train.eval_every and (last or position % train.eval_every == 0):
                    score = look()
                stopping = any_process(stop.requested) or alarm is not None
                due = last or stopping or position % train.checkpoint_every == 0
                if due or score is not None:
                    save(score)
            progress(position)
        if alarm is not None:
            log.write("stop", position, {"reason": alarm})

    # ---------------------------------------------------------------- the end
    finished = position >= train.steps and alarm is None
    if finished:
        write_adapter("adapter", {"step": position})
    elif alarm is not None:
        logger.warning("stopped at step %d: %s", position, alarm)
    else:
        logger.warning("stopped at step %d; the same command goes on from there", position)
    params = lora.combine(state.trainable, weights.frozen)
    return Result(params, model.lora, position, finished, alarm, log.rows, best)
