"""How the measures of an evaluation are called and written, on the terminal and in the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

SURVIVAL = "survival_"
MINUS = "\N{MINUS SIGN}"


class Label(NamedTuple):
    """What a measure is called, its unit, and what it is multiplied by and rounded to."""

    name: str
    unit: str
    factor: float
    digits: int

    @property
    def title(self) -> str:
        """The name with its unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def number(self, value: float | None, sign: str = "") -> str:
        """A value as text, empty where there is none."""
        if value is None or not math.isfinite(value):
            return ""
        return f"{self.factor * value:{sign}.{self.digits}f}".replace("-", MINUS)


LABELS = {
    "output": Label("output", "%", 100, 1),
    "stable": Label("stable", "%", 100, 1),
    "stable_of_all": Label("stable, of all", "%", 100, 1),
    "moving": Label("still moving", "%", 100, 1),
    "tilt_deg": Label("tilt, mean", "°", 1, 2),
    "tilt_deg_median": Label("tilt, median", "°", 1, 3),
    "rotation_deg": Label("rotation, mean", "°", 1, 2),
    "rotation_deg_median": Label("rotation, median", "°", 1, 3),
    "margin_deg": Label("margin", "°", 1, 2),
    "margin_mm": Label("margin at a size of 100 mm", "mm", 1, 2),
    "cd": Label("Chamfer distance", "", 1, 4),
    "f_score": Label("F-score", "%", 100, 2),
    "cd_fine": Label("Chamfer distance, fine", "", 1, 4),
    "f_score_fine": Label("F-score, fine", "%", 100, 2),
    "iou": Label("IoU", "", 1, 3),
    "plate": Label("base plate", "", 1, 3),
    "footprint": Label("footprint", "", 1, 3),
    "volume": Label("volume", "", 1, 3),
    "height": Label("height over width", "", 1, 3),
    "several_parts": Label("several parts", "%", 100, 1),
    "watertight": Label("watertight", "%", 100, 1),
}


def labels(names: Iterable[str]) -> Mapping[str, Label]:
    """The labels of those measures that have one, in the order of tables; survival comes last."""
    present = set(names)
    found = {name: label for name, label in LABELS.items() if name in present}
    angles = sorted(
        (float(name.removeprefix(SURVIVAL)), name) for name in present if name.startswith(SURVIVAL)
    )
    return found | {
        name: Label(f"survival at {theta:g} rad", "%", 100, 1) for theta, name in angles
    }
