"""What the script takes of TRELLIS's module of this name; it leaves the mesh as it is."""

from __future__ import annotations

import numpy as np


def postprocess_mesh(
    vertices: np.ndarray,
    faces: np.ndarray,
    simplify: bool = True,
    simplify_ratio: float = 0.9,
    fill_holes: bool = True,
    fill_holes_max_hole_size: float = 0.04,
    fill_holes_max_hole_nbe: int = 32,
    fill_holes_resolution: int = 1024,
    fill_holes_num_views: int = 1000,
    debug: bool = False,
    verbose: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    assert vertices.dtype == np.float32 and (simplify, simplify_ratio) == (True, 0.95)
    assert fill_holes and fill_holes_max_hole_nbe == 55
    return vertices, faces
