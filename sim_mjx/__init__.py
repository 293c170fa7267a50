"""Rigid bodies from meshes or occupancy, dropped in MuJoCo MJX, and how they came to rest."""

from sim_mjx import pytrees as pytrees  # registers bodies with JAX
from sim_mjx.bodies import BodyError, HullPolygons, Provenance, RigidBody, concatenate
from sim_mjx.device_occupancy import bodies_from_occupancy
from sim_mjx.drop import drop
from sim_mjx.margin import static_margin_deg
from sim_mjx.meshes import body_from_mesh
from sim_mjx.protocol import PRESETS, Protocol, ProtocolError
from sim_mjx.rest import Rest

__all__ = [
    "PRESETS",
    "BodyError",
    "HullPolygons",
    "Protocol",
    "ProtocolError",
    "Provenance",
    "Rest",
    "RigidBody",
    "bodies_from_occupancy",
    "body_from_mesh",
    "concatenate",
    "drop",
    "static_margin_deg",
]
