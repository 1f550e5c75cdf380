"""Windows in memory: under threads, and with more callers than there is room for."""

import random
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import cast

import pytest

from mlserve.access.stores import MemoryStore
from mlserve.access.windows import Rate
from mlserve.errors import ConfigurationError
from mlserve.testing import FakeClock

MANY_KEYS = 1_000_000


class Yielding:
    """A rate that lets another thread go on wherever the limit is compared."""

    period_s = 60

    def __init__(self, limit: int) -> None:
        self._limit = limit

    @property
    def limit(self) -> int:
        time.sleep(0)
        return self._limit


def test_200_threads_at_once_get_exactly_the_limit() -> None:
    n_threads, limit = 200, 1000
    store, rate = MemoryStore(clock=FakeClock()), cast("Rate", Yielding(limit))
    barrier = threading.Barrier(n_threads)

    def ask(_: int) -> int:
        barrier.wait(15)
        return sum(store.take_now("a", rate, needs=1, cost=1).is_admitted for _ in range(20))

    with ThreadPoolExecutor(n_threads) as pool:
        n_admitted = sum(pool.map(ask, range(n_threads)))

    assert n_admitted == limit


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("untraced")
def test_a_million_random_callers_take_bounded_memory() -> None:
    store, rate, numbers = MemoryStore(max_keys=10_000), Rate(5, 60), random.Random(7)
    names = (f"address:{numbers.getrandbits(64):x}" for _ in range(MANY_KEYS))
    for name in islice(names, MANY_KEYS - 30_000):
        store.take_now(name, rate, needs=1, cost=1)

    tracemalloc.start()  # for the last ones, as it takes most of the time
    try:
        for name in names:
            store.take_now(name, rate, needs=1, cost=1)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(store) == 10_000
    assert peak_bytes < 10_000 * 1000


def test_who_was_not_heard_of_for_longest_is_forgotten_first() -> None:
    store, rate = MemoryStore(max_keys=2, clock=FakeClock()), Rate(1, 60)

    def ask(key: str) -> bool:
        return store.take_now(key, rate, needs=1, cost=1).is_admitted

    answers = [ask(key) for key in ("a", "b", "a", "c", "a", "b")]

    assert answers == [True, True, False, True, False, True]


def test_callers_do_not_share_a_window() -> None:
    store, rate = MemoryStore(clock=FakeClock()), Rate(1, 60)

    answers = [store.take_now(key, rate, needs=1, cost=1).is_admitted for key in "abab"]

    assert answers == [True, True, False, False]


def test_a_store_for_nobody_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_keys"):
        MemoryStore(max_keys=0)
