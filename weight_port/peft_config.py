"""`adapter_config.json`: what PEFT needs to rebuild an adapter, and what we can take from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dso_jax.models import LoRAConfig
from weight_port.errors import WeightError

CONFIG = "adapter_config.json"
# Settings of PEFT that do not change what a saved adapter computes. Every other one that is set
# (a rank per layer, DoRA, trained biases, ...) would make it another function, and is refused.
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
}
_NEUTRAL = {
    "bias": ("none",),
    # The other initialisations (PiSSA, OLoRA, CorDA, LoftQ) change the base too.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}


def render(lora: LoRAConfig) -> dict[str, Any]:
    """What PEFT's `LoraConfig` needs to rebuild the adapter."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.rank,
        # PEFT declares an integer; a fraction is kept as it is.
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def read(path: Path) -> dict[str, Any]:
    """Reads and checks the settings of a LoRA adapter.

    Raises:
      WeightError: no such file, not JSON, or a setting that our linears with a branch lack.
    """
    if not path.is_file():
        raise WeightError(f"{path}: no such file; a PEFT adapter is a folder with {CONFIG}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also what is not UTF-8
        raise WeightError(f"{path}: not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise WeightError(f"{path}: expected an object with the adapter's settings")
    if settings.get("peft_type") != "LORA":
        raise WeightError(f"{path}: peft_type is {settings.get('peft_type')!r}, expected 'LORA'")
    for key, kind in {"r": int, "lora_alpha": (int, float), "target_modules": (list, str)}.items():
        if not isinstance(settings.get(key), kind) or isinstance(settings[key], bool):
            raise WeightError(f"{path}: {key} is {settings.get(key)!r}, which is not usable")
    if not abs(settings["lora_alpha"]) <= sys.float_info.max:  # an integer may be larger
        raise WeightError(f"{path}: lora_alpha is {settings['lora_alpha']}, expected a number")
    if settings["r"] < 1:
        raise WeightError(f"{path}: r is {settings['r']}, expected at least 1")
    for key, value in settings.items():
        neutral = value in _NEUTRAL[key] if key in _NEUTRAL else not value
        if key not in _HARMLESS and not neutral:
            raise WeightError(f"{path}: {key}={value!r} is not supported")
    return settings
