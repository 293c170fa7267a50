"""What the backward pass keeps of each block, and what it computes again.

Arrays that cost a product or an attention are named where they are made; a policy is the set of
names that it keeps.
"""

from collections.abc import Callable
from typing import Any

import jax

# What may be kept -> its size a sample, in units of the block's input (L, D), for TRELLIS's blocks.
NAMES = {
    "qkv": 4.0,  # outputs of to_qkv and of to_q, before the norm
    "context": 0.7,  # outputs of to_kv, less where samples share an image
    "attention": 2.1,  # outputs of both attentions, with cuDNN's softmax statistics
    "stream": 2.0,  # the sum after each attention
    "lora": 0.3,  # x A of the four adapted linears, at rank 64
    "mlp": 4.0,  # output of the MLP's first linear, before GELU
}
PRESETS: dict[str, tuple[str, ...]] = {
    "full": (),  # everything is computed again: one unit, the block's input
    "products": tuple(NAMES),  # only norms, modulation and GELU are computed again
}
# cuDNN's forward pass gives its output and the statistics that its backward pass needs. A name on
# the output alone would not do: for the statistics the whole of it would run again.
FLASH_FORWARD = "dot_product_attention_fwd_wrapper"
CHOICES = f"none, dots, {', '.join(PRESETS)}, or names joined by + from {', '.join(NAMES)}"


def check(remat: str) -> None:
    """Refuse what is no policy.

    Raises:
      ValueError: naming the choices.
    """
    if remat not in ("none", "dots", *PRESETS) and set(remat.split("+")) - set(NAMES):
        raise ValueError(f"remat {remat!r}: expected one of {CHOICES}")


def kept(remat: str) -> float:
    """Size of what a block keeps of one sample, in units of its input, the input included.

    For an attention that does not keep its weights (cuDNN's).
    """
    known = {"none": 47.0, "dots": 17.5}  # measured on an H200, and as XLA plans it for one
    return known[remat] if remat in known else 1 + sum(NAMES[name] for name in _names(remat))


def policy(remat: str) -> Callable[..., Any] | None:
    """The argument `policy` of `jax.checkpoint`; None where nothing is to be computed again."""
    check(remat)
    if remat == "none":
        return None
    if remat == "dots":
        return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return _keep(_names(remat))


def _names(remat: str) -> frozenset[str]:
    return frozenset(PRESETS.get(remat, remat.split("+")))


def _keep(names: frozenset[str]) -> Callable[..., bool]:
    def keep(primitive: Any, *_: Any, **params: Any) -> bool:
        if primitive.name == "name":
            return params["name"] in names
        return primitive.name == FLASH_FORWARD and "attention" in names

    return keep


def all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """Policy: what `jax.lax.with_sharding_constraint` gives is made again, all else is kept."""
    return primitive.name != "sharding_constraint"
