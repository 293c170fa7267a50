"""The stream: results do not depend on company, nothing is lost, and errors end everything."""

from __future__ import annotations

import collections
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from sim_mjx import concatenate, drop, lane, pool, sizes, world
from sim_mjx.meshes import body_from_mesh
from sim_mjx.perturb import turned
from sim_mjx.rest import Rest
from sim_mjx.stream import DropStream
from tests.sim import shapes

COUNT = 70


def crooked(names, leans, seed: int):
    """Many different drops: meshes and leaning boxes, each set down at an angle of its own."""
    bodies = [body_from_mesh(shapes.mesh_path(name), shapes.FAST) for name in names]
    bodies = concatenate([*bodies, *map(shapes.leaning, leans)])
    random = np.random.default_rng(seed)
    angle, azimuth = random.uniform(-0.25, 0.25, COUNT), random.uniform(0, 2 * np.pi, COUNT)
    axis = np.stack([np.cos(azimuth), np.sin(azimuth), 0 * azimuth], axis=1)
    turn = np.concatenate([np.cos(angle)[:, None], np.sin(angle)[:, None] * axis], axis=1)
    return turned(bodies[np.arange(COUNT) % len(bodies)], turn)


@pytest.fixture(scope="module")
def small():
    return crooked(("towel3", "lantern", "table"), (0.0, 0.9, 1.1, 2.0), 0)


@pytest.fixture(scope="module")
def large():
    return crooked(("bread", "rock2"), (), 1)


@pytest.fixture(scope="module")
def alone(small, large):
    """Each bucket in one call, in order: what every other way must give, to the bit."""
    rests = [drop(bodies, shapes.FAST, step="slim") for bodies in (small, large)]
    assert {True, False} == {bool(stands) for r in rests for stands in r.stable(shapes.FAST)}
    return rests


def equal(rest: Rest, other: Rest, rows: Any = slice(None)) -> None:
    for name in ("quaternion", "position", "steps", "status"):
        np.testing.assert_array_equal(getattr(rest, name), getattr(other, name)[rows], name)


def test_slot_and_company_change_no_bit(small, large, alone):
    """Another order, other neighbours, two buckets, pieces of any size: the same bits."""
    for bodies, rest in zip((small, large), alone, strict=True):
        order = np.random.default_rng(2).permutation(COUNT)
        equal(drop(bodies[order], shapes.FAST, step="slim"), rest, order)
    equal(drop(small[3], shapes.FAST, step="slim"), alone[0], [3])
    with DropStream(shapes.FAST) as stream:
        for begin in range(0, COUNT, 9):
            rows = np.arange(begin, min(begin + 9, COUNT))
            stream.put(small[rows], tag=(0, rows))
            stream.put(large[rows[::-1]], tag=(1, rows[::-1]))
        stream.close()
        seen = collections.Counter()
        for (bucket, rows), rest in stream.results():
            equal(rest, alone[bucket], rows)
            seen[bucket] += len(rows)
    assert seen == {0: COUNT, 1: COUNT}


def test_it_goes_on_after_it_was_empty(small, alone):
    """Results are there without waiting for the end, and threads rest in between."""
    with DropStream(shapes.FAST) as stream:
        for tag in range(3):
            assert not list(stream.ready())
            stream.put(small[:5], tag=tag)
            deadline = time.monotonic() + 60
            while not (found := list(stream.ready())) and time.monotonic() < deadline:
                time.sleep(0.01)
            ((name, rest),) = found
            assert name == tag
            equal(rest, alone[0], slice(5))
        stream.close()
        assert not list(stream.results())
        with pytest.raises(ValueError, match="closed"):
            stream.put(small[:5])


def test_invalid_ones_take_no_slot(small):
    with DropStream(shapes.FAST) as stream:
        stream.put(small[:2], ["empty", "flat"], "none")
        stream.put(small[:2], [None, "flat"], "one")
        stream.put(small[:0], tag="nothing")
        stream.close()
        found = dict(stream.results())
    assert found["none"].reason.tolist() == ["empty", "flat"]
    assert found["one"].status.tolist() == ["rest", "invalid"]
    assert len(found["nothing"]) == 0
    assert (found["none"].steps == 0).all()


