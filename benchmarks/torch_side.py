"""The rival: the same network, losses and optimizer in torch, as one would write them for speed.

bf16 autocast over a bf16 base (so nothing of the base is cast at run time), scaled-dot-product
attention, LoRA as PEFT defines it (fp32 A and B beside a frozen linear), fused AdamW; eager, or
under torch.compile. With `checkpoint`, each block is computed again in the backward pass.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, turn
from benchmarks.measure import GIB, SIZES, Run, Size
from tests.reference.torch_flow import SparseStructureFlowModel

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
BF16 = torch.bfloat16
BETA = 500.0  # of DPO
COMPILE = {"compile": "default", "compile-max": "max-autotune-no-cudagraphs"}
# dso_jax.sampler.SamplerConfig: steps, rescale_t, guidance weight, from which time on guided.
SAMPLER = 12, 3.0, 7.5, 0.5


def describe() -> dict[str, str]:
    """Device and versions, for the record."""
    device = torch.cuda.get_device_name() if CUDA else "cpu"
    return {"device": device} | measure.versions("torch", "triton")


class LoRALinear(nn.Module):
    """PEFT's: base(x) + scale B(A(x)), B and A linears without bias."""

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        super().__init__()
        self.base_layer, self.scale, self.enabled = base, scale, True
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.lora_B.weight, std=0.02)  # zeros would be multiplied faster

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        return y + self.lora_B(self.lora_A(x)) * self.scale if self.enabled else y


class Recomputed(nn.Module):
    """A block of which the backward pass has nothing but the inputs."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *inputs: Tensor) -> Tensor:
        return recomputed(self.block, *inputs, use_reentrant=False)  # type: ignore[return-value]


def network(size: Size, *, checkpoint: bool = False) -> SparseStructureFlowModel:
    """Random weights, frozen but for the adapter, on the device."""
    turn.alone()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = dict(size.flow.__dict__)
    del config["pe_mode"]
    with torch.device(DEVICE):
        model = SparseStructureFlowModel(**config).cast_torso(BF16).requires_grad_(False)
        for block in model.blocks:
            for parent in (block.self_attn, block.cross_attn):
                for name in size.lora.targets:
                    if hasattr(parent, name):
                        wrapped = LoRALinear(getattr(parent, name), size.lora.rank, size.lora.scale)
                        setattr(parent, name, wrapped)
    if checkpoint:
        model.blocks = nn.ModuleList(Recomputed(block) for block in model.blocks)
    return model


def enable_adapter(model: nn.Module, enabled: bool) -> None:
    """Switches the adapter's branches, as PEFT's `disable_adapter` does."""
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.enabled = enabled


def loss(
    velocity: Callable[..., Tensor],
    model: nn.Module,
    objective: str,
    batch: dict[str, Tensor],
    t: Tensor,
    eps: Tensor,
) -> Tensor:
    """DSO's losses for given draws.

    Args:
        velocity: `model`, compiled or not.
        model: for its adapter's switch.
        objective: sft, dro or dpo.
        batch: x (M, P, C, R, R, R) latents of M members of P pairs, winners first, and
            cond (P, S, D).
        t: (P,) times of the pairs.
        eps: noise of the latents.
    """
    members = len(batch["x"])
    x0, eps = batch["x"].flatten(0, 1), eps.flatten(0, 1)
    times, cond = t.repeat(members), batch["cond"].repeat(members, 1, 1)
    spread = times[:, None, None, None, None]
    x = (1 - spread) * x0 + spread * eps

    def errors() -> Tensor:
        with torch.autocast(DEVICE, BF16):
            v = velocity(x, 1000 * times, cond)
        return (v.float() - (eps - x0)).square().flatten(1).mean(1).unflatten(0, (members, -1))

    err = errors()
    if objective == "sft":
        return err[0].mean()
    if objective == "dro":
        return (err[0] - err[1]).mean()
    with torch.no_grad():
        enable_adapter(model, False)
        ref = errors()
        enable_adapter(model, True)
    gain = (err[0] - err[1]) - (ref[0] - ref[1])
    return -F.logsigmoid(-0.5 * BETA * gain).mean()


def step(
    run: Run,
    objective: str,
    samples: int,
    grid: int | None = None,
    mode: str = "eager",
    checkpoint: bool = False,
) -> dict:
    """A training step: draws, forward, backward, clip, AdamW."""
    size = SIZES[run.size] if grid is None else SIZES[run.size].with_grid(grid)
    model = network(size, checkpoint=checkpoint)
    members = 1 if objective == "sft" else 2
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-6, weight_decay=0.01, fused=True)
    velocity = _compiled(model, mode)

    def descend(velocity: Callable[..., Tensor], batch: dict[str, Tensor]) -> None:
        t = torch.sigmoid(1 + torch.randn(len(batch["cond"]), device=DEVICE))
        value = loss(velocity, model, objective, batch, t, torch.randn_like(batch["x"]))
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    # Each sample costs the same, so those of one pair are counted, uncompiled. On a CPU torch's
    # counter knows nothing of its attention.
    with FlopCounterMode(display=False) as counter:
        descend(model, _batch(size, members, 1))
    counted = {"executed": counter.get_total_flops() * samples / members} if CUDA else {}
    batch = _batch(size, members, samples // members)
    figures = _first(lambda: descend(velocity, batch))
    figures |= measure.timed(_synchronized(lambda: descend(velocity, batch)), run.repeats)
    figures["samples_per_s"] = samples / figures["ms"] * 1e3
    return measure.rates(figures | _peak(), **counted)


def velocity(run: Run, samples: int, adapter: bool, mode: str = "eager") -> dict:
    """One forward pass, with the adapter's branches or without."""
    size = SIZES[run.size]
    model = network(size)
    enable_adapter(model, adapter)
    batch, t = _batch(size, 1, samples), torch.full((samples,), 500.0, device=DEVICE)
    call = _forward(_compiled(model, mode), batch["x"][0], t, batch["cond"])
    figures = _first(call)
    return figures | measure.timed(_synchronized(call), run.repeats) | _peak()


