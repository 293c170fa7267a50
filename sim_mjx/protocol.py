"""Protocol: every number that can change a label, and the presets built on DSO's choices.

A label means nothing without the protocol that made it, so a protocol is frozen, validated when it
is built, and hashed over all of its fields; the hash travels with each label. Lengths are metres,
times seconds, angles degrees.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import pathlib
from typing import Any, Literal, get_args, get_type_hints

import yaml

Measure = Literal["tilt", "rotation"]
ContactRule = Literal["c4", "skin"]
InertiaMode = Literal["legacy", "exact", "convex", "shell", "voxel"]
Scaling = Literal["unit", "none"]
UpAxis = Literal["auto", "y", "z"]
UpTurn = Literal["rotation", "swap"]

# Bump when code changes move labels although no field changed.
REVISION = 2


class ProtocolError(ValueError):
    """A protocol that cannot be used; the message names the field or file."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is simulated and when an object counts as standing.

    Stock values are those of DSO's evaluation: MuJoCo's defaults, one free body on a plane, dropped
    from rest with its lowest point on the ground.
    """

    # Integration.
    timestep: float = 1e-3
    duration: float = 10.0
    solver_iterations: int = 4  # Newton; 4/8 gives the labels of 100/50 at half the time
    linesearch_iterations: int = 8
    gravity: float = 9.81  # m/s^2, along -z
    # Early stop: quiet means max |qvel| below `quiet_speed` (m/s and rad/s) at a check.
    early_stop: bool = True
    check_interval: float = 0.1
    quiet_speed: float = 1e-2
    quiet_checks: int = 5  # consecutive quiet checks
    minimum_time: float = 1.0
    # Not at rest but falling: a speed that grew by this factor at so many checks in a row.
    growth: float = 1.2
    growing_checks: int = 4
    # Contact. `c4`: MuJoCo 4's polygon rule where a body has hull polygons, `skin` elsewhere;
    # `skin`: points within `skin` object sizes of the deepest one, for every body.
    contact: ContactRule = "c4"
    skin: float = 1e-3
    friction: float = 1.0  # sliding; condim 3 has no torsional or rolling part
    # Body.
    density: float = 1000.0  # kg/m^3
    inertia: InertiaMode = "legacy"
    # Occupancy logits beyond +- this mean "certain", not "further away"; see `sim_mjx.occupancy`.
    saturation: float = 1.0
    # Start pose.
    scaling: Scaling = "unit"  # vertex mean at the origin, max |coordinate| = 0.5
    up: UpAxis = "auto"  # the file's up axis; `auto` goes by the file format
    up_turn: UpTurn = "rotation"  # y-up to z-up: (x, -z, y), or DSO's mirror (x, z, y)
    # Decision: stable when the measure is below the threshold.
    threshold_deg: float = 20.0
    measure: Measure = "rotation"  # DSO's total rotation, or the tilt, which ignores yaw

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _checked(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
        self._check_ranges()

    def _check_ranges(self) -> None:
        positive = (
            "timestep duration solver_iterations linesearch_iterations gravity check_interval "
            "quiet_speed quiet_checks growth growing_checks skin friction density saturation "
            "threshold_deg"
        )
        for name in positive.split():
            if not getattr(self, name) > 0:
                raise ProtocolError(f"protocol.{name}: expected a positive number")
        if self.minimum_time < 0:
            raise ProtocolError("protocol.minimum_time: expected zero or more")
        if self.solver_iterations < 2:
            # One Newton iteration makes stock MJX diverge to NaN on plain drops.
            raise ProtocolError("protocol.solver_iterations: expected at least 2")
        for name, unit in (("duration", "check_interval"), ("check_interval", "timestep")):
            ratio = getattr(self, name) / getattr(self, unit)
            if round(ratio) < 1 or not math.isclose(ratio, round(ratio), rel_tol=1e-6):
                raise ProtocolError(f"protocol.{name}: expected a multiple of {unit}")

    @property
    def steps(self) -> int:
        """Steps of a whole run."""
        return round(self.duration / self.timestep)

    @property
    def check_steps(self) -> int:
        """Steps between two quiet checks."""
        return round(self.check_interval / self.timestep)

    @classmethod
    def preset(cls, name: str) -> Protocol:
        """A protocol by name.

        `dso-eval` (scaled, early stop), `dso-label` (raw units, full 10 s), `fast` (2 ms), or
        `solid`, under which an exported mesh is what its occupancy was.
        """
        if name not in PRESETS:
            raise ProtocolError(f"protocol {name!r}: expected one of {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "protocol") -> Protocol:
        """Builds a protocol from differences to `dso-eval`, or to the preset named by `preset`."""
        values = dict(values)
        base = cls.preset(values.pop("preset", "dso-eval"))
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ProtocolError(f"{source}: unknown key {key!r}{hint}")
        try:
            return dataclasses.replace(base, **values)
        except ProtocolError as error:
            raise ProtocolError(f"{source}: {error}") from error

    @classmethod
    def from_file(cls, path: str | pathlib.Path) -> Protocol:
        """Reads a YAML mapping of differences, see `from_dict`."""
        try:
            values = yaml.safe_load(pathlib.Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ProtocolError(f"{path}: cannot read protocol: {error}") from error
        if not isinstance(values, dict):
            raise ProtocolError(f"{path}: expected a YAML mapping of protocol fields")
        return cls.from_dict(values, str(path))

    @classmethod
    def resolve(cls, name_or_path: str) -> Protocol:
        """A preset's name, or the path of a YAML file."""
        if name_or_path in PRESETS:
            return PRESETS[name_or_path]
        if pathlib.Path(name_or_path).is_file():
            return cls.from_file(name_or_path)
        raise ProtocolError(
            f"protocol {name_or_path!r}: expected one of {', '.join(PRESETS)} or a YAML file"
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return dataclasses.asdict(self)

    def hash(self) -> str:
        """Twelve hex digits over every field; equal protocols have equal hashes everywhere."""
        text = json.dumps({"revision": REVISION, **self.to_dict()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type; YAML writes 1e-3 as text and 10 as an integer."""
    choices = get_args(hint)
    if choices:
        if value not in choices:
            raise ProtocolError(f"protocol.{name}: {value!r} is not one of {', '.join(choices)}")
        return value
    if hint is bool or isinstance(value, bool):
        if hint is not bool or not isinstance(value, bool):
            raise ProtocolError(f"protocol.{name}: expected {hint.__name__}, got {value!r}")
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ProtocolError(f"protocol.{name}: expected a number, got {value!r}") from None
    if not math.isfinite(number) or (hint is int and number != int(number)):
        raise ProtocolError(f"protocol.{name}: expected {hint.__name__}, got {value!r}")
    return hint(number)


_EVAL = Protocol()
PRESETS: dict[str, Protocol] = {
    "dso-eval": _EVAL,
    "dso-label": dataclasses.replace(_EVAL, scaling="none", early_stop=False),
    "fast": dataclasses.replace(_EVAL, timestep=2e-3),
    # What a body from occupancy is in any case: one solid, its true mass, contact by the skin rule.
    "solid": dataclasses.replace(_EVAL, inertia="exact", contact="skin"),
}
