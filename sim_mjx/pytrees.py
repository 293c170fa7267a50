"""Bodies as JAX trees: which of their fields are arrays and which belong to the program.

Apart from `sim_mjx.bodies`, because the processes that prepare bodies do without JAX.
"""

from __future__ import annotations

import jax

from sim_mjx.bodies import ARRAYS, POLYGON_ARRAYS, HullPolygons, RigidBody

jax.tree_util.register_dataclass(
    HullPolygons,
    data_fields=list(POLYGON_ARRAYS),
    meta_fields=["window"],
)
jax.tree_util.register_dataclass(
    RigidBody,
    data_fields=[*ARRAYS, "polygons"],
    meta_fields=["provenance"],
)
