"""What a dataset job leaves for people: a sheet of its first objects, and the meshes of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

import sim_mjx
from dso_jax import mesh_export, meshes
from dso_jax.dso_folder.layout import folder_name
from dso_jax.generation import contact_sheet
from sim_mjx.bodies import BodyError

SHEET = "contact-sheet.png"
MESHES = "meshes"


class Exhibits(NamedTuple):
    """The first samples of some prompts, until their labels are there.

    Attributes:
        rows: (k,) which of the block's samples they are.
        images: (k,h,w,3) of their prompts.
        logits: (k,R,R,R).
    """

    rows: np.ndarray
    images: np.ndarray
    logits: Float[np.ndarray, "k R R R"]

    @classmethod
    def of(
        cls,
        lines: Mapping[str, Sequence],
        images: np.ndarray | None,
        logits: Float[np.ndarray, "N R R R"],
    ) -> Exhibits | None:
        """The first sample of each of the first prompts; None without their pictures."""
        prompts = np.asarray(lines["condition_row"])
        if images is None or len(images) <= prompts.max():
            return None
        rows = np.unique(prompts, return_index=True)[1][: contact_sheet.OBJECTS]
        return cls(rows, images[prompts[rows]], logits[rows])

    def write(self, out: Path, lines: Mapping[str, Sequence], rest: sim_mjx.Rest) -> None:
        """Writes OUT/contact-sheet.png."""
        entries = [
            contact_sheet.Entry(
                image=self.images[place],
                logits=self.logits[place],
                quaternion=rest.quaternion[row],
                stands=bool(lines["stable"][row]),
                text=f"{lines['object'][row]}: {_verdict(lines, rest, row)}",
            )
            for place, row in enumerate(self.rows.tolist())
        ]
        title = "First samples of the first prompts: picture, start, rest"
        contact_sheet.write(out / SHEET, entries, title)


def write_meshes(
    out: Path,
    lines: Mapping[str, Sequence],
    logits: Float[np.ndarray, "N R R R"],
    saturation: float,
) -> None:
    """Writes the surface of each solid as OUT/meshes/CATEGORY/OBJECT/IMG_EEE.glb.

    The edge of the grid is a metre; what is no solid has no file.
    """
    names = zip(lines["object"], lines["view"], lines["sample"], logits, strict=True)
    for name, view, number, volume in names:
        try:
            mesh = meshes.surface(volume, saturation=saturation)
        except BodyError:
            continue
        folder = out / MESHES / folder_name(str(name))
        folder.mkdir(parents=True, exist_ok=True)
        height = 1000 * float(np.ptp(mesh.vertices[:, 2]))
        mesh_export.export(mesh, folder / f"{view:03d}_{number:03d}.glb", height_mm=height)


def _verdict(lines: Mapping[str, Any], rest: sim_mjx.Rest, row: int) -> str:
    if rest.reason[row] is not None:
        return f"invalid ({rest.reason[row]})"
    return f"{'stands' if lines['stable'][row] else 'falls'}, {rest.tilt_deg[row]:.1f}°"
