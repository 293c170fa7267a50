"""Weights in and out: torch state dicts and PEFT adapters, without torch."""

from weight_port.errors import Problem, WeightError
from weight_port.models import check_finite, from_torch, to_torch
from weight_port.peft import read_peft_adapter, write_peft_adapter

__all__ = [
    "Problem",
    "WeightError",
    "check_finite",
    "from_torch",
    "read_peft_adapter",
    "to_torch",
    "write_peft_adapter",
]
