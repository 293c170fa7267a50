"""Held-out evaluation during training: sample, drop, count; it decides which adapter is best."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from dso_jax.config import Config
from dso_jax.errors import UsageError
from dso_jax.models import LoRAConfig
from dso_jax.sampler import SamplerConfig

Figures = dict[str, float]


def make_evaluate(
    config: Config, base: Any, lora: LoRAConfig | None
) -> Callable[[dict], Figures] | None:
    """The function params -> figures that `config.eval` describes; None if it is switched off.

    Every call samples the same prompts with the same noise, so that figures differ by the
    parameters alone.

    Raises:
        UsageError: no prompts are known for this base, or the protocol or sampler is unusable.
    """
    if config.eval.objects == 0 or config.train.eval_every == 0:
        return None
    # Only here: training without held-out evaluation needs no simulator.
    import sim_mjx
    from dso_jax.evaluation import evaluate
    from dso_jax.generation import prompts

    if base.name != "toybox":
        raise UsageError(
            f"eval.objects is {config.eval.objects}, but only the toybox brings prompts of its "
            f"own; set eval.objects to 0 for base {base.name!r}"
        )
    try:
        protocol = sim_mjx.Protocol.resolve(config.eval.protocol)
        sampler = _sampler(config, base.sampler)
    except ValueError as error:
        raise UsageError(str(error)) from None
    heldout = prompts.toybox_prompts("heldout", config.eval.objects, first=config.eval.skip)

    def run(params: dict) -> Figures:
        found = evaluate.evaluate(
            base,
            params,
            heldout,
            protocol,
            samples=config.eval.samples,
            lora=lora,
            sampler=sampler,
        )
        return {"stable": found.stable} | _means(found.columns)

    return run


def _means(columns: dict[str, np.ndarray]) -> Figures:
    """Mean tilt, IoU and guards over the samples that could be measured."""
    valid = columns["status"] != "invalid"
    figures = {"invalid": float(np.mean(~valid))}
    for name in ("tilt_deg", "iou", "footprint", "volume", "height", "components"):
        if name in columns and valid.any():
            figures[name] = float(np.mean(columns[name][valid]))
    return figures


def _sampler(config: Config, published: SamplerConfig) -> SamplerConfig:
    chosen = dataclasses.asdict(config.sampler)
    changes = {name: value for name, value in chosen.items() if value is not None}
    return dataclasses.replace(published, **changes)