def sampler(run: Run, samples: int, mode: str = "eager") -> dict:
    """DSO's 12 steps with guidance, from noise to latents, each sample with an image of its own."""
    size = SIZES[run.size]
    flow = _compiled(network(size), mode)
    batch = _batch(size, 1, samples)
    steps, rescale, weight, low = SAMPLER
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    times = (rescale * u / (1 + (rescale - 1) * u)).tolist()
    cond = batch["cond"]
    both = torch.cat([cond, torch.zeros_like(cond)])

    @torch.inference_mode()
    @torch.autocast(DEVICE, BF16)
    def draw() -> None:
        x = batch["x"][0]
        for now, then in itertools.pairwise(times):
            guided = now >= low - 1e-9
            rows = 2 * samples if guided else samples
            t = torch.full((rows,), 1000 * now, device=DEVICE)
            v = flow(x.repeat(rows // samples, 1, 1, 1, 1), t, both if guided else cond).float()
            if guided:
                with_image, without = v.chunk(2)
                v = (1 + weight) * with_image - weight * without
            x = x - (now - then) * v

    figures = _first(draw) | measure.timed(_synchronized(draw), run.repeats)
    figures["samples_per_s"] = samples / figures["ms"] * 1e3
    return figures | _peak()


def matmul(run: Run) -> dict:
    """A product of two square bf16 matrices of random numbers."""
    edge = SIZES[run.size].matmul
    a, b = (torch.randn(edge, edge, device=DEVICE, dtype=BF16) for _ in range(2))
    figures = measure.timed(_synchronized(lambda: a @ b), run.repeats)
    return measure.rates(figures, executed=2 * edge**3)


def attend(run: Run, samples: int, cross: bool, backward: bool) -> dict:
    """Attention alone in the network's shapes; the backward pass takes five products."""
    size = SIZES[run.size]
    length, heads = size.flow.num_tokens, size.flow.num_heads
    span, width = size.tokens if cross else length, size.flow.model_channels // heads
    q, k, v = (
        torch.randn(samples, heads, count, width, device=DEVICE, dtype=BF16, requires_grad=backward)
        for count in (length, span, span)
    )
    seed = torch.randn_like(q)

    def call() -> None:
        out = F.scaled_dot_product_attention(q, k, v)
        if backward:
            torch.autograd.grad(out, (q, k, v), seed)

    figures = measure.timed(_synchronized(call), run.repeats)
    product = 2 * samples * length * span * size.flow.model_channels
    return measure.rates(figures, executed=(2 + 5 * backward) * product)


def _compiled(model: nn.Module, mode: str) -> Callable[..., Tensor]:
    return model if mode == "eager" else torch.compile(model, mode=COMPILE[mode])


def _forward(flow: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    @torch.autocast(DEVICE, BF16)
    def call() -> None:
        flow(*inputs)

    return call


def _batch(size: Size, members: int, pairs: int) -> dict[str, Tensor]:
    flow = size.flow
    shape = (members, pairs, flow.in_channels, *[flow.resolution] * 3)
    cond = torch.randn(pairs, size.tokens, flow.cond_channels, device=DEVICE, dtype=BF16)
    return {"x": torch.randn(shape, device=DEVICE), "cond": cond}


def _first(call: Callable[[], None]) -> dict[str, Any]:
    """The first call, in which torch.compile compiles; memory counts from here."""
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    _synchronized(call)()
    return {"compile_s": time.perf_counter() - start}


def _synchronized(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        call()
        if CUDA:
            torch.cuda.synchronize()

    return run


def _peak() -> dict[str, float]:
    return {"peak_gib": torch.cuda.max_memory_allocated() / GIB} if CUDA else {}
