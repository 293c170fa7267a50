"""What a weight file or an adapter folder holds, found out from the names of its tensors.

Four layouts: `base` (a state dict as TRELLIS publishes it), `dso` (base and adapter in one file,
see `dso.py`), `peft` (the adapter alone, a folder, see `peft.py`), and `merged` (a base with the
adapter folded in: the names of `base`). Reading is all or nothing: a file of which one tensor does
not fit is refused with every such tensor by name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dso_jax.models import FlowConfig, LoRAConfig
from dso_jax.models import lora as adapters
from weight_port import (
    convert,
    dinov2,
    dso,
    files,
    models,
    peft,
    peft_config,
    sizes,
    tables,
    torch_files,
)
from weight_port.errors import Problem, WeightError, report
from weight_port.models import Config, Kind

log = logging.getLogger(__name__)

Layout = Literal["base", "dso", "peft", "merged"]
KNOWN = (
    "a state dict of TRELLIS's flow model or of its structure encoder or decoder, a DSO "
    "checkpoint, a PEFT adapter folder, or a DINOv2"
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our tree, numpy arrays in the stored types.

    Attributes:
      source: where they come from.
      layout: how they were laid out there.
      kind: the model.
      config: its sizes; None if an adapter is all there is.
      params: base leaves (`base`, `merged`), LoRA leaves (`peft`), or both (`dso`).
      lora: the adapter's settings; None without LoRA leaves.
      base_sha256: of the weight file that the adapter was trained on, if the source says.
      metadata: what else the source says about itself; of a base, all that it says.
    """

    source: str
    layout: Layout
    kind: Kind
    config: Config | None
    params: dict
    lora: LoRAConfig | None = None
    base_sha256: str | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read(
    path: str | Path,
    *,
    flow: FlowConfig | None = None,
    alpha: float | None = None,
    base_sha256: str | None = None,
) -> Checkpoint:
    """Reads any of the layouts, whole or not at all.

    Args:
      path: a file of safetensors or of torch (`.pt`, `.pth`, `.bin`), or a PEFT adapter folder.
      flow: the flow model that it must fit; by default its sizes come from the tensors.
      alpha: the adapter's, for a DSO checkpoint that does not state it; None takes DSO's.
      base_sha256: an adapter that says it was trained on another base is refused.

    Raises:
      WeightError: no such file, no known layout, or tensors that do not fit; all by name.
    """
    found = _read(Path(path), flow, alpha, base_sha256)
    if alpha is not None and found.lora is None:
        raise WeightError(f"{path}: has no adapter, so alpha {alpha:g} says nothing")
    if alpha is not None and found.lora is not None and found.lora.alpha != alpha:
        raise WeightError(f"{path}: states alpha {found.lora.alpha:g}, not {alpha:g}")
    return found


def _read(
    path: Path, flow: FlowConfig | None, alpha: float | None, base_sha256: str | None
) -> Checkpoint:
    if path.is_dir():
        return _read_folder(path, flow, base_sha256)
    tensors, texts = torch_files.read_any(path)
    tensors = dinov2.backbone(tensors, str(path))
    if not tensors:
        raise WeightError(f"{path}: holds no tensor")
    if dso.is_dso(tensors):
        return _read_dso(path, tensors, texts, flow, alpha, base_sha256)
    if any(rule.to_ours(name) for rule in peft.RULES for name in tensors):
        raise WeightError(
            f"{path}: the weights of a PEFT adapter; give its folder, with {peft_config.CONFIG}"
        )
    kind, config = ("flow", flow) if flow else _recognise(tensors, str(path))
    params = models.from_torch(kind, config, tensors, source=str(path), place=np.asarray)
    layout = "merged" if texts.get("layout") == "merged" else "base"
    log.info("%s: %s weights, matched %d of %d tensors", path, kind, len(tensors), len(tensors))
    return Checkpoint(str(path), layout, kind, config, params, metadata=texts)


def flow_config(base: Checkpoint) -> FlowConfig:
    """The sizes of a checkpoint that is to be a base.

    Raises:
      WeightError: it is not a flow model's, or has an adapter.
    """
    if not isinstance(base.config, FlowConfig) or base.lora is not None:
        what = f"is a {base.layout} of {base.kind}"
        raise WeightError(f"{base.source}: {what}, expected the flow model that was adapted")
    return base.config


