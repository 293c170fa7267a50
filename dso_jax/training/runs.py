"""The run folder: begun, resumed, or refused."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from dso_jax import config_io
from dso_jax.atomic import write_atomic
from dso_jax.config import Config
from dso_jax.errors import UsageError
from dso_jax.models import LoRAConfig
from dso_jax.training import processes
from weight_port import write_peft_adapter

logger = logging.getLogger(__name__)

# Sections and fields that may change between the parts of one run: they do not alter what its
# steps compute, or only how many there are. The data are compared by content, not by path.
RESUMABLE = (
    "data",
    "out",
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep",
    "train.overwrite",
    "train.max_skipped",
    "sampler",
    "eval",
    "guard",
    "system",
)
OURS = ("config.yaml", "metrics.jsonl", "checkpoints", "adapter", "adapter-best")


def open_run(config: Config) -> Path:
    """Make or take up the run folder.

    Raises:
        UsageError: it cannot be written, or holds a run that trained something else.
    """
    folder = Path(config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror})") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder}: cannot be written")
    if config.train.overwrite:
        for name in OURS if processes.is_first() else ():
            _remove(folder / name)
        processes.barrier("the run folder is empty")
    path = folder / "config.yaml"
    if path.exists() and (folder / "checkpoints").exists():
        for key, (old, new) in config_io.differences(config_io.load(path), config).items():
            if not key.startswith(RESUMABLE):
                raise UsageError(
                    f"{folder} holds a run with {key} {old}, this one has {new}; choose another "
                    "--out, or throw the old one away with --train.overwrite"
                )
    return folder


def write_config(folder: Path, config: Config) -> None:
    """Write the resolved configuration; whoever trains from it later resumes, and wipes nothing."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, overwrite=False))
    write_atomic(folder / "config.yaml", lambda temporary: config_io.save(config, temporary))


def write_adapter(
    folder: Path, params: dict, adapter: LoRAConfig, base_sha256: str, metadata: Mapping[str, str]
) -> None:
    """Write the adapter in PEFT's layout; the folder never holds half of one."""
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}.tmp")
    _remove(temporary)
    write_peft_adapter(temporary, params, adapter, base_sha256=base_sha256, metadata=metadata)
    _remove(folder)
    temporary.rename(folder)
    logger.info("wrote %s", folder)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
