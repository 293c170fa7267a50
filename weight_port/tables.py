"""One ordered rule table per model: every tensor of a checkpoint, once.

Names: TRELLIS's state dicts. `half` marks what `TRELLIS-image-large` stores in fp16.
"""

from __future__ import annotations

from weight_port.rules import LINEAR, Rule, conv3d, linear, norm, tensor

_BLOCK = "blocks.{block}"
_ATTENTION = _BLOCK + ".{attention:self_attn|cross_attn}"

FLOW: tuple[Rule, ...] = (
    tensor("pos_emb"),
    *linear("t_embedder.mlp.{i}"),
    *linear("input_layer"),
    *linear("out_layer"),
    *linear("adaLN_modulation.{i}"),  # share_mod: one for all blocks
    *linear(_BLOCK + ".adaLN_modulation.{i}", half=True),
    *linear(_ATTENTION + ".{name:to_qkv|to_q|to_kv|to_out}", half=True),
    tensor(_ATTENTION + ".{name:q_rms_norm|k_rms_norm}.gamma"),
    *norm(_BLOCK + ".norm2"),
    *linear(_BLOCK + ".mlp.mlp.{i}", half=True),
)

# Encoder and decoder differ in the order of their layers and in the kernel of their resampling
# convolutions, not in their names.
STRUCTURE_VAE: tuple[Rule, ...] = (
    *conv3d("input_layer"),
    *norm("{part:middle_block|blocks}.{i}.{name:norm1|norm2}"),
    *conv3d("{part:middle_block|blocks}.{i}.{name:conv1|conv2}", half=True),
    *conv3d("blocks.{i}.conv", half=True),
    *norm("out_layer.0"),
    *conv3d("out_layer.2"),
)

PEFT_PREFIX = "base_model.model."


def adapter(table: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Rules of the LoRA branch beside every linear of `table`, named as PEFT saves them.

    `lora_A.weight` is (rank, in) and `lora_B.weight` (out, rank): linears, with a linear's axes.
    """
    return tuple(
        Rule(
            PEFT_PREFIX + rule.torch.removesuffix(".weight") + f".{leaf}.weight",
            rule.ours.removesuffix("/kernel") + f"/{leaf}",
            LINEAR,
        )
        for rule in table
        if rule.axes == LINEAR
        for leaf in ("lora_A", "lora_B")
    )
