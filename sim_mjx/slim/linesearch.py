"""MJX's exact line search along a Newton direction: a bracket that three candidates tighten.

Legend: S the batch, C contacts, N step lengths that are looked at together.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sim_mjx.slim.constants import MINIMUM, Constants
from sim_mjx.slim.loops import Machine, repeat
from sim_mjx.slim.vectors import Scalar, Vector

# Slopes below this many roundings of their terms count as zero.
_ROUNDINGS = 8


class Quadratic(NamedTuple):
    """Gauss's cost along the direction: value, slope at zero, half the curvature."""

    value: Scalar
    slope: Scalar
    bend: Scalar


class Point(NamedTuple):
    """The cost and its derivatives at one step length."""

    length: Scalar
    cost: Scalar
    slope: Scalar
    curvature: Scalar


class _Bracket(NamedTuple):
    low: Point
    high: Point
    moved: Bool[Array, " S"]


def search_length(
    c: Constants,
    weight: Float[Array, "C S"],
    rows: Vector,
    along: Vector,
    gauss: Quadratic,
    magnitude: Scalar,
    *,
    machine: Machine,
) -> Scalar:
    """The step length, zero where no point beats staying.

    Args:
        c: cap and tolerances.
        weight: D of each contact.
        rows: row components of each contact at length zero, the tangential ones times friction.
        along: their change by unit length.
        gauss: the rest of the cost.
        magnitude: norm of the direction times the trace of the mass matrix.
        machine: what runs it.
    """

    def points(*lengths: Scalar) -> list[Point]:
        if not machine.stacked:
            return [_points(weight, rows, along, gauss, length) for length in lengths]
        stacked = _points(weight, rows, along, gauss, jnp.stack(lengths))
        return [Point(*(leaf[i] for leaf in stacked)) for i in range(len(lengths))]

    def newton(p: Point) -> Scalar:
        return p.length - p.slope / p.curvature

    (start,) = points(jnp.zeros_like(gauss.value))
    # A bound on the slope of the contacts' part, for what rounding leaves of a zero slope.
    value = jnp.maximum(start.cost - gauss.value, 0.0)
    bend = jnp.maximum(0.5 * start.curvature - gauss.bend, 0.0)
    size = 2.0 * jnp.sqrt(value * bend) + jnp.abs(gauss.slope)
    accept = jnp.maximum(
        c.tolerance * c.linesearch_tolerance * magnitude,
        _ROUNDINGS * jnp.finfo(size.dtype).eps * size,
    )

    def level(p: Point) -> Bool[Array, " S"]:
        return jnp.abs(p.slope) < accept

    def converged(p: Point) -> Bool[Array, " S"]:
        return level(p) & (p.cost < start.cost)

    def unfinished(b: _Bracket) -> Bool[Array, " S"]:
        return b.moved & ~converged(b.low) & ~converged(b.high)

    def tighten(b: _Bracket) -> _Bracket:
        middle = 0.5 * (b.low.length + b.high.length)
        candidates = points(newton(b.low), newton(b.high), middle)
        after_low, after_high, middle = candidates
        low, first = _narrowed(b.low, (after_low, middle, after_high))
        # A Newton step from an end that has not reached the minimum may cross it.
        crosses = (b.high.slope < 0) & (after_high.slope > 0)
        high, second = _narrowed(b.high, (after_high, middle, after_low), crosses)
        best, done = candidates[0], converged(candidates[0])
        cost = jnp.where(done, best.cost, jnp.inf)
        for other in candidates[1:]:
            better = converged(other) & (other.cost < cost)
            best, cost = _choose(better, other, best), jnp.where(better, other.cost, cost)
            done |= converged(other)
        # A level point that does not beat staying, for all that the cost can tell: as good as it
        # gets, and in single precision what most searches of a body at rest end with.
        moved = (first | second) & ~done & ~functools.reduce(jnp.logical_or, map(level, candidates))
        return _Bracket(_choose(done, best, low), _choose(done, best, high), moved)

    (first,) = points(newton(start))
    falling = first.slope < start.slope
    low, high = _choose(falling, first, start), _choose(falling, start, first)
    bracket = _Bracket(low, high, ~level(first))
    low, high, _ = repeat(c.linesearch_iterations, unfinished, tighten, bracket, machine=machine)
    improved = (low.cost < start.cost) | (high.cost < start.cost)
    return jnp.where(improved, jnp.where(low.cost < high.cost, low.length, high.length), 0.0)


def _points(weight: Array, rows: Vector, along: Vector, gauss: Quadratic, lengths: Array) -> Point:
    """The cost and its derivatives at each of N lengths (N, S), or at one (S,)."""
    cost = gauss.value + lengths * (gauss.slope + lengths * gauss.bend)
    slope = gauss.slope + 2.0 * lengths * gauss.bend
    curvature = 2.0 * gauss.bend
    at = (j + lengths[..., None, :] * v for j, v in zip(rows, along, strict=True))
    rates = edges(*along)
    values = edges(*at)
    pressed = [jnp.minimum(value, 0.0) for value in values]
    total = sum(p * p for p in pressed)
    change = sum(p * rate for p, rate in zip(pressed, rates, strict=True))
    bend = sum(jnp.where(v < 0, rate * rate, 0.0) for v, rate in zip(values, rates, strict=True))
    cost += 0.5 * (weight * total).sum(axis=-2)
    slope += (weight * change).sum(axis=-2)
    curvature += (weight * bend).sum(axis=-2)
    return Point(lengths, cost, slope, jnp.where(curvature == 0.0, MINIMUM, curvature))


def edges(n: Scalar, x: Scalar, y: Scalar) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """A contact's four pyramid rows from its normal and (friction-scaled) tangential parts."""
    return n + x, n - x, n + y, n - y


def _narrowed(end: Point, candidates, also: Bool[Array, " S"] | None = None):
    """Takes each candidate in turn whose slope has the end's sign and is nearer to zero."""
    moved = jnp.zeros_like(end.slope, bool)
    for candidate in candidates:
        nearer = (end.slope < candidate.slope) & (candidate.slope < 0)
        nearer |= (end.slope > candidate.slope) & (candidate.slope > 0)
        if also is not None:
            nearer, also = nearer | also, None
        end, moved = _choose(nearer, candidate, end), moved | nearer
    return end, moved


def _choose(which: Bool[Array, " S"], first: Point, second: Point) -> Point:
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), first, second)
