"""Rules that pair torch tensor names with paths of our parameter trees, readable both ways.

A rule is a pair of templates. A field in braces stands for a part of the name: `{i}` for digits,
`{name:to_q|to_kv}` for one of the words. Every field of a torch template appears in ours, except
two. Torch tensors that differ only in `{block}` are one leaf of ours, stacked on axis 0; those that
differ only in `{part:query|key|value}` are joined along torch's axis 0, in that order. Templates
match whole names, so a rule never takes a tensor that it does not describe.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

BLOCK, PART = "block", "part"
_FIELD = re.compile(r"\{(\w+)(?::([^}]*))?\}")

LINEAR = (1, 0)  # (out, in) -> (in, out)
CONV2D = (2, 3, 1, 0)  # (out, in, y, x) -> (y, x, in, out)
CONV3D = (2, 3, 4, 1, 0)  # (out, in, x, y, z) -> (x, y, z, in, out)


@dataclass(frozen=True)
class Rule:
    """One family of tensors.

    Attributes:
      torch: template of the torch name, fields with their choices.
      ours: template of the path, keys joined by "/", fields without choices.
      axes: ours = torch.transpose(axes), before stacking; None keeps the order.
      half: whether the published checkpoints keep this tensor in 16 bits.
    """

    torch: str
    ours: str
    axes: tuple[int, ...] | None = None
    half: bool = False

    def to_ours(self, name: str) -> tuple[str, int | None] | None:
        """Path and block index (None if not stacked) of a torch name; None if it is another's."""
        match = _regex(self.torch, self.torch).fullmatch(name)
        if match is None:
            return None
        fields = match.groupdict()
        block = fields.pop(BLOCK, None)
        fields.pop(PART, None)
        return self.ours.format(**fields), None if block is None else int(block)

    def to_torch(self, path: str) -> Callable[[int], tuple[str, ...]] | None:
        """Block index -> torch names of the parts for a path; None if it is another rule's path."""
        match = _regex(self.ours, self.torch).fullmatch(path)
        if match is None:
            return None
        fields = match.groupdict()
        plain = _FIELD.sub(r"{\1}", self.torch)

        def names(block: int) -> tuple[str, ...]:
            return tuple(plain.format(**fields | {BLOCK: block, PART: p}) for p in self.parts)

        return names

    @property
    def stacked(self) -> bool:
        return f"{{{BLOCK}}}" in self.torch

    @property
    def parts(self) -> tuple[str, ...]:
        """The words of `{part}`; one empty word if the rule has none."""
        return tuple(dict(_FIELD.findall(self.torch)).get(PART, "").split("|"))


@functools.cache
def _regex(template: str, choices_of: str) -> re.Pattern[str]:
    """Compile `template`; a field takes its choices from `choices_of`, digits if it has none."""
    choices = dict(_FIELD.findall(choices_of))
    pattern, position = "", 0
    for field in _FIELD.finditer(template):
        name = field.group(1)
        # Python writes no leading zeros, so a name that has them could not be written back.
        words = choices.get(name) or r"0|[1-9]\d*"
        pattern += re.escape(template[position : field.start()]) + f"(?P<{name}>{words})"
        position = field.end()
    return re.compile(pattern + re.escape(template[position:]))


def _ours(torch_name: str) -> str:
    """The same name in our tree, where it differs only in separators and in stacking."""
    return _FIELD.sub(r"{\1}", torch_name).replace(f"{{{BLOCK}}}.", "").replace(".", "/")


def linear(name: str, *, half: bool = False) -> tuple[Rule, Rule]:
    """Weight and bias of a linear layer."""
    return (
        Rule(f"{name}.weight", f"{_ours(name)}/kernel", LINEAR, half),
        Rule(f"{name}.bias", f"{_ours(name)}/bias", half=half),
    )


def conv2d(name: str, *, half: bool = False) -> tuple[Rule, Rule]:
    """Weight and bias of a 2-D convolution."""
    weight, bias = linear(name, half=half)
    return replace(weight, axes=CONV2D), bias


def conv3d(name: str, *, half: bool = False) -> tuple[Rule, Rule]:
    """Weight and bias of a 3-D convolution."""
    weight, bias = linear(name, half=half)
    return replace(weight, axes=CONV3D), bias


def norm(name: str) -> tuple[Rule, Rule]:
    """Gain and bias of a norm; published in fp32."""
    return (
        Rule(f"{name}.weight", f"{_ours(name)}/scale"),
        Rule(f"{name}.bias", f"{_ours(name)}/bias"),
    )


def tensor(name: str) -> Rule:
    """A tensor that has the same name and layout on both sides; published in fp32."""
    return Rule(name, _ours(name))
