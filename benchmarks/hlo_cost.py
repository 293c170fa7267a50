"""What an optimised GPU program does, read from its text: kernels, bytes, operations.

Every kernel is counted as often as its loop turns. A kernel that takes a slice of an array, or
writes one into an array in place, moves the slice. The estimate of time is each kernel's larger of
bytes over bandwidth and operations over the rate of its kind, all measured on an H200.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

BANDWIDTH = 4.0e12  # bytes/s
# Operations/s: of attention and of large products in the steps of the H200 that NOTES.md describes.
RATES = {"attention forward": 458e12, "attention backward": 433e12, "product": 740e12}
LAUNCH = 2e-6  # seconds between two kernels
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4}
SIZES |= {"u32": 4, "f64": 8, "s64": 8, "u64": 8}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
SLICES = {"dynamic-slice", "slice", "gather"}
MOVES = SLICES | {"dynamic-update-slice", "concatenate", "pad", "transpose", "copy", "select"}
SILENT = MOVES | FREE | {"convert", "broadcast", "compare", "add", "subtract", "reshape", "clamp"}


@dataclasses.dataclass(frozen=True)
class Op:
    """One instruction.

    Attributes:
        name, kind: its own, and of what it does.
        shapes: (type, dimensions) of its outputs.
        operands: names.
        text: the whole line.
    """

    name: str
    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    operands: tuple[str, ...]
    text: str

    @property
    def bytes(self) -> int:
        return sum(SIZES.get(kind, 0) * math.prod(dims) for kind, dims in self.shapes)

    def attribute(self, name: str) -> str:
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.text)
        return found[1] if found else ""


Program = dict[str, dict[str, Op]]  # computation -> name -> op, the root last


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A launch: `turns` times, each moving `bytes` and computing `flops`."""

    kind: str
    op: Op
    turns: int
    bytes: int
    flops: int

    @property
    def seconds(self) -> float:
        """Estimated, of all turns."""
        work = self.flops / RATES[self.kind] if self.kind in RATES else 0.0
        return self.turns * (max(self.bytes / BANDWIDTH, work) + LAUNCH)


def kernels(text: str) -> list[Kernel]:
    """All launches of the program that `jax.stages.Compiled.as_text` gives."""
    program, entry = parse(text)
    return list(_walk(program, entry, 1))


def parse(text: str) -> tuple[Program, str]:
    """Computations by name, and the name of the first one to run."""
    program: Program = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            current = program.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (
            found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line)
        ):
            op = _op(found[1], found[2])
            current[op.name] = op
    return program, entry


def _op(name: str, text: str) -> Op:
    kind_at = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    shapes = re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", text[:kind_at])
    kind, _, rest = text[kind_at:].strip().partition("(")
    inside = ("(" + rest)[: _closing("(" + rest)]
    return Op(
        name,
        kind,
        tuple((t, tuple(int(n) for n in dims.split(",") if n)) for t, dims in shapes),
        tuple(re.findall(r"%([\w.\-]+)", inside)),
        text,
    )


def _closing(text: str) -> int:
    """Where the bracket that opens `text` is closed."""
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return at
    raise ValueError(f"no closing bracket in {text[:80]!r}")


def _walk(program: Program, name: str, turns: int) -> Iterator[Kernel]:
    for op in program[name].values():
        if op.kind == "while":
            found = re.search(r'known_trip_count":\{"n":"(\d+)"', op.text)
            yield from _walk(program, op.attribute("body"), turns * (int(found[1]) if found else 1))
        elif op.kind in ("call", "async-start"):
            yield from _walk(program, op.attribute("to_apply") or op.attribute("calls"), turns)
        elif op.kind == "conditional":
            branches = re.findall(r"%([\w.\-]+)", op.text.split("branch_computations")[-1])
            yield from _walk(program, branches[0], turns)
        elif op.kind not in FREE and not op.kind.endswith("-done"):
            yield _kernel(program, program[name], op, turns)


def _kernel(program: Program, around: dict[str, Op], op: Op, turns: int) -> Kernel:
    inputs = [around[operand] for operand in op.operands]
    moved = op.bytes + sum(operand.bytes for operand in inputs)
    if op.kind == "fusion":
        body = program[op.attribute("calls")]
        moved, dots = _fused_bytes(body), [o for o in body.values() if o.kind == "dot"]
        if dots:
            flops = sum(_product(dot, body[dot.operands[0]]) for dot in dots)
            return Kernel("product", op, turns, moved, flops)
        return Kernel(_kind_of_fusion(body), op, turns, moved, 0)
    target = re.search(r'custom_call_target="([^"]+)"', op.text)
    if target and "fmha" in target[1]:
        scores = 2 * math.prod(inputs[0].shapes[0][1]) * inputs[1].shapes[0][1][1]
        if "Backward" in target[1]:
            return Kernel("attention backward", op, turns, moved, 5 * scores)
        return Kernel("attention forward", op, turns, moved, 2 * scores)
    if target and "cublas" in target[1]:
        return Kernel("product", op, turns, moved, _product(op, inputs[0]))
    return Kernel("copy" if op.kind in MOVES else "elementwise", op, turns, moved, 0)


def _product(op: Op, left: Op) -> int:
    found = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([^}\]]*)', op.text)
    axes = [int(axis) for axis in re.findall(r"\d+", found[1])] if found else []
    depth = math.prod(left.shapes[0][1][axis] for axis in axes)
    return 2 * depth * math.prod(op.shapes[0][1])


def _fused_bytes(body: dict[str, Op]) -> int:
    users: dict[str, list[Op]] = {name: [] for name in body}
    for op in body.values():
        for operand in op.operands:
            users[operand].append(op)

    def read(op: Op) -> int:
        total = 0
        for user in users[op.name]:
            if user.kind == "bitcast":
                total += read(user)
            elif user.kind in SLICES:
                total += user.bytes
            elif user.kind == "dynamic-update-slice" and user.operands[0] == op.name:
                continue  # in place
            else:
                return op.bytes
        return min(total, op.bytes)

    def written(op: Op) -> int:
        if op.kind == "bitcast":
            return written(body[op.operands[0]])
        if op.kind == "tuple":
            return sum(written(body[operand]) for operand in op.operands)
        return body[op.operands[1]].bytes if op.kind == "dynamic-update-slice" else op.bytes

    root = list(body.values())[-1]
    return written(root) + sum(read(op) for op in body.values() if op.kind == "parameter")


def _kind_of_fusion(body: dict[str, Op]) -> str:
    kinds = {op.kind for op in body.values()}
    if kinds <= {"broadcast", "constant", "tuple", "bitcast"}:
        return "fill"
    return "copy" if kinds <= SILENT and kinds & MOVES else "elementwise"
