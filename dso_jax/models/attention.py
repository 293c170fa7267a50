"""Which attention implementation runs here (a probe with a logged fallback), and the call of it."""

import functools
import logging

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

log = logging.getLogger(__name__)
BACKENDS = ("xla", "cudnn")


def attend(
    q: Float[Array, "G L H d"],
    k: Float[Array, "G S H d"],
    v: Float[Array, "G S H d"],
    backend: str,
    tokens: int | None = None,
) -> Float[Array, "G L H d"]:
    """softmax(q k / sqrt d) v.

    Args:
      backend: as `resolve` gives it.
      tokens: how many of the S keys count, the first ones; the others are padding.
    """
    lengths = None
    if tokens is not None and tokens != k.shape[1]:
        lengths = jnp.full(k.shape[0], tokens, jnp.int32)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        key_value_seq_lengths=lengths,
        implementation=backend,  # type: ignore[arg-type]
    )
    # Remat knows cuDNN's call itself; by name, its output would be kept a second time.
    return out if backend == "cudnn" else checkpoint_name(out, "attention")


@functools.cache
def probe(backend: str, dtype: str = "bfloat16") -> str | None:
    """Run a small forward and backward; None if `backend` works here, else why it does not.

    The keys are fewer than the queries and padded, as those of a condition may be.
    """

    def loss(q: jax.Array, k: jax.Array) -> jax.Array:
        out = attend(q, k, k, backend, tokens=22)
        return (out + attend(q, q, q, backend)).astype(jnp.float32).sum()

    try:
        # A model under trace may be the first to ask: nothing here may become part of its program.
        with jax.ensure_compile_time_eval():
            q, k = jnp.ones((1, 64, 2, 64), dtype), jnp.ones((1, 32, 2, 64), dtype)
            gradient = jax.grad(loss)(q, k)
            finite = bool(jnp.isfinite(gradient.astype(jnp.float32)).all())
    # Each backend refuses in its own way: by device, by dtype, by a library that does not load.
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    return None if finite else "gradient is not finite"


def resolve(backend: str, dtype: str) -> str:
    """`auto`, `xla` or `cudnn` -> the backend to use for `dtype` on the default device.

    cuDNN needs 16-bit inputs and a GPU; `auto` takes it where the probe passes.

    Raises:
      ValueError: an unknown backend, or a named one that does not work here.
    """
    if backend == "auto":
        if jax.default_backend() != "gpu" or jnp.dtype(dtype).itemsize != 2:
            return "xla"
        reason = probe("cudnn", dtype)
        if reason:
            log.warning("cuDNN attention is not available (%s): using XLA's", reason)
        return "xla" if reason else "cudnn"
    if backend not in BACKENDS:
        raise ValueError(f"attention {backend!r}: expected auto, {' or '.join(BACKENDS)}")
    reason = None if backend == "xla" else probe(backend, dtype)
    if reason:
        raise ValueError(f"attention {backend!r} does not work here with {dtype}: {reason}")
    return backend
