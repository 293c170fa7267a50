"""The engines that can drop a body, behind one interface.

`mjx` is the default: its own step (`stock`) or the same equations written for one body (`slim`).
`mujoco` is C MuJoCo, a process a core; `mujoco_warp` (optional) its port to CUDA. All take the same
bodies under the same protocol and stop early by the same rule; a label stores which one made it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable

import jax

from sim_mjx import referee, slim
from sim_mjx.bodies import RigidBody
from sim_mjx.calls import CallStream
from sim_mjx.drop import Step, drop
from sim_mjx.protocol import Protocol
from sim_mjx.rest import Rest
from sim_mjx.stream import DropStream

NAMES = ("mjx", "mujoco", "mujoco_warp")
# Files of one part of a job: what a kill may cost. With an engine that drops a batch at a time they
# are also what is dropped together, and that ends with objects that roll beside idle hardware.
CPU_BLOCK, STREAM_BLOCK, ACCELERATOR_BLOCK = 1024, 8192, 65536

Drop = Callable[..., Rest]


class EngineError(ValueError):
    """An engine that does not exist or cannot be used here."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """A way to drop bodies.

    Attributes:
        name: as users and tables write it.
        version: of the packages behind it.
        device: what it runs on.
        block: files in a block, unless the job says otherwise.
        exact: simulates in float64 with the referee's own contact rule, so close calls stand.
        call: `call(bodies, protocol, progress=...)`; see `drop`.
        endless: `endless(protocol, progress=...)` makes the engine's stream, if it has one whose
            results do not depend on what else is put in.
    """

    name: str
    version: str
    device: str
    block: int
    exact: bool
    call: Drop = dataclasses.field(compare=False, repr=False)
    endless: Callable[..., DropStream] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )

    def drop(
        self,
        bodies: RigidBody,
        protocol: Protocol,
        progress: Callable[[int], None] | None = None,
    ) -> Rest:
        """Drops bodies of one shape bucket; see `sim_mjx.drop`."""
        return self.call(bodies, protocol, progress=progress)

    def stream(
        self, protocol: Protocol, progress: Callable[[int], None] | None = None
    ) -> DropStream | CallStream:
        """Takes bodies of any shape bucket, batch by batch; see `sim_mjx.stream`."""
        if self.endless is None:
            return CallStream(self.call, protocol, progress=progress)
        return self.endless(protocol, progress=progress)

    def record(self) -> dict[str, str]:
        """What a table stores of the engine with each label."""
        return {"engine": self.name, "engine_version": self.version, "device": self.device}


def resolve(name: str = "mjx", step: Step = "slim") -> Engine:
    """The engine of that name on this machine.

    Args:
        name: one of `NAMES`.
        step: of MJX alone, see `sim_mjx.drop`.

    Raises:
        EngineError: there is no such engine.
    """
    version = importlib.metadata.version
    if name == "mujoco":
        return Engine(name, version("mujoco"), "cpu", CPU_BLOCK, True, referee.drop)
    if name == "mjx":
        device = jax.local_devices()[0]
        block = CPU_BLOCK if device.platform == "cpu" else STREAM_BLOCK
        ours = f" {slim.REVISION}" if step == "slim" else ""
        versions = f"{version('mujoco-mjx')} jax {jax.__version__} {step}{ours}"
        simulate = functools.partial(drop, step=step)
        endless = DropStream if step == "slim" else None
        return Engine(name, versions, device.device_kind, block, False, simulate, endless)
    if name == "mujoco_warp":
        return _warp_engine()
    raise EngineError(f"engine {name!r}: expected one of {', '.join(NAMES)}")


def _warp_engine() -> Engine:
    missing = [name for name in ("mujoco_warp", "warp") if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(
            f"engine mujoco_warp: {missing[0]} is not installed; "
            "pip install mujoco-warp==4.0.0 warp-lang==1.19.0"
        )
    import warp  # pyright: ignore[reportMissingImports]

    from sim_mjx import warp_engine

    version = importlib.metadata.version
    ours = warp_engine.REVISION
    versions = f"{version('mujoco-warp')} warp {version('warp-lang')} {ours}"
    device = warp.get_device()
    block = ACCELERATOR_BLOCK if device.is_cuda else CPU_BLOCK
    return Engine("mujoco_warp", versions, device.name, block, False, warp_engine.drop)
