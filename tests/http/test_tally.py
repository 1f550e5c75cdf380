"""Which of several processes may take one more connection."""

import math
import os

from hypothesis import given
from hypothesis import strategies as st

from mlserve.http.tally import Tally, may_take

COUNTS = st.lists(st.integers(0, 500), min_size=2, max_size=6)


def least_of_others(counts: list[int], index: int) -> float:
    return min(n for i, n in enumerate(counts) if i != index)


@given(COUNTS)
def test_whoever_has_the_fewest_may_always_take_one(counts: list[int]) -> None:
    index = counts.index(min(counts))

    assert may_take(counts[index], least_of_others(counts, index))


@given(n_processes=st.integers(2, 6), order=st.lists(st.integers(0, 5), max_size=300))
def test_nobody_gets_much_ahead_of_the_others(n_processes: int, order: list[int]) -> None:
    counts = [0] * n_processes

    for number in order:
        index = number % n_processes
        if may_take(counts[index], least_of_others(counts, index)):
            counts[index] += 1

    assert max(counts) <= min(counts) + min(counts) // 8 + 1


@given(st.integers(0, 10_000))
def test_whoever_is_alone_takes_all(n_own: int) -> None:
    assert may_take(n_own, math.inf)


def test_only_those_that_take_connections_count() -> None:
    tally, fd = Tally.create(3)
    other = Tally(fd, 3)
    os.close(fd)

    assert tally.least(0) == math.inf

    other.note(1, 5)
    other.note(2, 3)
    assert tally.least(0) == 3
    assert tally.least(2) == 5

    other.leave(2)
    assert tally.least(0) == 5
