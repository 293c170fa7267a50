"""The next item is made while the last is in use; whoever leaves early ends the work."""

import threading

import pytest

from dso_jax.generation.ahead import ahead


def test_the_next_item_is_being_made_while_the_last_is_in_use():
    made = [threading.Event() for _ in range(3)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number

    taken = []
    for number in ahead(items()):
        taken.append(number)
        if number + 1 < len(made):
            assert made[number + 1].wait(10)
    assert taken == [0, 1, 2]


def test_what_goes_wrong_comes_in_its_turn():
    def items():
        yield 1
        raise OSError("no second one")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(OSError, match="no second one"):
        next(found)


def test_leaving_early_stops_the_maker_and_closes_it():
    stop, seen = threading.Event(), []

    def items():
        try:
            yield 1
            seen.append(stop.wait(10))
            yield 2
        finally:
            seen.append("closed")

    found = ahead(items(), stop)
    assert next(found) == 1
    found.close()
    assert seen == [True, "closed"]
