"""One ordered rule table per model: every tensor of a checkpoint, once.

Names: TRELLIS's state dicts, and DINOv2's on the torch hub and as `transformers` saves them. `half`
marks what `TRELLIS-image-large` stores in fp16.
"""

from __future__ import annotations

from dataclasses import replace

from weight_port.rules import LINEAR, Rule, conv2d, conv3d, linear, norm, tensor

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
    *norm("{tower:middle_block|blocks}.{i}.{name:norm1|norm2}"),
    *conv3d("{tower:middle_block|blocks}.{i}.{name:conv1|conv2}", half=True),
    *conv3d("blocks.{i}.conv", half=True),
    *norm("out_layer.0"),
    *conv3d("out_layer.2"),
)

DINOV2_HUB: tuple[Rule, ...] = (
    tensor("cls_token"),
    tensor("pos_embed"),
    tensor("register_tokens"),
    tensor("mask_token"),
    *conv2d("patch_embed.proj"),
    *norm(_BLOCK + ".{name:norm1|norm2}"),
    *linear(_BLOCK + ".attn.{name:qkv|proj}"),
    *linear(_BLOCK + ".mlp.{name:fc1|fc2|w12|w3}"),
    tensor(_BLOCK + ".{name:ls1|ls2}.gamma"),
    *norm("norm"),
)


def _at(path: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules of one layer for a layer of another name in our tree."""
    return tuple(replace(rule, ours=f"{path}/{rule.ours.rsplit('/', 1)[1]}") for rule in rules)


_LAYER = "encoder.layer.{block}"
DINOV2_HF: tuple[Rule, ...] = (
    Rule("embeddings.cls_token", "cls_token"),
    Rule("embeddings.position_embeddings", "pos_embed"),
    Rule("embeddings.register_tokens", "register_tokens"),
    Rule("embeddings.mask_token", "mask_token"),
    *_at("patch_embed/proj", conv2d("embeddings.patch_embeddings.projection")),
    *_at("blocks/{name}", norm(_LAYER + ".{name:norm1|norm2}")),
    *_at("blocks/attn/qkv", linear(_LAYER + ".attention.attention.{part:query|key|value}")),
    *_at("blocks/attn/proj", linear(_LAYER + ".attention.output.dense")),
    *_at("blocks/mlp/{name}", linear(_LAYER + ".mlp.{name:fc1|fc2}")),
    *_at("blocks/mlp/w12", linear(_LAYER + ".mlp.weights_in")),
    *_at("blocks/mlp/w3", linear(_LAYER + ".mlp.weights_out")),
    Rule(_LAYER + ".layer_scale{i:1|2}.lambda1", "blocks/ls{i}/gamma"),
    *_at("norm", norm("layernorm")),
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
