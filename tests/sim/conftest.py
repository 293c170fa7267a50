"""Fixtures of the simulation's tests."""

from __future__ import annotations

import pytest

from sim_mjx import referee, worker


@pytest.fixture
def no_workers_yet(monkeypatch):
    """As in a new program: the referee drops few objects in this process, where a test can see."""
    idle = worker.IdleWorkers()
    monkeypatch.setattr(referee, "_idle", idle)
    monkeypatch.setattr(referee, "_dropped", 0)
    yield
    idle.end()
