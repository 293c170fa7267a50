"""The torso's norms as kernels of a GPU, by Pallas and Triton; for inference, without derivatives.

XLA's own fusions of them run at a third to two thirds of the memory's speed. The arithmetic is that
of `multihead.MultiHeadRMSNorm`, the same function, and of `layers.Float32LayerNorm`, step by step.

Shapes: B samples, L tokens, H heads, d head width, D width; a program takes a few tokens of a
sample, with their whole width.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dso_jax.models.layers import unit_heads

# On an H200, 4 tokens of 1024 bf16 numbers by 4 warps: LayerNorm with its modulation of
# (32,4096,1024) takes 150 us, and 204 us by XLA; the memory alone would take 128.
ROWS = 4
WARPS = 4
# A few steps of bf16 numbers up to 4: sums in another order round some of them differently.
ROUNDING = 2**-4

log = logging.getLogger(__name__)


def fits(x: Array, *widths: int) -> bool:
    """Whether there is a kernel for an array whose axes after (B,L) are `widths`.

    Triton's blocks are powers of two in every axis, and its offsets have 32 bits.
    """
    return all(width.bit_count() == 1 for width in widths) and x.size < 2**31


def rms_norm(
    x: Float[Array, "B L H d"], gamma: Float[Array, "H d"], *, interpret: bool = False
) -> Float[Array, "B L H d"]:
    """`layers.unit_heads`, in one pass over memory.

    Args:
      x: H and d as `fits` wants them.
      interpret: without a GPU, to test.
    """
    batch, tokens, heads, width = x.shape

    def kernel(x_ref: Any, gamma_ref: Any, out_ref: Any) -> None:
        x32 = x_ref[...].astype(jnp.float32).reshape(-1, heads, width)
        out = unit_heads(x32, gamma_ref[...].reshape(1, heads, width))
        out_ref[...] = out.astype(x.dtype).reshape(out_ref.shape)

    # Loaded as whole rows: as (H, d), every head would be a run of memory of its own.
    rows, whole = x.reshape(batch, tokens, -1), gamma.reshape(1, 1, -1)
    return _launch(kernel, rows, [whole], interpret).reshape(x.shape)


def layer_norm(
    x: Float[Array, "B L D"],
    scale: Float[Array, "B 1 D"],
    shift: Float[Array, "B 1 D"],
    *,
    eps: float,
    interpret: bool = False,
) -> Float[Array, "B L D"]:
    """LayerNorm in fp32, rounded to the type of x, then times (1 + scale) plus shift.

    Args:
      x: D as `fits` wants it.
      scale, shift: in the type of x.
      eps: added to the variance.
      interpret: without a GPU, to test.
    """

    def kernel(x_ref: Any, factor_ref: Any, shift_ref: Any, out_ref: Any) -> None:
        x32 = x_ref[...].astype(jnp.float32)
        apart = x32 - jnp.sum(x32, -1, keepdims=True) / x.shape[-1]
        variance = jnp.sum(apart * apart, -1, keepdims=True) / x.shape[-1]
        normed = (apart * jax.lax.rsqrt(variance + eps)).astype(x.dtype)
        out_ref[...] = normed * factor_ref[...] + shift_ref[...]

    return _launch(kernel, x, [1 + scale, shift], interpret)


def _launch(kernel: Callable, x: Array, of_samples: Sequence[Array], interpret: bool) -> Array:
    """Runs it on (B,L,D) with arrays (B,1,D), or (1,1,D) for all samples alike."""
    from jax.experimental import pallas as pl  # a quarter of a second that a CPU can do without

    batch, tokens, width = x.shape
    rows = math.gcd(tokens, ROWS)
    own = pl.BlockSpec((None, rows, width), lambda b, row: (b, row, 0))
    each = pl.BlockSpec((None, 1, width), lambda b, row: (b, 0, 0))
    alike = pl.BlockSpec((None, 1, width), lambda b, row: (0, 0, 0))
    return pl.pallas_call(
        kernel,
        grid=(batch, tokens // rows),
        in_specs=[own, *[each if one.shape[0] == batch else alike for one in of_samples]],
        out_specs=own,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        interpret=interpret,
        **({} if interpret else {"compiler_params": _warps()}),
    )(x, *of_samples)


def _warps() -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=WARPS)


def choice() -> Literal["xla", "kernel"]:
    """`Execution.norms` for sampling on a GPU in bf16, with a warning where it has no kernels."""
    reason = probe()
    if reason:
        log.warning("kernels of norms are not available (%s): using XLA's", reason)
    return "xla" if reason else "kernel"


def probe() -> str | None:
    """Run small ones in bf16; None if they work here, else why they do not."""
    # JAX says that Triton's way will go, each time it lowers one: later too, in other threads.
    warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
    return _tried()


@functools.cache
def _tried() -> str | None:
    def both(x: Array, gamma: Array, interpret: bool) -> Array:
        heads = rms_norm(x.reshape(*x.shape[:2], *gamma.shape), gamma, interpret=interpret)
        modulation = x[:, :1], x[:, 1:2]
        layer = layer_norm(x, *modulation, eps=1e-6, interpret=interpret)
        return jnp.stack([heads.reshape(x.shape), layer]).astype(jnp.float32)

    try:
        # As in `attention.probe`: nothing here may become part of a program under trace.
        with jax.ensure_compile_time_eval():
            x = jnp.sin(jnp.arange(2 * 8 * 1024.0)).reshape(2, 8, 1024).astype(jnp.bfloat16)
            gamma = jnp.linspace(0.5, 1.5, 1024).reshape(16, 64)
            run = jax.jit(both, static_argnums=2)
            wrong = float(jnp.abs(run(x, gamma, False) - run(x, gamma, True)).max())
    except Exception as error:  # noqa: BLE001  of any layer of the compiler
        said = (str(error).splitlines() or [""])[0][:300]
        return f"{type(error).__name__}: {said}"
    return None if wrong <= ROUNDING else f"wrong by {wrong}"
