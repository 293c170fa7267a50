"""Published generators: a TRELLIS pipeline folder, or the toybox that ships with the package.

A folder holds `pipeline.json`, which names for each model the stem of a `.json` (class and
arguments) and a `.safetensors` (torch names). The toybox is such a folder too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import weight_port
from dso_jax.atomic import write_text
from dso_jax.errors import UsageError
from dso_jax.models import DecoderConfig, EncoderConfig, FlowConfig
from dso_jax.sampler import SamplerConfig
from weight_port import files

EMBEDDED = {"toybox": Path(__file__).parent / "toybox" / "weights"}
FLOW, DECODER, ENCODER = (
    "sparse_structure_flow_model",
    "sparse_structure_decoder",
    "sparse_structure_encoder",
)
# Role in pipeline.json -> (kind for weight_port, upstream's class, our configuration).
ROLES: dict[str, tuple[Any, str, type]] = {
    FLOW: ("flow", "SparseStructureFlowModel", FlowConfig),
    DECODER: ("decoder", "SparseStructureDecoder", DecoderConfig),
    ENCODER: ("encoder", "SparseStructureEncoder", EncoderConfig),
}
# Arguments that say how upstream runs a model, not what it is.
RUNTIME_ARGUMENTS = ("use_fp16", "use_checkpoint")


@dataclass(frozen=True)
class Base:
    """A generator as it was published, before any post-training; parameters are fp32."""

    name: str
    flow_config: FlowConfig
    flow_params: dict
    decoder_config: DecoderConfig
    decoder_params: dict
    sampler: SamplerConfig
    sha256: str  # of the flow's weight file


def resolve(name: str) -> Path:
    """The folder of an embedded generator or of a local path.

    Raises:
      UsageError: neither.
    """
    folder = EMBEDDED.get(name, Path(name))
    if not (folder / "pipeline.json").is_file():
        known = ", ".join(EMBEDDED)
        raise UsageError(
            f"base {name!r}: no {folder / 'pipeline.json'}; expected {known} or a TRELLIS folder"
        )
    return folder


def load(name: str) -> Base:
    """Read the stage-1 models of a generator.

    Args:
      name: "toybox", or the path of a TRELLIS pipeline folder.

    Raises:
      UsageError: a file that is missing or is not what `pipeline.json` says, or tensors that are
        missing, unknown or misshapen, all in one report.
    """
    folder = resolve(name)
    arguments = _pipeline(folder)
    flow_config, flow_params, flow_file = load_model(folder, FLOW)
    decoder_config, decoder_params, _ = load_model(folder, DECODER)
    return Base(
        name=name,
        flow_config=flow_config,
        flow_params=flow_params,
        decoder_config=decoder_config,
        decoder_params=decoder_params,
        sampler=_sampler(folder, arguments),
        sha256=hashlib.sha256(flow_file.read_bytes()).hexdigest(),
    )


def load_model(folder: Path, role: str) -> tuple[Any, dict, Path]:
    """(configuration, fp32 parameters, weight file) of one model of a pipeline folder."""
    kind, _, _ = ROLES[role]
    stems = _pipeline(folder).get("models", {})
    if role not in stems:
        raise UsageError(f"{folder / 'pipeline.json'}: args.models has no {role!r}")
    stem = folder / stems[role]
    config = _config(stem.with_name(stem.name + ".json"), role)
    path = stem.with_name(stem.name + ".safetensors")
    try:
        tensors = files.read(path).tensors
        params = weight_port.from_torch(kind, config, tensors, source=str(path), dtype=np.float32)
    except weight_port.WeightError as error:
        raise UsageError(str(error)) from error
    return config, _to_device(params), path


def save(
    folder: Path,
    models: Mapping[str, tuple[Any, dict]],
    sampler: SamplerConfig,
    metadata: Mapping[str, str],
) -> None:
    """Write models (role -> configuration, parameters) as a pipeline folder, tensors in fp16."""
    stems = {role: f"ckpts/{ROLES[role][0]}" for role in models}
    (folder / "ckpts").mkdir(parents=True, exist_ok=True)
    for role, (config, params) in models.items():
        kind, upstream, _ = ROLES[role]
        # Half precision in all, sums and tables too: the embedded files must stay small.
        tensors = weight_port.to_torch(kind, config, params, dtype=np.float16)
        files.write(folder / f"{stems[role]}.safetensors", tensors, metadata)
        _write_json(
            folder / f"{stems[role]}.json",
            {"name": upstream, "args": dataclasses.asdict(config)},
        )
    pipeline = {"models": stems, "sparse_structure_sampler": _sampler_arguments(sampler)}
    _write_json(folder / "pipeline.json", {"name": "TrellisImageTo3DPipeline", "args": pipeline})


def _pipeline(folder: Path) -> dict:
    path = folder / "pipeline.json"
    arguments = _read_json(path).get("args")
    if not isinstance(arguments, dict):
        raise UsageError(f"{path}: no 'args'")
    return arguments


def _config(path: Path, role: str) -> Any:
    """The model's configuration; upstream's `Elastic` prefix names the same model."""
    _, upstream, config_class = ROLES[role]
    description = _read_json(path)
    found = str(description.get("name")).removeprefix("Elastic")
    if found != upstream:
        raise UsageError(f"{path}: is a {found}, expected a {upstream}")
    arguments: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in description.get("args", {}).items()
        if key not in RUNTIME_ARGUMENTS
    }
    # Upstream gives heads by number, or by their width where the number is null.
    width = arguments.pop("num_head_channels", 64)
    if config_class is FlowConfig and arguments.get("num_heads") is None:
        arguments["num_heads"] = arguments["model_channels"] // width
    try:
        return config_class(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error


def _sampler(folder: Path, arguments: Mapping) -> SamplerConfig:
    params = arguments.get("sparse_structure_sampler", {}).get("params", {})
    try:
        return SamplerConfig(
            steps=params["steps"],
            rescale_t=params["rescale_t"],
            guidance_weight=params["cfg_strength"],
            guidance_interval=tuple(params["cfg_interval"]),
        )
    except KeyError as error:
        raise UsageError(
            f"{folder / 'pipeline.json'}: args.sparse_structure_sampler.params has no {error}"
        ) from error


def _sampler_arguments(sampler: SamplerConfig) -> dict:
    return {
        "name": "FlowEulerGuidanceIntervalSampler",
        "args": {"sigma_min": 1e-5},
        "params": {
            "steps": sampler.steps,
            "cfg_strength": sampler.guidance_weight,
            "cfg_interval": list(sampler.guidance_interval),
            "rescale_t": sampler.rescale_t,
        },
    }


def _to_device(tree: Any) -> Any:
    return {k: _to_device(v) if isinstance(v, dict) else jnp.asarray(v) for k, v in tree.items()}


def _read_json(path: Path) -> dict:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error})") from None
    if not isinstance(contents, dict):
        raise UsageError(f"{path}: expected an object")
    return contents


def _write_json(path: Path, contents: dict) -> None:
    write_text(path, json.dumps(contents, indent=2) + "\n")
