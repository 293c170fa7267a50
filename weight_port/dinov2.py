"""DINOv2 files as they are published: torch-hub `.pth` and Hugging Face safetensors."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from dso_jax.models import DINOv2Config
from weight_port import sizes, tables, torch_files
from weight_port.errors import WeightError
from weight_port.models import from_torch

log = logging.getLogger(__name__)

Layout = Literal["dinov2", "dinov2_hf"]
HEAD_DIM = 64  # of every published size
# What `transformers` puts before the names of the backbone inside a classifier, and the classifier.
_PREFIXES = ("dinov2.", "dinov2_with_registers.")
_CLASSIFIER = ("classifier.weight", "classifier.bias")


def layout(names: Iterable[str]) -> Layout | None:
    """Whose names they are: the torch hub's ("dinov2"), Hugging Face's ("dinov2_hf") or neither."""
    known = {"cls_token": "dinov2", "embeddings.cls_token": "dinov2_hf"}
    return next((known[name] for name in names if name in known), None)  # type: ignore[return-value]


def infer_config(tensors: Mapping[str, np.ndarray], source: str = "the state dict") -> DINOv2Config:
    """The size of a model from the names and shapes of its tensors, of either layout.

    The number of heads leaves no trace in them: it follows from the 64 channels of a head that all
    published sizes have. The resampling of positions follows from the layout and the registers.

    Raises:
      WeightError: names of neither layout, or a tensor that tells a size is missing or misshapen.
    """
    found = layout(tensors)
    if found is None:
        raise WeightError(
            f"{source}: not a DINOv2: among its {len(tensors)} tensors is neither cls_token (torch "
            "hub) nor embeddings.cls_token (Hugging Face)"
        )
    rules = {"dinov2": tables.DINOV2_HUB, "dinov2_hf": tables.DINOV2_HF}[found]

    def name(path: str) -> str:
        return next(names(0)[0] for rule in rules if (names := rule.to_torch(path)))

    shapes = {tensor: np.shape(value) for tensor, value in tensors.items()}

    def size(path: str, axis: int, axes: int) -> int:
        return sizes.size_of(shapes, source, "a DINOv2", name(path), axis, axes)

    width = size("cls_token", 2, 3)
    if width % HEAD_DIM:
        raise WeightError(
            f"{source}: width {width} is not a multiple of {HEAD_DIM}, so that the number of heads "
            "is unknown"
        )
    patch = size("patch_embed/proj/kernel", 2, 4)
    registers = name("register_tokens") in tensors and size("register_tokens", 1, 3)
    gated = name("blocks/mlp/w12/kernel") in tensors
    if gated:
        ratio = size("blocks/mlp/w3/kernel", 1, 2) * 1.5 / width
    else:
        hidden = size("blocks/mlp/fc1/kernel", 0, 2)
        ratio = hidden / width
        if int(width * ratio) < hidden:
            ratio = math.nextafter(ratio, math.inf)
    places = (rule.to_ours(tensor) for tensor in tensors for rule in rules if rule.stacked)
    return DINOv2Config(
        width=width,
        # One tensor with a number out of all proportion does not make the model that long.
        num_blocks=min(1 + max(place[1] or 0 for place in places if place), len(tensors)),
        num_heads=width // HEAD_DIM,
        mlp_ratio=ratio,
        patch_size=patch,
        image_size=round((size("pos_embed", 1, 3) - 1) ** 0.5) * patch,
        num_registers=int(registers),
        ffn="swiglu" if gated else "mlp",
        interpolate_antialias=bool(registers),
        interpolate_offset=0.1 if found == "dinov2" and not registers else 0.0,
    )


def backbone(tensors: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The tensors of a published file without a classifier on top and the prefix that it brings."""
    prefix = next((p for p in _PREFIXES if p + "embeddings.cls_token" in tensors), "")
    if not prefix:
        return dict(tensors)
    left = [name for name in _CLASSIFIER if name in tensors]
    if left:
        log.info("%s: %s left out, a classifier on top of the features", source, ", ".join(left))
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name not in left}


def read(
    path: str | Path,
    config: DINOv2Config | None = None,
    *,
    dtype: Any = None,
    place: Callable[[np.ndarray], Any] = jnp.asarray,
) -> tuple[DINOv2Config, dict]:
    """Reads a DINOv2 of either layout.

    Args:
      path: `dinov2_vitl14_reg4_pretrain.pth` and its like (needs torch), a safetensors file of
        either layout, or a folder with `model.safetensors`.
      config: of the model; taken from the tensors if it is None.
      dtype: type of every leaf; None keeps what the file has (fp32).
      place: called on each finished leaf (numpy); by default it goes to the default device.

    Raises:
      WeightError: names the file, and every tensor that does not fit.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    tensors = backbone(torch_files.read_any(path).tensors, str(path))
    config = config or infer_config(tensors, str(path))
    kind = layout(tensors) or "dinov2"
    params = from_torch(kind, config, tensors, source=str(path), dtype=dtype, place=place)
    return config, params
