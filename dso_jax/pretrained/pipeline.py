"""`pipeline.json` and the models' own `.json`: read strictly, written as upstream writes them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dso_jax.atomic import write_text
from dso_jax.errors import UsageError
from dso_jax.models import DecoderConfig, EncoderConfig, FlowConfig
from dso_jax.pretrained.hub import PIPELINE
from dso_jax.sampler import SamplerConfig

FLOW, DECODER, ENCODER = (
    "sparse_structure_flow_model",
    "sparse_structure_decoder",
    "sparse_structure_encoder",
)


class Role(NamedTuple):
    """What stands behind a key of `args.models`."""

    kind: Any  # for weight_port
    upstream: str  # TRELLIS's class
    config: type  # ours


ROLES = {
    FLOW: Role("flow", "SparseStructureFlowModel", FlowConfig),
    DECODER: Role("decoder", "SparseStructureDecoder", DecoderConfig),
    ENCODER: Role("encoder", "SparseStructureEncoder", EncoderConfig),
}
# Arguments that say how upstream runs a model, not what it is.
RUNTIME_ARGUMENTS = ("use_fp16", "use_checkpoint")
# Upstream's defaults of the flow model, where ours are the published model's: a `.json` may leave
# them out.
FLOW_DEFAULTS = {"patch_size": 2, "qk_rms_norm": False}

MAX_SIZE = 2**16  # far above any model's: the names of a billion blocks would fill the memory


def arguments(folder: Path) -> dict:
    """`args` of a folder's pipeline.json.

    Raises:
      UsageError: the file is absent, not JSON, or has no such object.
    """
    path = folder / PIPELINE
    found = _read_json(path).get("args")
    if not isinstance(found, dict):
        raise UsageError(f"{path}: no 'args'")
    return found


def stem(folder: Path, role: str) -> str:
    """The name of a model's files, without suffix.

    Raises:
      UsageError: pipeline.json does not name the model.
    """
    stems = arguments(folder).get("models", {})
    if not isinstance(stems, dict) or not isinstance(stems.get(role), str):
        raise UsageError(f"{folder / PIPELINE}: args.models has no {role!r}")
    return stems[role]


def model_config(path: Path, role: str) -> Any:
    """The configuration in a model's `.json`; upstream's `Elastic` prefix names the same model.

    Raises:
      UsageError: another class, or arguments that our configuration does not take.
    """
    description = _read_json(path)
    found = str(description.get("name")).removeprefix("Elastic")
    if found != ROLES[role].upstream:
        raise UsageError(f"{path}: is a {found}, expected a {ROLES[role].upstream}")
    given = description.get("args", {})
    if not isinstance(given, dict):
        raise UsageError(f"{path}: 'args' is not an object")
    config_class = ROLES[role].config
    taken: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in given.items()
        if key not in RUNTIME_ARGUMENTS
    }
    # Upstream gives heads by number, or by their width where the number is null.
    width = taken.pop("num_head_channels", 64)
    try:
        if config_class is FlowConfig:
            taken = FLOW_DEFAULTS | taken
            taken["num_heads"] = taken.get("num_heads") or taken["model_channels"] // width
        config = config_class(**taken)
    except KeyError as error:
        raise UsageError(f"{path}: 'args' has no {error}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{path}: {error}") from error
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _usable(field, value):
            raise UsageError(f"{path}: {field.name} is {value!r}, which is not usable")
    return config


def _usable(field: dataclasses.Field, value: Any) -> bool:
    """Whether a setting is of its kind, and a number one that a model can have."""
    if field.type in (bool, str):
        return isinstance(value, field.type)  # type: ignore[arg-type]
    if field.type is float:
        return type(value) in (int, float) and 0 < value <= MAX_SIZE
    if isinstance(value, tuple) != (field.type is not int):
        return False
    numbers = value if isinstance(value, tuple) else (value,)
    least = 0 if field.name.startswith("num_res_blocks") else 1
    return len(numbers) > 0 and all(type(n) is int and least <= n <= MAX_SIZE for n in numbers)


def sampler(folder: Path) -> SamplerConfig:
    """The structure sampler's settings.

    Raises:
      UsageError: one of them is missing or of no use.
    """
    path = folder / PIPELINE
    where = f"{path}: args.sparse_structure_sampler.params"
    try:
        params = arguments(folder)["sparse_structure_sampler"]["params"]
        return SamplerConfig(
            steps=params["steps"],
            rescale_t=params["rescale_t"],
            guidance_weight=params["cfg_strength"],
            guidance_interval=tuple(params["cfg_interval"]),
        )
    except KeyError as error:
        raise UsageError(f"{where} has no {error}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error


def write(folder: Path, stems: Mapping[str, str], settings: SamplerConfig) -> None:
    """Write pipeline.json for the models (role -> stem) and the sampler."""
    sampler_arguments = {
        "name": "FlowEulerGuidanceIntervalSampler",
        "args": {"sigma_min": 1e-5},
        "params": {
            "steps": settings.steps,
            "cfg_strength": settings.guidance_weight,
            "cfg_interval": list(settings.guidance_interval),
            "rescale_t": settings.rescale_t,
        },
    }
    contents = {"models": dict(stems), "sparse_structure_sampler": sampler_arguments}
    write_json(folder / PIPELINE, {"name": "TrellisImageTo3DPipeline", "args": contents})


def write_json(path: Path, contents: dict) -> None:
    """Write an object, whole or not at all."""
    write_text(path, json.dumps(contents, indent=2) + "\n")


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
