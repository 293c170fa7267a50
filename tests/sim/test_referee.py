"""C MuJoCo in processes that stay: what this process gives, whatever becomes of them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sim_mjx import RigidBody, concatenate, referee, worker, worker_pool
from sim_mjx.calls import CallStream
from tests.sim import shapes

ROOT = shapes.DATA.parents[1]
COUNT = 12
REFUSED, FATAL = 3, 5
MASS = 1234.5  # of what is fatal
# A body that MuJoCo would crash over.
FAULT = f"""
import os, signal
from sim_mjx import referee_one
drop_one = referee_one.drop_one
def faulty(body, protocol):
    if body.mass == {MASS}:
        os.kill(os.getpid(), signal.SIGKILL)
    return drop_one(body, protocol)
referee_one.drop_one = faulty
serve()
"""


@pytest.fixture(scope="module")
def bodies() -> RigidBody:
    """Boxes that stand and boxes that fall; one is a point, which MuJoCo refuses."""
    made = concatenate([shapes.leaning(shift) for shift in np.linspace(0.0, 2.0, COUNT)])
    points = made.points.copy()
    points[REFUSED] = 0.0
    return dataclasses.replace(made, points=points)


@pytest.fixture(scope="module")
def expected(bodies):
    return referee.drop(bodies, shapes.FAST, workers=0)


@pytest.fixture
def started(monkeypatch, no_workers_yet):
    """No process waits, and those that are started are in this list; they end with the test."""
    made: list[worker.Worker] = []

    def remember(first: bytes) -> worker.Worker:
        made.append(worker.Worker(first))
        return made[-1]

    monkeypatch.setattr(worker_pool, "Worker", remember)
    yield made
    referee._idle.end()
    assert not any(one.is_alive() for one in made)


def same(a: referee.Rest, b: referee.Rest) -> None:
    """Equal to the bit."""
    for field in dataclasses.fields(referee.Rest):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


def test_processes_give_what_this_process_gives(bodies, expected, started):
    assert expected.reason[REFUSED] == "mujoco_rejects"
    assert sum(expected.status == "rest") == COUNT - 1
    assert 2 < sum(expected.stable(shapes.FAST)) < COUNT - 2
    count: list[int] = []
    same(referee.drop(bodies, shapes.FAST, workers=2, progress=count.append), expected)
    assert count == COUNT * [1]
    reasons = ["flat" if i % 5 == 0 else None for i in range(COUNT)]
    here, there = (referee.drop(bodies, shapes.FAST, reasons=reasons, workers=n) for n in (0, 2))
    same(here, there)
    assert there.reason[[0, 5, 10]].tolist() == ["flat"] * 3
    np.testing.assert_array_equal(there.steps[[1, 2, 4]], expected.steps[[1, 2, 4]])


def test_the_next_call_finds_the_processes_of_the_last(bodies, expected, started, monkeypatch):
    """Under another protocol too; and by default, where a call has enough to do."""
    leave = worker_pool.WorkerPool._leave

    def late(self, *arguments, **options):  # the call has all its results by then
        time.sleep(0.1)
        leave(self, *arguments, **options)

    monkeypatch.setattr(worker_pool.WorkerPool, "_leave", late)
    for call in range(3):
        same(referee.drop(bodies, shapes.FAST, workers=2), expected)
        assert len(started) == 2, call
    slow = dataclasses.replace(shapes.FAST, early_stop=False)
    assert (referee.drop(bodies, slow, workers=2).steps[REFUSED + 1 :] == slow.steps).all()
    monkeypatch.setattr(referee, "cores", lambda: 2)
    same(referee.drop(bodies, shapes.FAST), expected)
    assert len(started) == 2


def test_a_few_are_dropped_in_this_process(bodies, expected, started):
    few = referee.drop(bodies[:5], shapes.FAST)
    np.testing.assert_array_equal(few.quaternion, expected.quaternion[:5])
    assert len(referee.drop(bodies[:0], shapes.FAST)) == 0
    reasons = [None] * 5 + ["flat"] * (COUNT - 5)
    referee.drop(bodies, shapes.FAST, reasons=reasons)
    assert not started
    for _ in range(3):  # few at a time, but again and again
        same(referee.drop(bodies, shapes.FAST), expected)
    assert started and referee._dropped < 25
    before = len(started)
    few = referee.drop(bodies[:1], shapes.FAST)
    np.testing.assert_array_equal(few.quaternion, expected.quaternion[:1])
    assert len(started) == before


def test_two_objects_are_shared_by_two_processes(bodies, started):
    slow = dataclasses.replace(shapes.FAST, early_stop=False)
    referee.drop(bodies[:2], slow, workers=2)
    assert len(started) == 2


def test_what_a_process_raises_is_raised(bodies, started, monkeypatch):
    fault = FAULT.replace("os.kill(os.getpid(), signal.SIGKILL)", "raise KeyError('no such thing')")
    monkeypatch.setattr(worker, "_PROGRAM", worker._PROGRAM.replace("serve()\n", fault))
    heavy = dataclasses.replace(bodies, mass=np.full(COUNT, MASS))
    with pytest.raises(referee.DropError, match="KeyError: 'no such thing'"):
        referee.drop(heavy, shapes.FAST, workers=2)
    assert len(started) == 2


def test_processes_killed_while_they_wait_change_nothing(bodies, expected, started, monkeypatch):
    def kill() -> None:
        for one in started:
            one.kill()
            one._process.wait()

    referee.drop(bodies, shapes.FAST, workers=2)
    kill()
    same(referee.drop(bodies, shapes.FAST, workers=2), expected)
    assert len(started) in (3, 4)  # a second one may not have been needed
    kill()
    assert referee._idle.take(started[0].first) is None
    # Killed this very moment: both seem alive, and an object tried again could meet the other.
    before = len(started)
    same(referee.drop(bodies, shapes.FAST, workers=2), expected)
    kill()
    with monkeypatch.context() as unnoticed:
        unnoticed.setattr(worker.Worker, "is_alive", lambda self: True)
        same(referee.drop(bodies, shapes.FAST, workers=1), expected)
    assert len(started) > before


def test_processes_killed_at_work_change_nothing(bodies, expected, started, monkeypatch):
    ask, asked = worker.Worker.ask, []

    def kill_on_some(self, items):
        asked.append(len(items))
        if len(asked) in (1, 4):
            self.kill()
        ask(self, items)

    monkeypatch.setattr(worker.Worker, "ask", kill_on_some)
    for _ in range(2):
        same(referee.drop(bodies, shapes.FAST, workers=1), expected)
    assert sum(asked) > 2 * COUNT and len(started) == 3


def test_a_process_that_owes_an_answer_does_not_stay(bodies, expected, started, monkeypatch):
    """The next call would take it for its own."""
    ask, asked = worker.Worker.ask, []

    def fail(self, items):
        asked.append(items)
        if len(asked) == 2:
            raise RuntimeError("no memory for a message")
        ask(self, items)

    with monkeypatch.context() as failing, pytest.raises(RuntimeError, match="no memory"):
        failing.setattr(worker.Worker, "ask", fail)
        referee.drop(bodies, shapes.FAST, workers=1)
    same(referee.drop(bodies, shapes.FAST, workers=1), expected)
    assert len(started) == 2


def test_a_fork_leaves_the_processes_to_its_parent(bodies, started, monkeypatch):
    referee.drop(bodies, shapes.FAST, workers=1)
    (one,) = started
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        assert referee._idle.take(one.first) is None
        referee._idle.end()
    assert referee._idle.take(one.first) is one and one.is_alive()
    referee._idle.leave(one)


def test_what_kills_two_processes_is_a_reason(bodies, expected, started, monkeypatch):
    program = worker._PROGRAM.replace("serve()\n", FAULT)
    monkeypatch.setattr(worker, "_PROGRAM", program)
    mass = np.array(bodies.mass)
    mass[FATAL] = MASS
    fatal = dataclasses.replace(bodies, mass=mass)
    referee.drop(bodies, shapes.FAST, workers=2)  # so that it finds processes that wait
    rest = referee.drop(fatal, shapes.FAST, workers=2)
    assert (rest.reason[FATAL], rest.status[FATAL]) == ("crashed", "invalid")
    others = np.arange(COUNT) != FATAL
    np.testing.assert_array_equal(rest.quaternion[others], expected.quaternion[others])
    np.testing.assert_array_equal(rest.reason[others], expected.reason[others])
    assert len(started) >= 3


def test_leaving_early_ends_the_processes(bodies, expected, started):
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    endless = dataclasses.replace(shapes.FAST, early_stop=False, duration=20_000.0)
    mixed = concatenate([bodies[REFUSED], bodies[0], bodies[1:]])  # the first ends at once
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        referee.drop(mixed, endless, workers=2, progress=stop)
    assert time.monotonic() - began < 10
    assert started and not any(one.is_alive() for one in started)
    before = len(started)
    same(referee.drop(bodies, shapes.FAST, workers=2), expected)
    assert len(started) > before


def test_leaving_a_stream_early_ends_the_processes(bodies, started):
    """As Ctrl-C in a job does: the call ends at its next object."""
    long = dataclasses.replace(shapes.FAST, early_stop=False, duration=100.0)
    many = concatenate([bodies] * 20)

    def interrupt() -> None:
        with CallStream(referee.drop, long, progress=seen.append) as stream:
            stream.put(many)
            while not seen:
                time.sleep(0.01)
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert len(seen) < len(many)
    assert started and not any(one.is_alive() for one in started)


def test_a_worker_does_without_jax():
    program = worker._PROGRAM.replace(
        "serve()\n",
        "import sim_mjx.referee_one\n"
        "assert not {'jax', 'mujoco.mjx', 'pyarrow'} & set(sys.modules)\n",
    )
    subprocess.run([sys.executable, "-P", "-c", program, str(ROOT / "sim_mjx")], check=True)


@pytest.mark.parametrize("end", ["", "os._exit(0)"], ids=["exit", "killed"])
def test_no_process_outlives_the_program(end):
    program = f"""
import os
from sim_mjx import concatenate, referee
from tests.sim import shapes
bodies = concatenate([shapes.leaning(0.0)] * 12)
referee.drop(bodies, shapes.FAST, workers=2)
(idle,) = referee._idle._idle.values()
print(*(one._process.pid for one in idle), flush=True)
{end}
"""
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "ResourceWarning" not in done.stderr, done.stderr
    pids = list(map(int, done.stdout.split()))
    assert pids
    deadline = time.monotonic() + 20
    while any(map(_runs, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # whoever inherits them may not ask how they ended
