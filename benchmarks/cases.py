"""The list of cases. A name is GROUP/VARIANT; the variants of a group do the same work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

OBJECTIVES = ("sft", "dro", "dpo")
REMAT = ("none", "dots", "full")
CUBLAS = ("xla_gpu_enable_triton_gemm=false",)  # so that biases and GELU end a product
# Ways to carry out the same step: fields of `SystemConfig`, and `accumulation`.
WAYS: dict[str, dict[str, Any]] = {
    "products": {"remat": "products"},
    "attention": {"remat": "attention"},
    "attention-context": {"remat": "attention+context+lora"},
    "attention-qkv": {"remat": "attention+context+lora+qkv"},
    "attention-halves": {"remat": "attention", "accumulation": 2},
    "attention-qkv-thirds": {"remat": "attention+context+lora+qkv", "accumulation": 3},
    "none-unroll4": {"unroll": 4},
    "none-unroll24": {"unroll": 24},
    "products-unroll24": {"remat": "products", "unroll": 24},
    "attention-unroll24": {"remat": "attention", "unroll": 24},
    "full-unroll24": {"remat": "full", "unroll": 24},
    # One pair after the other: an accumulating step needs the memory of its part alone.
    "none-sixths-unroll24": {"unroll": 24, "accumulation": 6},
    "products-sixths-unroll24": {"remat": "products", "unroll": 24, "accumulation": 6},
    "products-split": {"remat": "products", "projections": "split"},
    "products-joined": {"remat": "products", "lora_product": "joined"},
    "products-pad64": {"remat": "products", "pad_condition": 64},
    "products-pad128": {"remat": "products", "pad_condition": 128},
    "products-xla-attention": {"remat": "products", "attention": "xla"},
    "products-cublas": {"remat": "products", "xla": CUBLAS},
    "none-unroll24-cublas": {"unroll": 24, "xla": CUBLAS},
    "products-unroll24-cublas": {"remat": "products", "unroll": 24, "xla": CUBLAS},
    "products-sixths-unroll24-cublas": {
        "remat": "products",
        "unroll": 24,
        "accumulation": 6,
        "xla": CUBLAS,
    },
}
CUBLAS_WAYS = ("none-unroll24-cublas", "products-sixths-unroll24-cublas")
FAST = (
    "none-unroll24",
    "none-unroll24-cublas",
    "products-unroll24",
    "attention",
)  # beside the rival in every objective
GROWING = ("attention", "full")  # what still fits when the batch grows
FORWARD_WAYS: dict[str, dict[str, Any]] = {
    "split": {"projections": "split"},
    "split-cublas": {"projections": "split", "xla": CUBLAS},
    "split-unroll24": {"projections": "split", "unroll": 24},
}
BATCHES = (6, 24, 48, 96)  # samples through the network, beside the usual
USUAL = 12
GRIDS = (8, 12, 20)  # edges of the latent grid, beside the usual 16: 512, 1728, 8000 tokens


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: unique, group/variant.
        call: "module:function" in this folder; takes a `measure.Run` and the options.
        options: its other arguments.
        environ: variables to set before the libraries are imported, XLA_FLAGS for instance.
    """

    name: str
    call: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    environ: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def group(self) -> str:
        return self.name.rpartition("/")[0]

    @property
    def variant(self) -> str:
        return self.name.rpartition("/")[2]


def every() -> list[Case]:
    """All cases: ceilings first, then the comparisons, then how they grow."""
    cases = [*ceilings(), *steps(), *profiles(), *forwards(), *growth(), *host()]
    assert len({case.name for case in cases}) == len(cases)
    return cases


def ceilings() -> Iterator[Case]:
    """What the device reaches with one large product, and with attention alone."""
    for engine in ("jax", "torch"):
        yield Case(f"ceiling/matmul/{engine}", f"{engine}_side:matmul")
        for kind in ("self", "cross"):
            for way in ("forward", "both"):
                options = {"samples": USUAL, "cross": kind == "cross", "backward": way == "both"}
                name = f"ceiling/attention-{kind}-{way}/{engine}"
                yield Case(name, f"{engine}_side:attend", options)


