"""The numbers of the model that are the same for every body, read from the compiled template."""

# The bindings of MuJoCo are compiled: type checkers see none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import functools

import mujoco
import numpy as np

from sim_mjx import world
from sim_mjx.protocol import Protocol

MINIMUM = mujoco.mjMINVAL


@dataclasses.dataclass(frozen=True)
class Constants:
    """What `mjx.step` would read from the model's options and from the contact's parameters.

    Attributes:
        timestep: s.
        gravity: along z, m/s^2, negative.
        iterations: most Newton iterations.
        linesearch_iterations: most bracket updates of a line search.
        tolerance: of the Newton iteration, per trace of the mass matrix.
        linesearch_tolerance: of the line search, relative to `tolerance`.
        friction: sliding friction.
        stiffness: of the reference acceleration, 1/s^2.
        damping: of the reference acceleration, 1/s.
        impedance: at no depth and beyond `width`, and the shape between: (low, high, width, middle,
            power).
        regularisation: r times mass over (1 - impedance) / impedance.
    """

    timestep: float
    gravity: float
    iterations: int
    linesearch_iterations: int
    tolerance: float
    linesearch_tolerance: float
    friction: float
    stiffness: float
    damping: float
    impedance: tuple[float, float, float, float, float]
    regularisation: float


@functools.lru_cache(maxsize=16)
def constants(protocol: Protocol) -> Constants:
    """The constants under a protocol, with MuJoCo's limits on them applied."""
    model = world.template(protocol)
    option = model.opt
    ground, body = 0, 1
    # Both geoms have the same solver parameters and weight: mixing them changes nothing.
    time_constant, damping_ratio = model.geom_solref[body]
    time_constant = max(time_constant, 2 * option.timestep)
    low, high, width, middle, power = model.geom_solimp[body]
    low, high, middle = np.clip([low, high, middle], mujoco.mjMINIMP, mujoco.mjMAXIMP)
    friction = max(model.geom_friction[ground, 0], model.geom_friction[body, 0])
    return Constants(
        timestep=float(option.timestep),
        gravity=float(option.gravity[2]),
        iterations=int(option.iterations),
        linesearch_iterations=int(option.ls_iterations),
        tolerance=float(option.tolerance),
        linesearch_tolerance=float(option.ls_tolerance),
        friction=float(friction),
        stiffness=float(1 / (high * time_constant * damping_ratio) ** 2),
        damping=float(2 / (high * time_constant)),
        impedance=(
            float(low),
            float(high),
            float(max(width, MINIMUM)),
            float(middle),
            # A whole power is a product, any other a call of the mathematics library.
            int(max(power, 1)) if power == int(power) else float(max(power, 1.0)),
        ),
        # All edges of a friction pyramid share one weight.
        regularisation=float(2 * friction**2 * (1 + friction**2) / option.impratio),
    )
