"""Close calls: which rows go to C MuJoCo, and what the table says of them."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from sim_mjx import concatenate, engines, referee, referee_one, rows
from sim_mjx.packed import pack
from sim_mjx.prepare import Prepared
from sim_mjx.readjudicate import close_calls, readjudicate
from sim_mjx.rest import Rest
from sim_mjx.task import Task
from tests.sim import shapes


def rest_of(tilts, quiet=True, reasons=None, yaw=0.0) -> Rest:
    """Results that ended with these tilts about x, turned by `yaw` degrees before."""
    half, turn = np.radians(np.asarray(tilts, float)) / 2, np.radians(yaw) / 2
    zero = np.zeros_like(half)
    tilted = np.stack([np.cos(half), np.sin(half), zero, zero], axis=1)
    # Product with a turn about z.
    w, x = tilted[:, 0], tilted[:, 1]
    c, s = np.cos(turn), np.sin(turn)
    quaternions = np.stack([w * c, x * c, -x * s, w * s], axis=1)
    count = len(half)
    return Rest.from_states(
        np.zeros((count, 3)),
        quaternions,
        np.full(count, 7),
        np.broadcast_to(quiet, count),
        reasons or [None] * count,
    )


def test_which_are_close():
    tilts = [0.0, 14.9, 15.1, 19.9, 24.9, 25.1, 90.0]
    expected = [False, False, True, True, True, False, False]
    assert close_calls(rest_of(tilts), shapes.EVAL).tolist() == expected
    assert close_calls(rest_of(tilts, quiet=False), shapes.EVAL).all()
    strict = dataclasses.replace(shapes.EVAL, threshold_deg=5.0)
    assert close_calls(rest_of(tilts), strict).tolist() == [True] + 6 * [False]
    # The label is made of the total rotation, in which yaw counts.
    assert close_calls(rest_of([0.0], yaw=21.0), shapes.EVAL).tolist() == [True]


def test_overflow_is_tried_again_and_other_reasons_are_not():
    broken = rest_of([np.nan, 0.0], reasons=[None, "empty"])
    assert broken.reason.tolist() == ["not_finite", "empty"]
    assert close_calls(broken, shapes.EVAL).tolist() == [True, False]


@pytest.fixture(scope="module")
def bodies():
    return concatenate([shapes.leaning(s) for s in (0.0, 1.5, 0.5)])


def test_the_referee_replaces_close_calls_alone(bodies):
    first = rest_of([0.5, 18.0, 0.25])
    rest, again = readjudicate(bodies, first, shapes.EVAL)
    assert again.tolist() == [False, True, False]
    assert rest.tilt_deg[[0, 2]] == pytest.approx([0.5, 0.25])
    assert rest.steps[[0, 2]].tolist() == [7, 7]
    c = referee.drop(bodies, shapes.EVAL)
    assert rest.tilt_deg[1] == c.tilt_deg[1] > 25
    assert not rest.stable(shapes.EVAL)[1]
    assert first.tilt_deg[1] == pytest.approx(18.0)  # what came in is as it was


@pytest.mark.usefixtures("no_workers_yet")
def test_what_the_referee_refuses_keeps_its_first_result(bodies, monkeypatch):
    def refuse(*arguments):
        raise ValueError("mesh volume is too small")

    monkeypatch.setattr(referee_one, "compile_model", refuse)
    rest, again = readjudicate(bodies, rest_of([0.5, 18.0, 0.25]), shapes.EVAL)
    assert not again.any()
    assert rest.tilt_deg == pytest.approx([0.5, 18.0, 0.25])


def labelled(bodies, rest: Rest, adjudicate: bool, exact: bool = False) -> list[dict]:
    """Rows of bodies under an engine that always gives this result."""
    call = functools.partial(lambda rest, *arguments, progress: rest, rest)
    engine = engines.Engine("fixed", "1", "cpu", 8, exact, call)
    made = Task(shapes.EVAL, engine, adjudicate)
    block = [Prepared(i, shapes.DATA, "ab", pack(bodies[i]), "", "") for i in range(len(bodies))]
    silent = lambda stage, count: None  # noqa: E731
    return rows.rows(block, rows.simulate(block, made, silent), made, silent).to_pylist()


def test_the_table_says_which_rows_are_the_referee_s(bodies):
    first = rest_of([0.5, 18.0, 0.25])
    made = labelled(bodies, first, adjudicate=True)
    assert [row["adjudicated"] for row in made] == [False, True, False]
    assert [row["tilt_first_deg"] for row in made] == [None, pytest.approx(18.0), None]
    assert [row["stable"] for row in made] == [True, False, True]
    for plain in (labelled(bodies, first, False), labelled(bodies, first, True, exact=True)):
        assert [row["stable"] for row in plain] == [True, True, True]
        assert not any(row["adjudicated"] for row in plain)


def test_overflow_is_never_a_label(bodies):
    broken = dataclasses.replace(bodies, mass=bodies.mass * [1.0, np.nan, 1.0])
    made = labelled(broken, rest_of([0.5, np.nan, 0.25]), adjudicate=True)
    assert (made[1]["status"], made[1]["reason"], made[1]["stable"]) == (
        "invalid",
        "not_finite",
        None,
    )
    healthy = labelled(bodies, rest_of([0.5, np.nan, 0.25]), adjudicate=True)
    assert (healthy[1]["stable"], healthy[1]["adjudicated"]) == (False, True)
    assert healthy[1]["tilt_first_deg"] is None
