"""Writing a checkpoint in any layout that it holds the parts of; see `layouts.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from dso_jax.models import FlowConfig
from dso_jax.models import lora as adapters
from weight_port import convert, dso, files, models, peft
from weight_port.errors import WeightError
from weight_port.folders import new_folder
from weight_port.layouts import Checkpoint

Target = Literal["base", "dso", "peft", "merged", "dinov2", "dinov2_hf"]
HALVES: dict[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}


def write(
    path: str | Path,
    checkpoint: Checkpoint,
    layout: Target,
    *,
    base_sha256: str | None = None,
    half: DTypeLike | None = None,
) -> None:
    """Writes a file, or for `peft` a folder; it appears whole or not at all.

    Args:
      path: what is there already is refused for a folder, replaced for a file.
      layout: `base` leaves an adapter out, `peft` the base; `merged` folds the adapter in, in
        fp32, and rounds the result. `dinov2` and `dinov2_hf` are DINOv2's two sets of names.
      base_sha256: recorded with an adapter whose source does not say which base it is for.
      half: type of the tensors that TRELLIS publishes in 16 bits. None keeps every type as it is,
        but for `merged`: the adapted weights have to be rounded to something, fp16.

    Raises:
      WeightError: the checkpoint lacks a part that the layout needs, or overflows in `half`.
    """
    check(checkpoint, layout)
    sha256 = checkpoint.base_sha256 or base_sha256
    if layout == "peft":
        assert checkpoint.lora is not None
        with new_folder(path) as folder:
            peft.write_peft_adapter(
                folder,
                checkpoint.params,
                checkpoint.lora,
                base_sha256=sha256,
                metadata=checkpoint.metadata,
            )
        return
    tensors = tensors_of(checkpoint, layout, half)
    texts = dict(checkpoint.metadata)
    if layout in ("dso", "merged"):
        assert checkpoint.lora is not None
        texts = peft.provenance(checkpoint.lora, sha256, texts) | {"layout": layout}
    elif checkpoint.lora is not None:
        texts = {"format": "pt"}  # what was said is about the adapter
    files.write(path, tensors, texts)


def check(checkpoint: Checkpoint, layout: Target) -> None:
    """Refuses a layout that the checkpoint lacks a part of.

    Raises:
      WeightError: says which, and what to do.
    """
    what = f"{checkpoint.source}: is a {checkpoint.layout} of {checkpoint.kind}"
    has_base, has_adapter = checkpoint.config is not None, checkpoint.lora is not None
    if (layout in ("dinov2", "dinov2_hf")) > (checkpoint.kind in ("dinov2", "dinov2_hf")):
        raise WeightError(f"{what}, which has no names in the layout {layout}")
    if layout in ("dso", "peft", "merged") and not has_adapter:
        folded = ": a folded adapter cannot be told apart again" * (checkpoint.layout == "merged")
        raise WeightError(f"{what}, {layout} needs an adapter{folded}")
    if layout != "peft" and not has_base:
        raise WeightError(f"{what}, {layout} needs the base that it was trained on too")


def tensors_of(
    checkpoint: Checkpoint, layout: Target, half: DTypeLike | None = None
) -> dict[str, np.ndarray]:
    """The tensors of a layout that is one file; arguments and errors as `write`."""
    assert checkpoint.config is not None
    if layout == "dso":
        assert isinstance(checkpoint.config, FlowConfig) and checkpoint.lora is not None
        slots = dso.slots(checkpoint.config, checkpoint.lora)
        return convert.export(slots, checkpoint.params, cast=convert.Cast(half=half))
    kind, params = checkpoint.kind, adapters.strip(checkpoint.params)
    if layout == "merged":
        params, half = merge(checkpoint), half or np.float16
    elif layout in ("dinov2", "dinov2_hf"):
        kind = layout
    return models.to_torch(kind, checkpoint.config, params, half=half)


def merge(checkpoint: Checkpoint) -> dict:
    """The base's parameters with the adapter folded in; the adapted kernels are fp32."""
    assert checkpoint.lora is not None
    flat = convert.flatten(checkpoint.params)
    for branch in [path for path in flat if path.endswith("/lora_A")]:
        kernel = branch.removesuffix("lora_A") + "kernel"
        flat[kernel] = np.asarray(flat[kernel], np.float32)
    return adapters.merge(convert.unflatten(flat), checkpoint.lora)
