"""MJX, imported without the lines it prints where the optional Warp backend is missing."""

import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()):
    from mujoco import mjx
    from mujoco.mjx._src import collision_driver
    from mujoco.mjx._src.types import GeomType

__all__ = ["GeomType", "collision_driver", "mjx"]
