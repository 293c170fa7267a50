"""Run folders of `dso train`, and adapters, as the subject of `dso evaluate`."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dso_jax.errors import UsageError

if TYPE_CHECKING:
    from dso_jax.evaluation.samples import Model
    from dso_jax.evaluation.sweep import Sweep

# Of toybox runs, if nothing else is asked for: those of `dso demo`.
OBJECTS, SAMPLES = 96, 4


def find(paths: Sequence[str]) -> pathlib.Path | None:
    """The run folder that the command is about, or None if it is about meshes.

    Raises:
        UsageError: a run folder among other paths.
    """
    runs = [path for path in map(pathlib.Path, paths) if _is_run(path)]
    if runs and len(paths) > 1:
        raise UsageError(f"evaluate: {runs[0]} is a run; give it alone")
    return runs[0] if runs else None


def refuse_options(options: argparse.Namespace, run: pathlib.Path | None) -> None:
    """Options that would be ignored are refused.

    Raises:
        UsageError: names one.
    """
    if run is None:
        for name in ("checkpoints", "objects", "samples", "base", "images", "encoder", "remover"):
            if getattr(options, name) is not None:
                raise UsageError(f"evaluate: --{name} is for a run folder, not for meshes")
        return
    for name in ("before", "truth", "categories"):
        if getattr(options, name) is not None:
            raise UsageError(f"evaluate: --{name} is for meshes; a run brings its own")


def prepare(
    run: pathlib.Path, options: argparse.Namespace, folder: pathlib.Path
) -> tuple[Sweep, list[Model]]:
    """What is sampled and with which weights.

    Args:
        run: a run of `dso train`, or an adapter.
        options: of the command line.
        folder: for the samples' meshes.

    Raises:
        UsageError: the run, its base or its prompts cannot be had.
    """
    from dso_jax import config_io, pretrained
    from dso_jax.cli import adapters
    from dso_jax.evaluation import checkpoints
    from dso_jax.evaluation.sweep import Sweep

    name = options.base or adapters.recorded_base(run)
    if name is None:
        raise UsageError(f"evaluate: {run} does not say which generator it is for; give --base")
    steps = checkpoints.choose(run, options.checkpoints or "best") if _has_steps(run) else []
    if options.checkpoints is not None and not steps:
        raise UsageError(f"evaluate: {run} holds an adapter and no checkpoints")
    base = pretrained.load(name)
    prompts = _prompts(name, options)
    if steps:
        config = config_io.load(run / "config.yaml")
        models = [checkpoints.load(run, step, config, base) for step in steps]
    else:
        models = [_adapter(base, run)]
    return Sweep(base, prompts, options.samples or SAMPLES, folder), models


def _is_run(path: pathlib.Path) -> bool:
    marks = ("config.yaml", "adapter_config.json", "adapter", "adapter-best")
    return path.is_dir() and any((path / mark).exists() for mark in marks)


def _has_steps(run: pathlib.Path) -> bool:
    from dso_jax.evaluation import checkpoints

    return (run / "config.yaml").is_file() and bool(checkpoints.steps(run))


def _adapter(base, run: pathlib.Path) -> Model:
    from dso_jax.cli import adapters
    from dso_jax.evaluation.parts import stamp
    from dso_jax.evaluation.samples import Model

    found = adapters.find(run)
    params, settings = adapters.attach(base, run)
    files = sorted(found.iterdir()) if found.is_dir() else [found]
    return Model("adapter", params, settings, {"adapter": stamp(files)})


def _prompts(name: str, options: argparse.Namespace):
    from dso_jax import pretrained, toybox
    from dso_jax.generation.prompts import toybox_prompts

    if pretrained.flow_config(name).cond_channels == toybox.COND_CHANNELS:
        if options.images:
            raise UsageError(f"evaluate: --images: {name} knows the toybox's pictures alone")
        return toybox_prompts("heldout", options.objects or OBJECTS)
    if not options.images:
        raise UsageError(
            f"evaluate: {name} brings no prompts of its own; give held-out pictures as --images"
        )
    return _pictures(name, options)


def _pictures(name: str, options: argparse.Namespace):
    import numpy as np

    from dso_jax import conditioning, image_files, pretrained
    from dso_jax.cli import sample_prompts
    from dso_jax.generation.prompt_sources import name_files
    from dso_jax.generation.prompts import Prompts
    from dso_jax.pretrained import image_encoder

    files = image_files.find(options.images)
    objects, views = name_files(files, by_folder=options.views)
    pixels = np.stack([sample_prompts.read(str(path), options.remover) for path in files])
    wanted = sample_prompts.conditioning_of(name)
    encoder = options.encoder or wanted.encoder or image_encoder.DEFAULT
    config, params = pretrained.load_image_encoder(encoder)
    if config.width != wanted.channels:
        raise UsageError(
            f"evaluate: encoder {encoder} gives {config.width} channels, but {name} takes "
            f"{wanted.channels}"
        )
    conditions = conditioning.encode(config, params, pixels)
    return Prompts(objects, views, conditions, pixels / 255)
