"""The DINOv2 that conditions a generator: not in its folder, so named and found apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dso_jax.errors import UsageError
from dso_jax.models import DINOv2Config
from dso_jax.pretrained import hub
from dso_jax.pretrained.placement import Placement, place
from weight_port import WeightError, dinov2

DEFAULT = "dinov2_vitl14_reg"  # what `image_cond_model` of TRELLIS-image-large says
_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
# Names of the torch hub -> repositories with the same weights as safetensors.
REPOSITORIES = {
    f"dinov2_vit{letter}14{suffix}": f"facebook/dinov2{middle}-{size}"
    for suffix, middle in (("_reg", "-with-registers"), ("", ""))
    for letter, size in _SIZES.items()
}


def load_image_encoder(
    source: str = DEFAULT,
    *,
    dtype: Any = np.float32,
    sharding: Placement = None,
    offline: bool | None = None,
) -> tuple[DINOv2Config, dict]:
    """Read a DINOv2 in any published layout.

    Args:
      source: a torch-hub `.pth` (needs torch), a safetensors file, a folder with
        `model.safetensors`, a name of the torch hub, or a repository of the Hugging Face hub.
      dtype: of every leaf; TRELLIS runs it in fp32.
      sharding, offline: as in `pretrained.load`.

    Returns:
      Configuration and parameters for `models.apply_dinov2` and `conditioning.encode`.

    Raises:
      UsageError: neither there nor on the hub, or tensors that do not fit, by name.
    """
    path = Path(source)
    if not path.exists():
        repo = REPOSITORIES.get(source) or hub.repository(source)
        if repo is None:
            raise UsageError(
                f"image encoder {source!r}: no such file; expected a path, a repository of the "
                f"Hugging Face hub, or one of {', '.join(REPOSITORIES)}"
            )
        path = hub.fetch(repo, "model.safetensors", offline=offline)
    try:
        return dinov2.read(path, dtype=dtype, place=lambda leaf: place(leaf, sharding))
    except WeightError as error:
        raise UsageError(str(error)) from error
