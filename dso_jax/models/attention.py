"""Which attention implementation runs here: a probe with a logged fallback."""

import functools
import logging

import jax
import jax.numpy as jnp

log = logging.getLogger(__name__)
BACKENDS = ("xla", "cudnn")


@functools.cache
def probe(backend: str, dtype: str = "bfloat16") -> str | None:
    """Run a small forward and backward; None if `backend` works here, else why it does not."""
    q = jnp.ones((1, 64, 2, 64), dtype)

    def loss(q: jax.Array) -> jax.Array:
        out = jax.nn.dot_product_attention(q, q, q, implementation=backend)  # type: ignore[arg-type]
        return out.astype(jnp.float32).sum()

    try:
        with jax.ensure_compile_time_eval():
            gradient = jax.grad(loss)(q)
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
