"""A symmetric positive definite system of six equations, unrolled."""

from __future__ import annotations

from collections.abc import Sequence

from sim_mjx.slim.vectors import Scalar


def solve_symmetric(lower: Sequence[Sequence[Scalar]], right: Sequence[Scalar]) -> list[Scalar]:
    """Solves A x = b by A = L D L' without a square root.

    Args:
        lower: rows of A up to the diagonal.
        right: b.

    Returns:
        x.
    """
    size = len(right)
    factor: list[list[Scalar]] = [[] for _ in range(size)]  # below the diagonal of L
    scaled: list[list[Scalar]] = [[] for _ in range(size)]  # the same times D
    reciprocal: list[Scalar] = []
    for i in range(size):
        for k in range(i + 1):
            value = lower[i][k]
            for n in range(k):
                value = value - scaled[i][n] * factor[k][n]
            if k < i:
                scaled[i].append(value)
                factor[i].append(value * reciprocal[k])
            else:
                reciprocal.append(1.0 / value)
    x = list(right)
    for i in range(size):
        for n in range(i):
            x[i] = x[i] - factor[i][n] * x[n]
    x = [a * r for a, r in zip(x, reciprocal, strict=True)]
    for i in reversed(range(size)):
        for n in range(i + 1, size):
            x[i] = x[i] - factor[n][i] * x[n]
    return x
