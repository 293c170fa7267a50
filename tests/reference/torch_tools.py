"""Random weights and LoRA branches for the torch reference modules."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Fill every parameter with noise, so that no zero-initialised layer hides a difference."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and not name.endswith("gamma"):
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
        else:
            centre = 0.0 if name.endswith("bias") else 1.0
            parameter.copy_(centre + 0.1 * noise)
    return module


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """The state dict as numpy arrays."""
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


class LoRALinear(nn.Module):
    """y = base(x) + scale * B(A(x)), with PEFT's tensor layout."""

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.scale * self.lora_B(self.lora_A(x))


def add_lora(module: nn.Module, targets: Iterable[str], rank: int, alpha: float) -> nn.Module:
    """Freeze ``module`` and wrap every linear whose own name is in ``targets``, in place."""
    module.requires_grad_(False)
    wanted = set(targets)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if name in wanted and isinstance(child, nn.Linear):
                setattr(parent, name, LoRALinear(child, rank, alpha / rank))
    return module
