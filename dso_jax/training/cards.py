"""GPUs that are not here: what a step would take there, estimated from a measurement elsewhere.

Measured on an H200 with TRELLIS-image-large in bf16, DRO, 12 samples: 6.6 GiB and 571 ms with
`remat: full`, 110 GiB and 541 ms with `none`. Less what weights, gradients and Adam take, that is
the sum below in units of one block's input, (tokens, width) a sample. It holds for an attention
that does not keep its weights (cuDNN's).
"""

from __future__ import annotations

from typing import NamedTuple

from dso_jax.errors import UsageError
from dso_jax.models import FlowConfig
from dso_jax.models import remat as remat_policies

GIB = 2**30
USABLE = 0.9  # of a card's memory; the rest is the driver's, NCCL's and fragmentation
EFFICIENCY = 0.4  # of the peak, as on the H200: 390 of 989 TFLOP/s
WORKSPACE = 32  # units a sample: the block whose turn it is


class Card(NamedTuple):
    """A GPU by its data sheet."""

    kind: str  # as JAX names it, in part
    memory: int  # GiB
    peak: float  # TFLOP/s of dense bf16 products summed in fp32


CARDS = {
    "rtx-24g": Card("RTX 4090", 24, 165),
    "rtx-32g": Card("RTX 5090", 32, 209),
    "l40s-48g": Card("L40S", 48, 362),
    "a100-40g": Card("A100-SXM4-40GB", 40, 312),
    "a100-80g": Card("A100", 80, 312),
    "h100-80g": Card("H100", 80, 989),
    "h200-141g": Card("H200", 139, 989),
}


def find(name: str) -> Card:
    """A card by its name here.

    Raises:
        UsageError: it is not in the table.
    """
    if name not in CARDS:
        raise UsageError(f"--device {name}: expected one of {', '.join(CARDS)}")
    return CARDS[name]


def sample_bytes(flow: FlowConfig, remat: str, itemsize: int) -> int:
    """Memory that one more sample takes while the step runs."""
    unit = flow.num_tokens * flow.model_channels * itemsize
    return int(unit * (remat_policies.kept(remat) * flow.num_blocks + WORKSPACE))


def seconds(card: Card, flops: float, devices: int) -> float:
    """Time of `flops` on `devices` cards."""
    return flops / (card.peak * 1e12 * EFFICIENCY * devices)
