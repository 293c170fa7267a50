"""A TRELLIS pipeline folder with another flow model in it, and all the rest of its base."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from dso_jax.errors import UsageError
from dso_jax.pretrained import hub, pipeline

logger = logging.getLogger(__name__)

Others = Literal["copy", "link"]


def write(
    folder: Path,
    base: Path,
    write_flow: Callable[[Path], None],
    *,
    repo: str | None = None,
    others: Others = "copy",
    fp16: bool = True,
) -> None:
    """Fills an empty folder that TRELLIS loads as it loads `base`.

    File names stay, so that whatever names them in the base finds them here.

    Args:
      base: a pipeline folder from which the flow model was loaded.
      write_flow: called with the path of the flow model's new weights.
      repo: the hub repository that `base` was fetched from; what of it is not here yet is fetched.
      others: whether the other models are copied, or symbolic links to the base's.
      fp16: whether TRELLIS may go on rounding the flow model to fp16 when it loads it.

    Raises:
      UsageError: pipeline.json names no file, or one of a hub repository that is not to be had.
      OSError: a file cannot be read or written.
    """
    contents = json.loads((base / hub.PIPELINE).read_text(encoding="utf-8"))
    stems = contents["args"]["models"]
    for role, stem in stems.items():
        if not isinstance(stem, str):
            raise UsageError(f"{base / hub.PIPELINE}: args.models.{role} is {stem!r}, no name")
        here = all((base / f"{stem}{suffix}").is_file() for suffix in hub.SUFFIXES)
        if not here and repo is None and role != pipeline.FLOW:
            logger.warning("%s: no %s, which pipeline.json names; left as it is", base, stem)
            continue
        sources = hub.model_files(base, stem, repo=repo)
        inside = not Path(stem).is_absolute() and ".." not in Path(stem).parts
        stems[role] = stem if inside else f"ckpts/{Path(stem).name}"
        description, weights = (folder / f"{stems[role]}{suffix}" for suffix in hub.SUFFIXES)
        description.parent.mkdir(parents=True, exist_ok=True)
        if role == pipeline.FLOW:
            _copy(sources[0], description)
            if not fp16:
                _keep_digits(description)
            write_flow(weights)
        elif others == "link":
            description.symlink_to(sources[0].resolve())
            weights.symlink_to(sources[1].resolve())
        else:
            logger.info("copying %s (%.2f GB)", stem, sources[1].stat().st_size / 1e9)
            _copy(sources[0], description)
            _copy(sources[1], weights)
    pipeline.write_json(folder / hub.PIPELINE, contents)


def _keep_digits(description: Path) -> None:
    """Tells TRELLIS, which rounds on loading where `use_fp16` is set, to leave a model as it is."""
    contents = json.loads(description.read_text(encoding="utf-8"))
    contents["args"]["use_fp16"] = False
    pipeline.write_json(description, contents)


def _copy(source: Path, target: Path) -> None:
    """Copies what is in a file; it is on the disk before the folder gets its name."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
