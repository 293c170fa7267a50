"""Names and description of what a dataset folder holds; see `dso_jax.dataset.store`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dso_jax.dataset.samples import SCHEMA
from dso_jax.errors import UsageError

FORMAT = "dso-jax-dataset-1"
META = "meta.json"
KEY = ("object", "view", "sample")  # names a sample
WRITER_COLUMNS = ("shard", "row")  # filled in by the writer
CALLER_COLUMNS = tuple(name for name in SCHEMA.names if name not in WRITER_COLUMNS)
# Kind of shard -> the column that says which of its rows a sample uses.
ROW_COLUMNS = {"latents": "row", "conditions": "condition_row", "images": "condition_row"}
# Kind of shard -> the key of meta.json with the shape of its rows.
SHAPES = {"latents": "latent_shape", "conditions": "condition_shape", "images": "image_shape"}
DECODER_DTYPE = "decoder_dtype"  # in meta.json: in which type latents were decoded for their labels
NO_CONDITION = -1  # in `condition_row`: the latent can be learned from, under another view's image


def shard_path(folder: Path, kind: str, shard: int) -> Path:
    """Where a shard of latents, conditions or images is."""
    return folder / f"{kind}-{shard:05d}.safetensors"


def read_meta(folder: Path) -> dict[str, Any]:
    """Contents of a dataset folder's meta.json.

    Raises:
        UsageError: there is none, or it is not one of ours.
    """
    path = folder / META
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error})") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else meta
        raise UsageError(f"{path}: format is {found!r}, expected {FORMAT!r}")
    return meta


def kinds(meta: Mapping[str, Any]) -> list[str]:
    """What a folder keeps of each shard: latents, and conditions, images or both.

    A folder that names neither is taken for one of conditions, which `row_shape` then misses.
    """
    seen = [kind for kind in ("conditions", "images") if SHAPES[kind] in meta]
    return ["latents", *(seen or ["conditions"])]


def row_shape(folder: Path, meta: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Shape of a shard's rows, from one of `SHAPES` in meta.json.

    Raises:
        UsageError: it says nothing of use.
    """
    shape = meta.get(key)
    if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
        raise UsageError(f"{folder / META}: {key} is {shape!r}, expected a list of sizes")
    return tuple(shape)
