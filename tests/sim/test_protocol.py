"""Protocols: presets, files, and a hash that no change of a label escapes."""

from __future__ import annotations

import dataclasses

import pytest

from sim_mjx import PRESETS, Protocol, ProtocolError


def test_presets_are_what_dso_did():
    label, evaluate, fast = (PRESETS[n] for n in ("dso-label", "dso-eval", "fast"))
    assert (label.scaling, label.early_stop, label.steps) == ("none", False, 10_000)
    assert (evaluate.scaling, evaluate.early_stop, evaluate.timestep) == ("unit", True, 1e-3)
    assert dataclasses.replace(fast, timestep=1e-3) == evaluate
    solid = dataclasses.replace(PRESETS["solid"], inertia="legacy", contact="c4")
    assert solid == evaluate != PRESETS["solid"]
    assert (fast.steps, fast.check_steps) == (5_000, 50)
    assert all(p.threshold_deg == 20.0 for p in PRESETS.values())


OTHER = {
    "timestep": 5e-4,
    "duration": 5.0,
    "solver_iterations": 5,
    "linesearch_iterations": 9,
    "gravity": 1.62,
    "early_stop": False,
    "check_interval": 0.2,
    "quiet_speed": 2e-2,
    "quiet_checks": 6,
    "minimum_time": 2.0,
    "growth": 1.3,
    "growing_checks": 5,
    "contact": "skin",
    "skin": 2e-3,
    "friction": 0.5,
    "density": 500.0,
    "inertia": "exact",
    "saturation": 2.0,
    "scaling": "none",
    "up": "z",
    "up_turn": "swap",
    "threshold_deg": 10.0,
    "measure": "tilt",
}


def test_every_field_is_in_the_hash():
    base = Protocol()
    assert set(OTHER) == {field.name for field in dataclasses.fields(Protocol)}
    hashes = {dataclasses.replace(base, **{name: value}).hash() for name, value in OTHER.items()}
    assert len(hashes | {base.hash()}) == len(OTHER) + 1
    assert Protocol().hash() == base.hash()


def test_file_holds_differences(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: fast\nquiet_speed: 5e-3\nduration: 4\n", encoding="utf-8")
    expected = dataclasses.replace(PRESETS["fast"], quiet_speed=5e-3, duration=4.0)
    assert Protocol.from_file(path) == expected
    assert Protocol.resolve(str(path)).hash() == expected.hash()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timestp: 1e-3", "timestp.*timestep"),
        ("timestep: soon", "timestep.*number"),
        ("early_stop: 1", "early_stop"),
        ("quiet_checks: 2.5", "quiet_checks.*int"),
        ("contact: sticky", "contact.*c4"),
        ("duration: 0.95\ntimestep: 0.3", "multiple"),
        ("solver_iterations: 1", "solver_iterations"),
        ("- 1", "mapping"),
        ("preset: slow", "slow"),
    ],
)
def test_bad_files_name_the_field(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProtocolError, match=message):
        Protocol.from_file(path)


def test_unknown_name_lists_the_presets():
    with pytest.raises(ProtocolError, match="dso-eval, dso-label, fast"):
        Protocol.resolve("dso")
