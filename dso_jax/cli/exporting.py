"""Writing a flow model with an adapter in each layout, and comparing what was written."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dso_jax import pretrained
from dso_jax.cli import load_snippets, pipeline_folder, verify
from dso_jax.errors import UsageError
from dso_jax.models import FlowConfig, lora
from dso_jax.pretrained import hub
from weight_port import WeightError, convert, dso, layouts, layouts_write, models, peft
from weight_port.layouts import Checkpoint

logger = logging.getLogger(__name__)

DSO_FILE = "dso.safetensors"


@dataclass(frozen=True)
class Base:
    """A generator's flow model, and where it lies.

    Attributes:
      folder: its pipeline folder, fetched from the hub's `repo` if that is not None.
      weights: the flow model's file in it, of which `sha256` is.
      params: fp32.
    """

    name: str
    folder: Path
    repo: str | None
    config: FlowConfig
    params: dict
    weights: Path
    sha256: str

    def stored(self) -> Checkpoint:
        """The same weights in the types of the file."""
        return layouts.read(self.weights, flow=self.config)


def load_base(name: str) -> Base:
    """The flow model of a generator.

    Args:
      name: as `pretrained.load` takes it.

    Raises:
      UsageError: see `pretrained.load`.
    """
    folder, repo = pretrained.resolve(name), hub.repository(name)
    config, params, weights = pretrained.load_model(folder, pretrained.FLOW, repo=repo)
    return Base(name, folder, repo, config, params, weights, layouts.sha256(weights))


@contextlib.contextmanager
def usage_errors(out: str) -> Iterator[None]:
    """Weights that do not fit, and disks that are full, are the user's to mend.

    Raises:
      UsageError: for either; what was being written to `out` is gone.
    """
    try:
        yield
    except WeightError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        place = error.filename2 or error.filename or out
        raise UsageError(f"{place}: {error.strerror}; nothing was written to {out}") from error


def write_peft(folder: Path, adapter: Checkpoint, base: Base) -> str:
    """Fills `folder` with the adapter as PEFT saves it.

    Returns:
      What the verification found, a sentence.

    Raises:
      WeightError: what was written is not what it should be.
    """
    layouts_write.write(folder, adapter, "peft", base_sha256=base.sha256)
    found = layouts.read(folder, flow=base.config, base_sha256=base.sha256)
    branches = lora.adapter_leaves(adapter.params)
    slots = convert.plan(peft.RULES, branches)
    count = verify.match(slots, branches, found.params, source=str(folder))
    _describe(folder, "peft", adapter, base)
    expected = verify.velocity(base.config, with_adapter(base, adapter), adapter.lora)
    again = verify.velocity(base.config, with_adapter(base, found), found.lora)
    return _exact(folder, count, again, expected)


def write_dso(folder: Path, adapter: Checkpoint, base: Base) -> str:
    """As `write_peft`, for base and adapter in one file."""
    path = folder / DSO_FILE
    both = layouts.with_base(adapter, base.stored())
    layouts_write.write(path, both, "dso", base_sha256=base.sha256)
    del both  # with a model of full size, memory is short
    found = layouts.read(path, flow=base.config, base_sha256=base.sha256)
    assert found.lora is not None
    params = with_adapter(base, adapter)
    slots = dso.slots(base.config, found.lora)
    count = verify.match(slots, params, found.params, source=str(path))
    _describe(folder, "dso", adapter, base)
    expected = verify.velocity(base.config, params, adapter.lora)
    again = verify.velocity(base.config, _float32(found.params), found.lora)
    return _exact(path, count, again, expected)


def write_merged(
    folder: Path, adapter: Checkpoint, base: Base, half: str, others: pipeline_folder.Others
) -> str:
    """As `write_peft`, for a pipeline folder with the adapter folded into the flow model.

    Args:
      half: type of the tensors that TRELLIS publishes in 16 bits.
      others: see `pipeline_folder.write`.
    """
    dtype = layouts_write.HALVES[half]

    def write_flow(path: Path) -> None:
        both = layouts.with_base(adapter, base.stored())
        layouts_write.write(path, both, "merged", base_sha256=base.sha256, half=dtype)

    pipeline_folder.write(
        folder, base.folder, write_flow, repo=base.repo, others=others, fp16=half == "float16"
    )
    _describe(folder, "merged", adapter, base)
    config, found, path = pretrained.load_model(folder, pretrained.FLOW)
    params, settings = with_adapter(base, adapter), adapter.lora
    assert settings is not None
    slots, merged = models.slots("flow", config), lora.merge(params, settings)
    count = verify.match(slots, merged, found, source=str(path), half=dtype)
    expected = verify.velocity(config, params, settings)
    folded = verify.difference(verify.velocity(config, merged), expected)
    if not folded.largest <= verify.SAME_MODEL * folded.scale:  # before any rounding
        raise WeightError(f"{path}: the adapter folded in is another: {folded.largest:.3g} apart")
    del merged
    again = verify.velocity(config, found)
    del found
    effect = verify.difference(verify.velocity(config, base.params), expected).largest
    gap = verify.difference(again, expected)
    if effect and gap.largest > effect / 10:
        logger.warning(
            "rounding to %s changes the output by %.0f %% of what the adapter does; "
            "export it unmerged, or with another --half",
            half,
            100 * gap.largest / effect,
        )
    return (
        f"matched {count} of {count} tensors; largest difference of one forward "
        f"{gap.largest:.3g}, from rounding to {half}, of values up to {gap.scale:.3g}; "
        f"the adapter changes them by up to {effect:.3g}"
    )


def write_pipeline(
    folder: Path, weights: Checkpoint, base: Base, others: pipeline_folder.Others
) -> str:
    """As `write_peft`, for a flow model's own weights among the other models of `base`."""
    recorded = weights.metadata.get("base_sha256")
    if recorded not in (None, base.sha256):
        raise WeightError(
            f"{weights.source}: merged onto a base with sha256 {recorded}, "
            f"{base.name} has {base.sha256}"
        )

    def write_flow(path: Path) -> None:
        layouts_write.write(path, weights, "base")

    pipeline_folder.write(folder, base.folder, write_flow, repo=base.repo, others=others)
    _, found, path = pretrained.load_model(folder, pretrained.FLOW)
    slots = models.slots("flow", base.config)
    count = verify.match(slots, weights.params, found, source=str(path))
    expected = verify.velocity(base.config, _float32(weights.params))
    return _exact(path, count, verify.velocity(base.config, found), expected)


def with_adapter(base: Base, adapter: Checkpoint) -> dict:
    """Parameters of the base with the adapter's leaves."""
    return lora.with_adapter(base.params, lora.adapter_leaves(adapter.params))


def _float32(params: dict) -> dict:
    flat = convert.flatten(params)
    return convert.unflatten({path: np.asarray(x, np.float32) for path, x in flat.items()})


def _exact(source: Path, count: int, found: np.ndarray, expected: np.ndarray) -> str:
    gap = verify.difference(found, expected)
    if not gap.largest <= verify.SAME_PROGRAM * gap.scale:
        raise WeightError(f"{source}: one forward of what was written differs by {gap.largest:.3g}")
    return (
        f"matched {count} of {count} tensors; largest difference of one forward "
        f"{gap.largest:.3g}, of values up to {gap.scale:.3g}"
    )


def _describe(folder: Path, layout: str, adapter: Checkpoint, base: Base) -> None:
    text = load_snippets.readme(layout, adapter, base.name, base.sha256)
    (folder / "README.md").write_text(text, encoding="utf-8")
