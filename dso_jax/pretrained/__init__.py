"""Published generators: a TRELLIS pipeline folder, or the toybox that ships with the package.

A folder holds `pipeline.json`, which names for each model the stem of a `.json` (class and
arguments) and a `.safetensors` (torch names). The toybox is such a folder too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import weight_port
from dso_jax.errors import UsageError
from dso_jax.models import DecoderConfig, FlowConfig
from dso_jax.pretrained import hub, pipeline
from dso_jax.pretrained.hub import EMBEDDED, resolve
from dso_jax.pretrained.image_encoder import load_image_encoder
from dso_jax.pretrained.pipeline import DECODER, ENCODER, FLOW, ROLES
from dso_jax.pretrained.placement import Placement, place
from dso_jax.sampler import SamplerConfig
from weight_port import files, layouts

__all__ = [
    "DECODER",
    "EMBEDDED",
    "ENCODER",
    "FLOW",
    "ROLES",
    "Base",
    "Placement",
    "flow_config",
    "load",
    "load_image_encoder",
    "load_model",
    "resolve",
    "save",
]


@dataclass(frozen=True)
class Base:
    """A generator as it was published, before any post-training."""

    name: str
    flow_config: FlowConfig
    flow_params: dict
    decoder_config: DecoderConfig
    decoder_params: dict
    sampler: SamplerConfig
    sha256: str  # of the flow's weight file


def load(
    name: str,
    *,
    dtype: Any = jnp.float32,
    sharding: Placement = None,
    offline: bool | None = None,
) -> Base:
    """Read the stage-1 models of a generator, each tensor straight to its device.

    Args:
      name: "toybox"; the path of a TRELLIS pipeline folder; or a name on the Hugging Face hub,
        with its owner or as one of `hub.PUBLISHED`. What exists locally comes first.
      dtype: of the flow's tensors that the published checkpoints keep in 16 bits; its other
        tensors and the decoder are fp32.
      sharding: where the flow's leaves go, for example `training.sharding.replicated(mesh)`.
      offline: True takes from the hub only what its cache holds; None asks `HF_HUB_OFFLINE`.

    Raises:
      UsageError: a file that is missing or is not what `pipeline.json` says, or tensors that are
        missing, unknown, misshapen or not finite, all in one report.
    """
    folder, repo = resolve(name, offline=offline), hub.repository(name)
    settings = pipeline.sampler(folder)
    where = {"repo": repo, "offline": offline}
    found = hub.model_files(folder, pipeline.stem(folder, FLOW), **where)
    with ThreadPoolExecutor(1) as pool:  # a gigabyte takes as long to hash as to load
        digest = pool.submit(layouts.sha256, found[1])
        flow_config, flow_params = _read(FLOW, *found, dtype=dtype, sharding=sharding)
        decoder_config, decoder_params, _ = load_model(folder, DECODER, **where)
    return Base(
        name=name,
        flow_config=flow_config,
        flow_params=flow_params,
        decoder_config=decoder_config,
        decoder_params=decoder_params,
        sampler=settings,
        sha256=digest.result(),
    )


def load_model(
    folder: Path,
    role: str,
    *,
    dtype: Any = jnp.float32,
    sharding: Placement = None,
    repo: str | None = None,
    offline: bool | None = None,
) -> tuple[Any, dict, Path]:
    """(configuration, parameters, weight file) of one model of a pipeline folder.

    Args:
      role: key of `args.models`.
      repo: the repository that `folder` was fetched from.
      dtype, sharding, offline: as in `load`.

    Raises:
      UsageError: as in `load`.
    """
    found = hub.model_files(folder, pipeline.stem(folder, role), repo=repo, offline=offline)
    return *_read(role, *found, dtype=dtype, sharding=sharding), found[1]


def flow_config(name: str, *, offline: bool | None = None) -> FlowConfig:
    """The transformer of a generator, from its description alone: no weights are fetched.

    Raises:
      UsageError: no such generator, or its description cannot be used.
    """
    folder, repo = resolve(name, offline=offline), hub.repository(name)
    stem = pipeline.stem(folder, FLOW)
    description = hub.description(folder, stem, repo=repo, offline=offline)
    return pipeline.model_config(description, FLOW)


def _read(
    role: str, description: Path, path: Path, *, dtype: Any, sharding: Placement
) -> tuple[Any, dict]:
    """Configuration and parameters from a model's two files."""
    config = pipeline.model_config(description, role)
    kind = ROLES[role].kind
    try:
        params = weight_port.from_torch(
            kind,
            config,
            files.read(path).tensors,
            source=str(path),
            dtype=np.float32,
            half=np.dtype(dtype),
            place=lambda leaf: place(leaf, sharding),
        )
        weight_port.check_finite(kind, config, params, source=str(path))
    except weight_port.WeightError as error:
        raise UsageError(str(error)) from error
    return config, params


def save(
    folder: Path,
    models: Mapping[str, tuple[Any, dict]],
    sampler: SamplerConfig,
    metadata: Mapping[str, str],
) -> None:
    """Write models (role -> configuration, parameters) as a pipeline folder, tensors in fp16."""
    stems = {role: f"ckpts/{ROLES[role].kind}" for role in models}
    (folder / "ckpts").mkdir(parents=True, exist_ok=True)
    for role, (config, params) in models.items():
        kind, upstream, _ = ROLES[role]
        # Half precision in all, sums and tables too: the embedded files must stay small.
        tensors = weight_port.to_torch(kind, config, params, dtype=np.float16)
        files.write(folder / f"{stems[role]}.safetensors", tensors, metadata)
        contents = {"name": upstream, "args": dataclasses.asdict(config)}
        pipeline.write_json(folder / f"{stems[role]}.json", contents)
    pipeline.write(folder, stems, sampler)