def steps() -> Iterator[Case]:
    """Training steps of 12 samples: each objective, each remat, and the rival."""
    for objective in OBJECTIVES:
        options = {"objective": objective, "samples": USUAL}
        group = f"step-{objective}/b{USUAL}"
        yield from torch_steps(group, options)
        for remat in REMAT:
            yield Case(f"{group}/jax-{remat}", "jax_side:step", options | {"remat": remat})
        for way in FAST if objective != "dro" else ():
            yield Case(f"{group}/jax-{way}", "jax_side:step", options | WAYS[way])
    options = {"objective": "dro", "samples": USUAL}
    for way, system in WAYS.items():
        yield Case(f"step-dro/b{USUAL}/jax-{way}", "jax_side:step", options | system)
    # The rival with more time to compile.
    options |= {"mode": "compile-max"}
    yield Case(f"step-dro/b{USUAL}/torch-compile-max", "torch_side:step", options)


def profiles() -> Iterator[Case]:
    """Steps taken apart by kinds of kernels."""
    for way in ("attention", "products", "products-unroll24", "none-unroll24", *CUBLAS_WAYS):
        options = {"objective": "dro", "samples": USUAL} | WAYS[way]
        yield Case(f"profile-dro/b{USUAL}/jax-{way}", "jax_side:profile", options)


def torch_steps(group: str, options: dict[str, Any]) -> Iterator[Case]:
    """The rival as it comes, compiled, and compiled with every block computed again."""
    for variant, more in {
        "torch-eager": {},
        "torch-compile": {"mode": "compile"},
        "torch-compile-checkpoint": {"mode": "compile", "checkpoint": True},
    }.items():
        yield Case(f"{group}/{variant}", "torch_side:step", options | more)


def forwards() -> Iterator[Case]:
    """One velocity of 12 samples, with the adapter and without, and whole draws of 4."""
    for group, call, options in (
        (f"velocity-adapter/b{USUAL}", "velocity", {"samples": USUAL, "adapter": True}),
        (f"velocity-base/b{USUAL}", "velocity", {"samples": USUAL, "adapter": False}),
        ("sampler/b4", "sampler", {"samples": 4}),
        ("sampler/b32", "sampler", {"samples": 32}),
    ):
        for mode in ("eager", "compile"):
            yield Case(f"{group}/torch-{mode}", f"torch_side:{call}", options | {"mode": mode})
        yield Case(f"{group}/jax", f"jax_side:{call}", options)
        for way, system in FORWARD_WAYS.items():
            yield Case(f"{group}/jax-{way}", f"jax_side:{call}", options | system)


def growth() -> Iterator[Case]:
    """Time and memory of a DRO step over batch and tokens; what does not fit is recorded so."""
    torch = {
        "torch-compile": {"mode": "compile"},
        "torch-compile-checkpoint": {"mode": "compile", "checkpoint": True},
    }
    sizes: list[tuple[str, dict[str, Any]]] = [
        (f"step-dro/b{samples}", {"samples": samples}) for samples in BATCHES
    ]
    sizes += [(f"step-dro/b{USUAL}-grid{grid}", {"samples": USUAL, "grid": grid}) for grid in GRIDS]
    for group, options in sizes:
        options = {"objective": "dro"} | options
        for variant, more in torch.items():
            yield Case(f"{group}/{variant}", "torch_side:step", options | more)
        for remat in GROWING:
            yield Case(f"{group}/jax-{remat}", "jax_side:step", options | {"remat": remat})


def host() -> Iterator[Case]:
    """What surrounds the training step: reading, loading, labelling, the simulator's steps."""
    for kind in ("stored", "online"):
        for cache in ("cold", "warm"):
            for threads in (1, 2, 8):
                options = {"cold": cache == "cold", "threads": threads, "images": kind == "online"}
                yield Case(f"pipeline-{kind}-{cache}/threads-{threads}", "pipeline:read", options)
    yield Case("load/jax", "host_side:load", {"engine": "jax"})
    yield Case("load/torch", "host_side:load", {"engine": "torch"})
    usual = ("slim", "warp", "stock")
    for points, worlds, engines in (
        (64, 131072, (*usual, "slim-fixed", "c")),  # C's rate does not depend on how many wait
        (64, 8192, usual),
        (64, 32768, (*usual, "slim-fixed", "slim-early")),
        (64, 1024, (*usual, "slim-fixed")),
        (256, 131072, (*usual, "c")),
        (256, 8192, usual),
    ):
        for engine in engines:
            options = {"engine": engine, "worlds": worlds, "points": points}
            yield Case(f"steps/{worlds}w-{points}p/{engine}", "slim:steps", options)