def test_put_waits_for_room(small):
    """Of one slot: never more than one batch that has not been sent, and any size passes, alone."""
    largest, inside = [0], collections.Counter()
    note = lambda n: inside.update(out=n)  # noqa: E731
    one = jax.devices()[:1]
    with DropStream(shapes.FAST, room=1, progress=note, slots=1, threads=1, devices=one) as stream:
        stream._ahead, stream._depth = 0, 1  # as on a CPU
        for _ in range(4):
            stream.put(small[:3])
            inside["in"] += 3
            largest[0] = max(largest[0], inside["in"] - inside["out"])
        stream.close()
        assert sum(len(rest) for _, rest in stream.results()) == 12
    assert stream._held == 0
    assert largest[0] <= 3 + 2  # one in the slot, and one that has just been sent


def test_put_waits_while_many_wait(small, monkeypatch):
    """One pool of 32 slots and room for 64 that wait: the rest is not put in before."""
    monkeypatch.setattr(sizes, "WAITING", 1)
    begun, ended = 0, [0]
    note = lambda count: ended.__setitem__(0, ended[0] + count)  # noqa: E731
    with DropStream(
        shapes.FAST, threads=1, progress=note, slots=32, devices=jax.devices()[:1]
    ) as stream:
        stream._ahead, stream._depth = 0, 1  # as on a CPU
        for begin in range(0, 1400, 70):
            stream.put(small[np.arange(begin, begin + 70) % COUNT])
            begun += 70
            # In slots, in a packet, waiting, and the batch that was let in last.
            assert begun - ended[0] <= 32 + 32 + 64 + 70
        stream.close()
        assert sum(len(rest) for _, rest in stream.results()) == begun


def test_an_error_in_a_pool_reaches_everyone(small):
    """Who waits for room, for a result, or only leaves the block; and no thread stays behind."""

    def fail(count):
        raise RuntimeError("display gone")

    for wait in (lambda s: s.put(small), lambda s: list(s.results()), lambda s: None):
        with (
            pytest.raises(RuntimeError, match="display gone"),
            DropStream(shapes.FAST, room=1, progress=fail) as stream,
        ):
            stream.put(small)
            wait(stream)
    assert not [t for t in threading.enumerate() if t.name.startswith("drop") and t.is_alive()]


def test_leaving_by_an_error_abandons_the_rest(small):
    """As Ctrl-C does: the block is left at the next check, not after the last body."""
    ended, begun = [], threading.Event()

    def note(count):
        ended.append(count)
        begun.set()

    with pytest.raises(KeyboardInterrupt), DropStream(shapes.FAST, progress=note) as stream:
        stream.put(small[np.arange(5000) % COUNT])
        assert begun.wait(60)
        raise KeyboardInterrupt
    assert sum(ended) < 2500
    with pytest.raises(ValueError, match="abandoned"):
        list(stream.results())


@pytest.mark.parametrize("depth", [2, 3])
def test_turns_are_ordered_ahead(small, large, alone, depth):
    """As on an accelerator: packets wait on the device, and turns are recorded one or two late."""
    with DropStream(shapes.FAST, threads=1) as stream, ThreadPoolExecutor(1) as sender:
        stream._ahead, stream._depth, stream._sender = 3, depth, sender
        for begin in range(0, COUNT, 7):
            rows = slice(begin, begin + 7)
            stream.put(small[rows], tag=(0, rows))
            stream.put(large[rows], tag=(1, rows))
        stream.close()
        count = 0
        for (bucket, rows), rest in stream.results():
            equal(rest, alone[bucket], rows)
            count += len(rest)
    assert count == 2 * COUNT
    assert all(driver.number == 0 and not driver.ordered for driver in stream._idle)


