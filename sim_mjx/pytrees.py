"""Bodies as JAX trees: which of their fields are arrays and which belong to the program.

Apart from `sim_mjx.bodies`, because the processes that prepare bodies do without JAX.
"""

from __future__ import annotations

import jax

from sim_mjx.bodies import HullPolygons, RigidBody

jax.tree_util.register_dataclass(
    HullPolygons,
    data_fields=["start", "count", "normals", "contacts"],
    meta_fields=["window"],
)
jax.tree_util.register_dataclass(
    RigidBody,
    data_fields=["points", "mass", "com", "inertia", "inertia_quat", "polygons"],
    meta_fields=["provenance"],
)
