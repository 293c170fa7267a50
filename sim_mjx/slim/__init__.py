"""The slim step: MJX's equations for one free body on a plane, and nothing else.

`mjx.step` serves any model; most of what it does for a free body on a plane is empty work. Here the
same soft-constraint model, Newton solver, exact line search and Euler step are written out for this
one case, structure of arrays: every number is an array over the batch, so that a compiler can keep
a step in a few fused loops. What is left out: every joint, actuator, sensor, tendon, equality,
limit, friction loss and damping term, and the margins, all of which are zero here.

`simulate` leaves it to XLA how the arithmetic becomes loops; `simulate_in_kernel` is all steps in
one kernel of an NVIDIA GPU.
"""

from sim_mjx.slim.kernel import has_kernel
from sim_mjx.slim.kernel import simulate as simulate_in_kernel
from sim_mjx.slim.step import simulate

__all__ = ["REVISION", "has_kernel", "simulate", "simulate_in_kernel"]

# Part of the engine's version in every row: bump it when a step's bits change.
REVISION = 2
