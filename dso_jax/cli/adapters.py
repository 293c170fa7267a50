"""Adapters from where a user has them: a run of `dso train`, a PEFT folder, a DSO checkpoint."""

from __future__ import annotations

from pathlib import Path

import jax

from dso_jax import config_io
from dso_jax.cli import exporting
from dso_jax.config import Config
from dso_jax.errors import UsageError
from dso_jax.models import LoRAConfig, lora
from dso_jax.pretrained import Base
from weight_port import WeightError, layouts

NAMES = {"best": "adapter-best", "last": "adapter"}  # in a run, the better first
PEFT_WEIGHTS = "adapter_model.safetensors"


def attach(base: Base, source: Path) -> tuple[dict, LoRAConfig]:
    """The flow's parameters with the adapter in `source`, and the adapter's settings.

    Raises:
      UsageError: there is none, or it does not fit `base` or was trained on another.
    """
    found = find(source)
    try:
        adapter = layouts.read(found, flow=base.flow_config, base_sha256=base.sha256)
        if adapter.lora is None:
            raise UsageError(
                f"{found}: whole weights of a {adapter.kind} model, no adapter; give the pipeline "
                "folder that they belong to as --base"
            )
        if adapter.layout == "dso":  # has its base with it, which need not be this one
            layouts.with_base(adapter, exporting.load_base(base.name).stored())
    except WeightError as error:
        raise UsageError(str(error)) from error
    params = lora.with_adapter(base.flow_params, lora.adapter_leaves(adapter.params))
    check_trained(source, params)
    return params, adapter.lora


def start(base: Base, source: str | None) -> tuple[dict, LoRAConfig] | None:
    """Leaves and settings of the adapter that training is to start from; None without a source.

    Raises:
      UsageError: as `attach`.
    """
    if source is None:
        return None
    params, settings = attach(base, Path(source))
    return lora.adapter_leaves(params), settings


def find(source: Path, which: str = "auto") -> Path:
    """The adapter of a run folder, or `source` itself if it is one.

    A folder of `dso export --layout dso` and the weight file of a PEFT folder are taken for the
    adapter that they are part of.

    Args:
      which: of a run: one of `NAMES`, or "auto" for the first that is there.

    Raises:
      UsageError: there is none.
    """
    if not source.exists():
        raise UsageError(f"{source}: no such run or adapter")
    if source.name == PEFT_WEIGHTS and (source.parent / "adapter_config.json").is_file():
        return source.parent
    if source.is_file() or (source / "adapter_config.json").is_file():
        return source
    if (source / exporting.DSO_FILE).is_file():
        return source / exporting.DSO_FILE
    names = list(NAMES.values()) if which == "auto" else [NAMES[which]]
    for name in names:
        if (source / name).is_dir():
            return source / name
    raise UsageError(
        f"{source}: no {' and no '.join(names)} in it; expected a finished run that trained an "
        "adapter, a PEFT adapter folder, or a DSO checkpoint"
    )


def recorded_base(source: Path) -> str | None:
    """The base that a run of `dso train` started from; None if `source` is no such folder."""
    config = _config(source)
    return None if config is None else config.base


def check_trained(source: Path, params: dict) -> None:
    """Refuses a run that trained weights of the base too: its adapter alone is not its model.

    Args:
      params: base and adapter.

    Raises:
      UsageError: names the run's patterns.
    """
    config = _config(source)
    if config is None:
        return
    mask = lora.trainable_mask(params, config.trainable)
    if any(jax.tree.leaves(lora.strip(mask))):
        raise UsageError(
            f"{source}: trained weights of the base too (trainable: "
            f"{', '.join(config.trainable)}); only its checkpoints hold them, and the adapter "
            "without them is another model"
        )


def _config(source: Path) -> Config | None:
    path = source / "config.yaml"
    return config_io.load(path) if path.is_file() else None
