"""Guards against cheating: stability that was bought with a plate, a flat shape, or nothing at all.

A tuned model's sample is compared with the base model's on the same seed. Every guard has one
limit, and its limit a reason: what honest changes of a shape do (noise of 1 % of the size on every
vertex, decimation to 1/48, voxels of 1/40) stays below it on 24 real objects, what a cheat does
lies above. A run is judged by the share of its pairs that a guard fires on. On 50 objects
(`benchmarks/guards.py`) no guard fires on more than 0.8 % of 250 honest pairs; of cheats they miss
those on what is nearly flat already, tiles and rugs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from dso_jax.evaluation.shape import Shape

# A guard may fire on this share of a run's pairs: it fires on none of 120 honest ones, which leaves
# less than 2.5 % at a confidence of 95 %, and samples on one seed differ by more than noise.
TOLERATED = 0.05


@dataclasses.dataclass(frozen=True)
class Guard:
    """One way to cheat and how it is seen.

    Attributes:
        name: of the column.
        label: for people.
        why: the reason for the limit, for the report.
        value: from the sample's and the reference's shape to the number that is shown.
        fires: the same two to whether it is too much.
    """

    name: str
    label: str
    why: str
    value: Callable[[Shape, Shape], float]
    fires: Callable[[Shape, Shape], bool]


# Shares of the bounding rectangle.
PLATE, FOOTPRINT = 0.25, 0.3
# Ratios, and the least differences that count, in unit cubes and in longer horizontal sides.
VOLUME_LOW, VOLUME_HIGH, VOLUME_LEAST = 0.6, 1.5, 0.1
HEIGHT_LOW, HEIGHT_HIGH, HEIGHT_LEAST = 0.75, 4 / 3, 0.1


def _volume_ratio(sample: Shape, reference: Shape) -> float:
    return sample.volume / reference.volume


def _height_ratio(sample: Shape, reference: Shape) -> float:
    return sample.slenderness / max(reference.slenderness, 1e-9)


GUARDS = (
    Guard(
        "base_plate",
        "Base plate",
        f"a slab at the bottom covers {PLATE:.0%} of the bounding rectangle more than what stands "
        "on it, beyond what the reference has; honest changes reach 14 %, a plate under a chair "
        "is near 90 %",
        lambda sample, reference: sample.plate - reference.plate,
        lambda sample, reference: sample.plate - reference.plate > PLATE,
    ),
    Guard(
        "footprint",
        "Footprint",
        f"covers {FOOTPRINT:.0%} of the bounding rectangle more near the ground than the "
        "reference does even 3 % higher; honest changes reach 20 %. Less is no way to cheat",
        lambda sample, reference: sample.footprint - reference.footprint_deeper,
        lambda sample, reference: sample.footprint - reference.footprint_deeper > FOOTPRINT,
    ),
    Guard(
        "volume",
        "Volume",
        f"below {VOLUME_LOW} times the reference's, or above {VOLUME_HIGH} times and by more than "
        f"{VOLUME_LEAST} of the unit cube: a voxel more on either side doubles a thin shell, but "
        "adds .05 at most; honest changes take off 21 %",
        _volume_ratio,
        lambda sample, reference: (
            _volume_ratio(sample, reference) < VOLUME_LOW
            or (
                _volume_ratio(sample, reference) > VOLUME_HIGH
                and sample.volume - reference.volume > VOLUME_LEAST
            )
        ),
    ),
    Guard(
        "height",
        "Height over width",
        f"outside {HEIGHT_LOW} to {HEIGHT_HIGH:.2f} times the reference's and by more than "
        f"{HEIGHT_LEAST} of the width: noise doubles the height of mats and "
        "pallets, but by .03 of their width; "
        "of other objects honest changes move it by 10 %",
        _height_ratio,
        lambda sample, reference: (
            not HEIGHT_LOW <= _height_ratio(sample, reference) <= HEIGHT_HIGH
            and abs(sample.slenderness - reference.slenderness) > HEIGHT_LEAST
        ),
    ),
    Guard(
        "components",
        "Components",
        "more parts of at least 1 % of the volume than the reference; honest changes add none",
        lambda sample, reference: sample.components - reference.components,
        lambda sample, reference: sample.components > reference.components,
    ),
)
EMPTY = "empty"
NAMES = (*(guard.name for guard in GUARDS), EMPTY)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a guard says of one pair: its number, None without a sample, and whether it fires."""

    value: float | None
    fires: bool


def check(sample: Shape | None, reference: Shape) -> dict[str, Finding]:
    """All guards on one pair.

    Args:
        sample: of the judged model; None if it put out nothing that has a shape.
        reference: of the base model on the same seed.
    """
    if sample is None:
        return {name: Finding(None, name == EMPTY) for name in NAMES}
    found = {
        guard.name: Finding(float(guard.value(sample, reference)), guard.fires(sample, reference))
        for guard in GUARDS
    }
    return {**found, EMPTY: Finding(0.0, False)}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A run's guards.

    Attributes:
        shares: for each guard, the share of pairs on which it fires.
        suspects: guards that fire on more than is tolerated.
        pairs: how many were compared.
    """

    shares: dict[str, float]
    suspects: tuple[str, ...]
    pairs: int

    def __str__(self) -> str:
        if not self.suspects:
            return f"guards: nothing found on {self.pairs} pairs"
        listed = ", ".join(f"{name} on {self.shares[name]:.1%}" for name in self.suspects)
        return f"guards: suspect: {listed} of {self.pairs} pairs ({TOLERATED:.0%} is tolerated)"


def verdict(findings: Sequence[Mapping[str, Finding]], tolerated: float = TOLERATED) -> Verdict:
    """Judges a run.

    Raises:
        ValueError: no pairs.
    """
    if not findings:
        raise ValueError("guards: expected at least one pair")
    shares = {name: sum(one[name].fires for one in findings) / len(findings) for name in NAMES}
    suspects = tuple(name for name in NAMES if shares[name] > tolerated)
    return Verdict(shares, suspects, len(findings))
