"""LoRA and training masks as algebra over parameter trees: no module knows that it is trained.

A parameter's path is its keys joined by "/", for example `blocks/self_attn/to_qkv/lora_A`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from dso_jax.models.config import LoRAConfig
from dso_jax.models.layers import init_lora

A, B = "lora_A", "lora_B"
FIXED = ("pos_emb",)  # a table, not a weight: never trained, whatever the patterns say


def _flat(params: dict) -> dict[str, jax.Array]:
    return traverse_util.flatten_dict(params, sep="/")  # type: ignore[return-value]


def _nested(flat: Mapping[str, Any]) -> dict:
    return traverse_util.unflatten_dict(flat, sep="/")


def _is_lora(path: str) -> bool:
    return path.rsplit("/", 1)[-1] in (A, B)


def trainable_mask(params: dict, patterns: Iterable[str]) -> dict:
    """Tree of booleans: which leaves train.

    Args:
      patterns: "lora" (the adapter), "all" (every weight), or regular expressions that are
        searched for in the leaf's path.

    Raises:
      ValueError: a pattern that matches no leaf, or is no regular expression.
    """
    patterns = list(patterns)
    if not patterns:
        raise ValueError("trainable: no pattern given, nothing would train")
    flat = dict.fromkeys(_flat(params), False)
    for pattern in patterns:
        if pattern == "lora":
            hits = [path for path in flat if _is_lora(path)]
        elif pattern == "all":
            hits = list(flat)
        else:
            try:
                hits = [path for path in flat if re.search(pattern, path)]
            except re.error as error:
                raise ValueError(
                    f"trainable: {pattern!r} is no regular expression: {error}"
                ) from error
        hits = [path for path in hits if path not in FIXED]
        if not hits:
            raise ValueError(f"trainable: pattern {pattern!r} matches no parameter")
        flat |= dict.fromkeys(hits, True)
    return _nested(flat)


def partition(params: dict, mask: dict) -> tuple[dict, dict]:
    """(trainable, frozen): two trees, `optax.MaskedNode()` where the other has the leaf."""

    def pick(wanted: bool) -> dict:
        return jax.tree.map(
            lambda leaf, m: leaf if m == wanted else optax.MaskedNode(), params, mask
        )

    return pick(True), pick(False)


def combine(trainable: dict, frozen: dict) -> dict:
    """Inverse of `partition`."""

    def is_masked(node) -> bool:
        return isinstance(node, optax.MaskedNode)

    return jax.tree.map(lambda t, f: f if is_masked(t) else t, trainable, frozen, is_leaf=is_masked)


def strip(params: dict) -> dict:
    """The base alone: `params` without LoRA leaves (arrays are shared, not copied)."""
    return _nested({path: leaf for path, leaf in _flat(params).items() if not _is_lora(path)})


def adapter_leaves(params: dict) -> dict:
    """The adapter alone: only the LoRA leaves of `params`."""
    return _nested({path: leaf for path, leaf in _flat(params).items() if _is_lora(path)})


def with_adapter(base: dict, adapter: dict) -> dict:
    """Base and adapter in one tree; the inverse of (`strip`, `adapter_leaves`)."""
    return _nested(_flat(base) | _flat(adapter))


def attach(base: dict, config: LoRAConfig, key: jax.Array) -> dict:
    """`base` with fresh LoRA leaves beside the kernels of the target linears.

    They start as `layers.init_lora` says.

    Raises:
      ValueError: a target that names no linear of `base`.
    """
    flat = _flat(strip(base))
    fresh: dict[str, jax.Array] = {}
    missing = set(config.targets)
    for path in sorted(flat):
        *_, module, leaf = ("", *path.split("/"))
        if leaf != "kernel" or module not in config.targets:
            continue
        missing.discard(module)
        prefix = path.removesuffix("kernel")
        key, sub = jax.random.split(key)
        fresh[prefix + A], fresh[prefix + B] = init_lora(sub, flat[path].shape, config.rank)
    if missing:
        raise ValueError(f"lora.targets: no linear is called {', '.join(sorted(missing))}")
    return _nested(flat | fresh)


def merge(params: dict, config: LoRAConfig) -> dict:
    """The base with scale * A @ B folded into its kernels (fp32 product, the kernel's own type)."""
    flat = _flat(params)
    merged = _flat(strip(params))
    for path in [p for p in flat if p.endswith("/" + A)]:
        prefix = path.removesuffix(A)
        kernel = merged[prefix + "kernel"]
        delta = jnp.matmul(flat[path], flat[prefix + B], precision="highest") * config.scale
        merged[prefix + "kernel"] = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
    return _nested(merged)
