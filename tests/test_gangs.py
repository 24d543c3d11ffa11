"""Runs that are launched together: who waits for whom, and how many steps a launch does."""

import threading

import pytest

from fastgan.engines import gangs
from fastgan.engines.gangs import Gang
from fastgan.engines.turns import Turns, nullcontext


def together(*asked, launch=None, turns=None):
    """What was launched for threads that ask for these steps in turn, and what they raised."""
    launches, errors = [], [None] * len(asked)

    def record(jobs, n):
        launches.append((sorted(jobs), n))
        if launch is not None:
            launch(jobs, n)

    gang = Gang(len(asked), record)

    def work(i):
        with gang.joined():
            assert gangs.mine() is gang
            try:
                for n in asked[i]:
                    with nullcontext() if turns is None else turns.taken(nullcontext):
                        gang.steps(i, n)
            except RuntimeError as error:
                errors[i] = error
        assert gangs.mine() is None

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return launches, errors


def test_a_launch_does_the_steps_of_the_one_with_the_fewest():
    launches, errors = together([5, 5], [3, 7], [0, 10])
    assert launches == [([0, 1, 2], 3), ([0, 1, 2], 2), ([0, 1, 2], 5)]
    assert errors == [None] * 3


def test_nobody_waits_for_who_has_left():
    launches, _ = together([2], [6], [1])
    assert launches == [([0, 1, 2], 1), ([0, 1], 1), ([1], 4)]


def test_who_waits_gives_up_its_turn():
    """Otherwise the first would keep the others from coming."""
    launches, _ = together([4], [4], [4], turns=Turns())
    assert launches == [([0, 1, 2], 4)]


def test_an_error_of_a_launch_is_that_of_all_and_ends_nobody_elses():
    calls = []

    def launch(jobs, n):
        calls.append(n)
        if len(calls) == 2:
            raise ValueError("no room")

    launches, errors = together([1, 1], [1, 1], [1], launch=launch)
    assert launches == [([0, 1, 2], 1), ([0, 1], 1)]
    for error in errors[:2]:
        assert str(error) == "a launch of several runs: no room"
        assert isinstance(error.__cause__, ValueError)
    assert errors[0] is not errors[1] and errors[2] is None


def test_what_ends_a_thread_leaves_the_gang():
    launched = []
    gang = Gang(2, lambda jobs, n: launched.append((jobs, n)))

    def waits():
        with gang.joined():
            gang.steps("job", 3)

    thread = threading.Thread(target=waits)
    thread.start()
    with pytest.raises(KeyError), gang.joined():
        raise KeyError
    thread.join(60)
    assert launched == [(["job"], 3)]


def test_a_run_by_itself_is_in_no_gang():
    assert gangs.mine() is None
