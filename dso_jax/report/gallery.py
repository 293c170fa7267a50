"""The gallery of a report, drawn from what each evaluation kept about its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from dso_jax.report import pictures
from dso_jax.report.page import Cell, Exhibit

STANDS, FALLS, START = (47, 158, 143), (226, 122, 63), (128, 146, 172)  # colours, 0-255
STEPS = 127 / pictures.LOGIT_RANGE  # logits are kept as int8
PROMPT_SIZE = 72  # pixels
# What an evaluation keeps beside its columns, and `exhibits` needs.
KEPT = ("image", "quaternion", "logits")


def keep(
    images: UInt8[np.ndarray, "N h w 3"],
    quaternions: Float[np.ndarray, "N 4"],
    logits: Float[np.ndarray, "N R R R"],
) -> dict[str, np.ndarray]:
    """What the gallery needs of N samples: condition image, final pose (w, x, y, z), surface."""
    clipped = np.clip(logits, -pictures.LOGIT_RANGE, pictures.LOGIT_RANGE)
    rounded = np.round(clipped * STEPS)
    # Rounding must not move a voxel across the surface.
    kept = np.where(logits > 0, np.maximum(rounded, 1), np.minimum(rounded, 0))
    return {
        "image": images,
        "quaternion": np.asarray(quaternions, np.float32),
        "logits": kept.astype(np.int8),
    }


def exhibits(
    evaluations: Mapping[str, Mapping[str, np.ndarray]], rows: Sequence[int]
) -> list[Exhibit]:
    """Draws the samples number `rows` of every method.

    Args:
        evaluations: method -> columns and what `keep` returned; the same samples for each.
        rows: which samples.
    """
    first = next(iter(evaluations.values()))
    return [
        Exhibit(
            name=f"{first['object'][row]}, sample {first['sample'][row]}",
            prompt=_prompt(first["image"][row]),
            cells={name: _cell(columns, row) for name, columns in evaluations.items()},
        )
        for row in rows
    ]


def _cell(columns: Mapping[str, np.ndarray], row: int) -> Cell:
    status, quaternion = str(columns["status"][row]), columns["quaternion"][row]
    stable = bool(columns["stable"][row]) and status != "invalid"
    surface = pictures.surface_of_logits(columns["logits"][row] / STEPS)
    if surface is None:
        start = rest = pictures.draw(None, START)
    else:
        posed = np.isfinite(quaternion).all()  # what could not be simulated has no final pose
        start = pictures.draw(pictures.turned(surface), START)
        final = pictures.turned(surface, quaternion if posed else pictures.UPRIGHT)
        rest = pictures.draw(final, STANDS if stable else FALLS)
    return Cell(
        start=pictures.png(start),
        rest=pictures.png(rest),
        stable=stable,
        status=status,
        tilt_deg=float(columns["tilt_deg"][row]),
    )


def _prompt(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The condition image, enlarged in whole pixels where it is small."""
    factor = max(1, PROMPT_SIZE * 2 // image.shape[0])
    large = Image.fromarray(image).resize(
        (image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST
    )
    return pictures.png(np.asarray(large))
