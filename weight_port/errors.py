"""The one error of this package: weights that do not fit, with every reason in one report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_PER_KIND = 20  # a wrong file has hundreds of names; `WeightError.problems` keeps them all


@dataclass(frozen=True)
class Problem:
    """One tensor that does not fit.

    Attributes:
      kind: "missing", "unexpected", "shape", "dtype" or "value".
      name: the torch name of the tensor, or our path when it has none.
      detail: what was found and what was expected.
    """

    kind: str
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind:<10} {self.name} {self.detail}".rstrip()


class WeightError(ValueError):
    """A weight file or tree that cannot be used; the message names the file and the tensors."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()):
        super().__init__(message)
        self.problems = tuple(problems)


def report(source: str, target: str, problems: Sequence[Problem], hint: str = "") -> WeightError:
    """All problems of one conversion as one error, grouped by kind.

    Args:
      source: where the tensors come from, as the user knows it (a path, or "tensors").
      target: what they should fill, for example "flow weights".
      hint: a guess at the cause, put on the last line.
    """
    count = Counter(problem.kind for problem in problems)
    totals = ", ".join(f"{number} {kind}" for kind, number in count.items())
    lines = [f"{source} does not fit {target}: {totals}"]
    for kind, number in count.items():
        of_kind = [problem for problem in problems if problem.kind == kind]
        lines += [f"  {problem}" for problem in of_kind[:SHOWN_PER_KIND]]
        if number > SHOWN_PER_KIND:
            lines.append(f"  {kind:<10} ... and {number - SHOWN_PER_KIND} more")
    return WeightError("\n".join([*lines, hint] if hint else lines), problems)