def test_invalid_ones_among_others_change_nothing(small, alone):
    """They leave gaps in what would otherwise be sent from where it is."""
    why = ["flat" if row % 11 in (3, 4) else None for row in range(COUNT)]
    valid = [row for row in range(COUNT) if why[row] is None]
    with DropStream(shapes.FAST, devices=jax.devices()[:1], slots=16) as stream:
        stream.put(small, why)
        stream.close()
        ((_, rest),) = stream.results()
    for name in ("quaternion", "position", "steps", "status"):
        np.testing.assert_array_equal(getattr(rest, name)[valid], getattr(alone[0], name)[valid])


def test_a_run_of_neighbours_is_sent_from_where_it_is(small):
    body = world.unplaced_body(small, shapes.FAST)
    cases: dict[tuple[int, ...], int | None] = {
        tuple(range(16)): 0,
        (5, 6, 7): 0,
        tuple(range(COUNT - 3, COUNT)): 13,  # the last rows, behind others
        (4, 6): None,
        (6, 5): None,
    }
    programs: Any = SimpleNamespace(upload=lambda tree: tree)
    for rows, begin in cases.items():
        part = (body, np.array(rows))
        assert lane._window([part], 16) == begin
        sent = lane._send(programs, [part], 16, begin)
        first = begin or 0
        np.testing.assert_array_equal(
            sent.points[first : first + len(rows)], body.points[list(rows)]
        )
        assert len(sent.mass) == 16 and (np.asarray(sent.points).base is None) == (begin is None)
    assert lane._window([(body, np.arange(3))] * 2, 16) is None
    assert lane._window([(body, np.arange(COUNT))], COUNT + 1) is None


def test_an_error_of_a_sender_reaches_everyone(small, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no memory on the device")

    monkeypatch.setattr(lane, "_send", fail)
    with (
        ThreadPoolExecutor(1) as sender,
        pytest.raises(RuntimeError, match="no memory on the device"),
        DropStream(shapes.FAST, threads=1) as stream,
    ):
        stream._sender = sender
        stream.put(small)
        list(stream.results())


def test_alike_neighbours_are_shared_by_all_threads(small, monkeypatch):
    """Perturbed starts of a slow object lie side by side."""
    dealt: list[list[int]] = [[], [], []]
    add = lane.Waiting.add

    def noted(queue, batch, rows):
        (shape,) = stream._shapes.values()
        dealt[shape.waiting.index(queue)].extend(rows)
        add(queue, batch, rows)

    monkeypatch.setattr(lane.Waiting, "add", noted)
    with DropStream(shapes.FAST, devices=jax.devices()[:3], slots=4) as stream:
        stream.put(small)
        stream.close()
        assert len(dict(stream.results())) == 1
    assert sorted(row for rows in dealt for row in rows) == list(range(COUNT))
    for rows in dealt:
        assert min(rows) < COUNT // 3 and max(rows) > COUNT * 2 // 3


def test_sizes_are_bounded():
    """Slots of an accelerator by points, packets by bytes."""
    assert sizes.slots(64, "slim", "gpu") == sizes.slots(256, "slim", "gpu") == 32768
    assert sizes.slots(16384, "slim", "gpu") == 1024
    assert sizes.packet_rows(32768, 6_000) == 2048
    assert sizes.packet_rows(1024, 3_100_000) == 5
    assert sizes.packet_rows(16, 6_000) == 16


def test_few_bodies_are_shared_by_all_devices(small, monkeypatch):
    """Fewer than the slots of one device: each gets its part all the same."""
    devices, used, programs = jax.devices()[:3], [], pool.programs

    def noted(protocol, step, packet, slots, device):
        used.append(device)
        return programs(protocol, step, packet, slots, device)

    monkeypatch.setattr(pool, "programs", noted)
    ends = []
    for some in (devices, devices[:1]):
        with DropStream(shapes.FAST, devices=some, slots=32) as stream:
            stream.put(small[:9])
            stream.close()
            ((_, rest),) = stream.results()
        ends.append(rest.quaternion)
        assert set(used) == set(some)
        used.clear()
    np.testing.assert_array_equal(*ends)


def test_nothing_is_put_into_a_closed_stream(small):
    with DropStream(shapes.FAST, devices=jax.devices()[:1], slots=32) as stream:
        stream.close()
        with pytest.raises(ValueError, match="closed"):
            stream.put(small[:1])
