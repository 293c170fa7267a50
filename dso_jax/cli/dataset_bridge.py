"""The way of a dataset to the second stage: which generator decodes it."""

from __future__ import annotations

from pathlib import Path

from dso_jax import pretrained
from dso_jax.dataset.coords import Exported, Progress, decoder, export_coords
from dso_jax.dataset.layout import DECODER_DTYPE, META, kinds, read_meta
from dso_jax.dataset.store import Dataset
from dso_jax.errors import UsageError
from dso_jax.pretrained import hub, pipeline
from weight_port import layouts


def export(folder: Path, out: Path, base: str | None, progress: Progress) -> Exported:
    """Writes the coordinates of a dataset's samples, see `dataset.coords`.

    Args:
      base: name of the generator; None takes the one that the dataset records.

    Raises:
      UsageError: the dataset or the generator cannot be used, or the samples are another one's.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such dataset folder")
    meta = read_meta(folder)
    name = base or meta.get("base")
    if not isinstance(name, str):
        raise UsageError(f"{folder}: does not record its generator; name it with --base")
    dataset = Dataset(folder, images="images" in kinds(meta))
    where, repo = pretrained.resolve(name), hub.repository(name)
    recorded = meta.get("base_sha256")
    if recorded is not None:
        weights = hub.model_files(where, pipeline.stem(where, pretrained.FLOW), repo=repo)[1]
        found = layouts.sha256(weights)
        if found != recorded:
            raise UsageError(
                f"{folder}: its samples are from a base with sha256 {recorded}, {name} has {found}"
            )
    config, params, _ = pretrained.load_model(where, pretrained.DECODER, repo=repo)
    if dataset.latent_shape[0] != config.latent_channels:
        raise UsageError(
            f"{folder}: latents have {dataset.latent_shape[0]} channels, the decoder of {name} "
            f"takes {config.latent_channels}"
        )
    dtype = meta.get(DECODER_DTYPE, "float32")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise UsageError(f"{folder / META}: {DECODER_DTYPE} is {dtype!r}, no type of the decoder")
    origin = {"base": name, "base_sha256": recorded, "resolution": resolution(dataset, config)}
    decode = decoder(config, params, dtype=dtype)
    return export_coords(dataset, out, decode, origin=origin, progress=progress)


def resolution(dataset: Dataset, config) -> int:
    """Edge of the occupancy grid: every level of the decoder but the first doubles the latent's."""
    return dataset.latent_shape[-1] * 2 ** (len(config.channels) - 1)
