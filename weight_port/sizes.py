"""A model's sizes from the names and shapes of its tensors, for files that come without a `.json`.

What leaves no trace in the shapes is not guessed at: the result has the same tensors as the model,
but its grid is given in tokens (patch size 1), and its heads only where a norm shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NoReturn

from dso_jax.models import DecoderConfig, EncoderConfig, FlowConfig
from weight_port import tables
from weight_port.errors import Problem, WeightError, report
from weight_port.rules import Rule

Shapes = Mapping[str, tuple[int, ...]]


def flow_config(shapes: Shapes, source: str) -> FlowConfig:
    """A configuration that has these tensors, if the tensors are those of a flow model.

    Args:
      shapes: torch name -> shape, in TRELLIS's own names.
      source: what an error calls them.

    Raises:
      WeightError: a tensor that tells a size is missing or has another number of axes.
    """

    def size(name: str, axis: int, axes: int = 2) -> int:
        return size_of(shapes, source, "a flow model", name, axis, axes)

    tokens, width = size("pos_emb", 0), size("pos_emb", 1)
    edge = round(tokens ** (1 / 3))
    if edge**3 != tokens:
        raise WeightError(f"{source}: pos_emb has {tokens} rows, expected a cube (edge^3)")
    norms = {
        attention: f"blocks.0.{attention}.q_rms_norm.gamma"
        for attention in ("self_attn", "cross_attn")
    }
    heads = next((size(name, 0) for name in norms.values() if name in shapes), 1)
    hidden = size("blocks.0.mlp.mlp.0.weight", 0)
    try:
        return FlowConfig(
            resolution=edge,
            in_channels=size("input_layer.weight", 1),
            out_channels=size("out_layer.weight", 0),
            model_channels=width,
            cond_channels=size("blocks.0.cross_attn.to_kv.weight", 1),
            num_blocks=_blocks(tables.FLOW, shapes),
            num_heads=heads,
            mlp_ratio=(hidden + 0.5) / width,  # int(width * ratio) is then `hidden`, rounding or no
            qk_rms_norm=norms["self_attn"] in shapes,
            qk_rms_norm_cross=norms["cross_attn"] in shapes,
            share_mod="adaLN_modulation.1.weight" in shapes,
        )
    except ValueError as error:
        raise WeightError(f"{source}: {error}") from error


def vae(
    shapes: Shapes, source: str
) -> tuple[Literal["encoder"], EncoderConfig] | tuple[Literal["decoder"], DecoderConfig]:
    """As `flow_config`, for a half of the structure VAE; its resampling tells which (2^3 or 3^3).

    Raises:
      WeightError: as `flow_config`, or there is no resampling.
    """
    target = "a structure encoder or decoder"

    def size(name: str, axis: int) -> int:
        return size_of(shapes, source, target, name, axis, 5)

    tower = sorted(_numbers(shapes, "blocks"))
    resampling = [f"blocks.{i}.conv.weight" for i in tower if f"blocks.{i}.conv.weight" in shapes]
    if not resampling:
        raise WeightError(f"{source}: a structure VAE of one level: encoder or decoder cannot tell")
    decodes = size(resampling[0], 2) == 3
    shuffle = 8 if decodes else 1  # an upsampling makes eight voxels of each
    channels = (
        size("input_layer.weight", 0),
        *(size(name, 0) // shuffle for name in resampling),
    )
    sizes: dict[str, Any] = {
        "channels": channels,
        "num_res_blocks": tower.index(int(resampling[0].split(".")[1])),
        "num_res_blocks_middle": len(_numbers(shapes, "middle_block")),
    }
    if decodes:
        latent, out = size("input_layer.weight", 1), size("out_layer.2.weight", 0)
        return "decoder", DecoderConfig(out_channels=out, latent_channels=latent, **sizes)
    latent = size("out_layer.2.weight", 0) // 2  # mean and log-variance
    inputs = size("input_layer.weight", 1)
    return "encoder", EncoderConfig(in_channels=inputs, latent_channels=latent, **sizes)


def size_of(shapes: Shapes, source: str, target: str, name: str, axis: int, axes: int) -> int:
    """The length of one axis of a tensor.

    Args:
      source, target: what an error calls the tensors and the model.
      axes: that the tensor must have.

    Raises:
      WeightError: the tensor is missing, empty, or has another number of axes.
    """
    shape = shapes.get(name)
    if shape is None:
        _refuse(source, target, Problem("missing", name))
    if len(shape) != axes or 0 in shape:
        _refuse(source, target, Problem("shape", name, f"is {shape}, expected {axes} axes"))
    return shape[axis]


def _refuse(source: str, target: str, problem: Problem) -> NoReturn:
    raise report(source, target, [problem])


def _blocks(rules: tuple[Rule, ...], shapes: Shapes) -> int:
    """Counted, not the highest number: one misnamed tensor must not make millions of blocks."""
    found = {place[1] for rule in rules for name in shapes if (place := rule.to_ours(name))}
    return max(1, len(found - {None}))


def _numbers(shapes: Shapes, part: str) -> set[int]:
    names = (name.split(".") for name in shapes if name.startswith(f"{part}."))
    return {int(words[1]) for words in names if words[1].isdecimal()}
