"""Engines that drop a batch at a time, behind the interface of a stream."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest

from sim_mjx import concatenate, referee, referee_one
from sim_mjx.calls import CallStream
from tests.sim import shapes


@pytest.fixture(scope="module")
def bodies():
    return concatenate([shapes.leaning(shift) for shift in (0.0, 2.0)])


def test_results_are_the_engine_s(bodies):
    count = []
    with CallStream(referee.drop, shapes.FAST, progress=count.append) as stream:
        stream.put(bodies, tag="both")
        stream.put(bodies, [None, "flat"], tag="one")
        stream.close()
        found = dict(stream.results())
        with pytest.raises(ValueError, match="closed"):
            stream.put(bodies)
    rest = referee.drop(bodies, shapes.FAST)
    np.testing.assert_array_equal(found["both"].quaternion, rest.quaternion)
    assert found["one"].reason.tolist() == [None, "flat"]
    assert sum(count) == 3


def test_what_is_ready_does_not_wait(bodies):
    gate = threading.Event()

    def slow(bodies, protocol, **options):
        assert gate.wait(60)
        return referee.drop(bodies, protocol)

    with CallStream(slow, shapes.FAST) as stream:
        stream.put(bodies, tag=1)
        stream.put(bodies, tag=2)
        assert not list(stream.ready())
        gate.set()
        stream.close()
        assert [tag for tag, _ in stream.results()] == [1, 2]
        assert not list(stream.ready())


def test_one_runs_and_one_waits(bodies):
    """Whoever puts in waits for the rest."""
    begun, ended = [], []

    def slow(bodies, protocol, **options):
        begun.append(time.monotonic())
        time.sleep(0.02)
        ended.append(time.monotonic())
        return referee.drop(bodies[:0], protocol)

    with CallStream(slow, shapes.FAST) as stream:
        for number in range(5):
            stream.put(bodies)
            assert len(ended) >= number - 1
    assert all(after >= before for after, before in zip(begun[1:], ended, strict=False))


def test_leaving_by_an_error_ends_the_call(bodies):
    """As Ctrl-C does: what runs ends at its next object, what waits does not begin."""
    begun, calls = threading.Event(), []

    def endless(bodies, protocol, *, progress):
        calls.append(1)
        while True:
            begun.set()
            progress(1)
            time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt), CallStream(endless, shapes.FAST) as stream:
        stream.put(bodies)
        stream.put(bodies)
        assert begun.wait(60)
        raise KeyboardInterrupt
    assert len(calls) == 1


def test_an_error_of_the_engine_comes_out(bodies):
    def broken(bodies, protocol, **options):
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="device"), CallStream(broken, shapes.FAST) as stream:
        stream.put(bodies)
        stream.close()
        list(stream.results())


def test_a_refused_body_counts_as_done(bodies):
    """So that progress adds up where C MuJoCo rejects a mesh."""
    empty = dataclasses.replace(bodies, points=np.zeros_like(bodies.points))
    count = []
    rest = referee.drop(empty, shapes.FAST, progress=count.append)
    assert rest.reason.tolist() == [referee_one.COMPILE_FAILED] * 2
    assert sum(count) == 2