def with_base(adapter: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The adapter beside `base`; what a DSO checkpoint has as its base must be equal to it.

    Raises:
      WeightError: there is no adapter, or the bases differ; names the tensors, and by how much.
    """
    config = flow_config(base)
    if adapter.lora is None:
        raise WeightError(f"{adapter.source}: has no adapter to put onto {base.source}")
    own = convert.flatten(adapters.strip(adapter.params))
    theirs = convert.flatten(base.params)
    problems = []
    for slot in models.slots("flow", config) if own else ():
        pairs = zip(slot.views(own[slot.path]), slot.views(theirs[slot.path]), strict=True)
        for name, pair in zip(slot.names, pairs, strict=True):
            a, b = (np.asarray(view, np.float32) for view in pair)
            if not np.array_equal(a, b, equal_nan=True):
                gap = np.abs(a - b).max()
                problems.append(Problem("value", name, f"differs by up to {gap:.3g}"))
    if problems:
        raise report(adapter.source, f"the base {base.source}", problems)
    branches = adapters.adapter_leaves(adapter.params)
    params = adapters.with_adapter(base.params, branches)
    return dataclasses.replace(adapter, config=config, params=params)


def sha256(path: str | Path) -> str:
    """Of a whole file, as adapters record it of their base."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_folder(folder: Path, flow: FlowConfig | None, base_sha256: str | None) -> Checkpoint:
    if (folder / "pipeline.json").is_file():
        raise WeightError(f"{folder}: a pipeline folder; name one of its weight files")
    if not (folder / peft_config.CONFIG).is_file() and not (folder / peft.WEIGHTS).is_file():
        inside = sorted(path.name for path in folder.glob("*.safetensors"))
        hint = f"; it has {', '.join(inside)}, to be named itself" if inside else ""
        raise WeightError(f"{folder}: no {peft_config.CONFIG}; expected {KNOWN}{hint}")
    params, lora = peft.read_peft_adapter(folder, flow=flow, base_sha256=base_sha256)
    texts = files.read(folder / peft.WEIGHTS).metadata
    own, others = texts.get("base_sha256"), _others(texts)
    return Checkpoint(str(folder), "peft", "flow", None, params, lora, own, others)


def _read_dso(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    texts: Mapping[str, str],
    flow: FlowConfig | None,
    alpha: float | None,
    base_sha256: str | None,
) -> Checkpoint:
    source = str(path)
    alpha = _alpha(source, texts, alpha)
    lora = dso.lora_config(tensors, source, alpha)
    if alpha is None:
        log.warning(
            "%s does not state alpha: %g is taken, twice the rank, as DSO trains", path, lora.alpha
        )
    peft.check_provenance(source, lora, texts, base_sha256)
    config = flow or sizes.flow_config(dso.base_shapes(tensors), source)
    params = convert.load(
        dso.slots(config, lora),
        tensors,
        source=source,
        target=f"a DSO checkpoint of {config} with {lora}",
        place=np.asarray,
    )
    log.info("%s: DSO checkpoint, matched %d of %d tensors", path, len(tensors), len(tensors))
    own, others = texts.get("base_sha256"), _others(texts)
    return Checkpoint(source, "dso", "flow", config, params, lora, own, others)


def _alpha(source: str, texts: Mapping[str, str], default: float | None) -> float | None:
    """Alpha as the header states it, else `default`."""
    stated = texts.get("alpha")
    try:
        alpha = default if stated is None else float(stated)
    except ValueError:
        raise WeightError(f"{source}: its metadata have alpha {stated!r}, no number") from None
    if alpha is not None and not math.isfinite(alpha):
        raise WeightError(f"{source}: alpha {alpha} is no use")
    return alpha


def _recognise(tensors: Mapping[str, np.ndarray], source: str) -> tuple[Kind, Config]:
    """The model that the names are of, if perhaps not all of them, and its sizes."""
    if kind := dinov2.layout(tensors):
        return kind, dinov2.infer_config(tensors, source)
    shapes = {name: np.shape(value) for name, value in tensors.items()}
    flow, vae = (
        sum(any(rule.to_ours(name) for rule in table) for name in shapes)
        for table in (tables.FLOW, tables.STRUCTURE_VAE)
    )
    if flow or vae:
        return (
            ("flow", sizes.flow_config(shapes, source)) if flow > vae else sizes.vae(shapes, source)
        )
    first = ", ".join(list(shapes)[:3])
    guess = convert.hint([Problem("unexpected", name) for name in shapes])
    raise WeightError(
        f"{source}: 0 of {len(shapes)} tensors ({first}, ...) have a known name; expected {KNOWN}"
        + (f"\n{guess}" if guess else "")
    )


def _others(texts: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in texts.items() if key not in peft.PROVENANCE}
