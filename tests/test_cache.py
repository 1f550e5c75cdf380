"""Laws of the store of answers, against a plain list, and what requests may wish."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlserve.cache import AnswerStore, Cache, Kept, Wish, wish_of
from mlserve.testing import FakeClock

KEYS = st.sampled_from([(name, header) for name in (b"a", b"bb", b"ccc") for header in ("", "h")])
SOME_BYTES = 2_000


class StoreMachine(RuleBasedStateMachine):
    """The store beside a list of what was put into it, the most recently used last."""

    ttl_s: float | None = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(100.0)
        self.options = Cache(max_bytes=SOME_BYTES, max_entries=3, ttl_s=self.ttl_s)
        self.store = AnswerStore(self.options)
        self.used: list[tuple[Any, Kept]] = []

    @rule(key=KEYS, size=st.sampled_from([0, 1, 300, 1_500, 2_500]))
    def put(self, key: Any, size: int) -> None:
        kept = Kept(bytes(size), "text/plain", self.clock())
        self.used = [entry for entry in self.used if entry[0] != key]
        if self.store.put(key, kept):
            self.used.append((key, kept))
        else:
            assert size > SOME_BYTES - 1_000
            assert self.store.get(key, self.clock()) is None

    @rule(key=KEYS, max_age_s=st.sampled_from([0.0, 5.0, math.inf]))
    def get(self, key: Any, max_age_s: float) -> None:
        found = self.store.get(key, self.clock(), max_age_s)
        if found is None:
            return
        # Whatever is given is the last that was put, and neither too old nor put out of its place.
        (entry,) = [entry for entry in self.used if entry[0] == key]
        assert found is entry[1]
        age_s = self.clock() - found.at
        assert age_s <= max_age_s
        assert self.ttl_s is None or age_s < self.ttl_s
        self.used.remove(entry)
        self.used.append(entry)

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.used.clear()

    @invariant()
    def it_is_within_its_bounds(self) -> None:
        assert len(self.store) <= self.options.max_entries
        assert 0 <= self.store.n_bytes <= self.options.max_bytes
        assert (self.store.n_bytes == 0) is (len(self.store) == 0)

    @invariant()
    def what_is_kept_was_used_after_what_is_not(self) -> None:
        used = [key for key, _ in self.used]
        kept = list(self.store._kept)
        assert kept == [key for key in used if key in kept]
        assert self.ttl_s is not None or kept == used[len(used) - len(kept) :]


class EternalStoreMachine(StoreMachine):
    """The same without an end of an answer's time: only the bounds put anything out."""

    ttl_s = None


TestStoreAgainstAList = StoreMachine.TestCase
TestStoreAgainstAList.settings = settings(max_examples=60, stateful_step_count=30)
TestEternalStoreAgainstAList = EternalStoreMachine.TestCase
TestEternalStoreAgainstAList.settings = settings(max_examples=60, stateful_step_count=30)


def test_what_was_used_longest_ago_goes_first() -> None:
    store = AnswerStore(Cache(max_entries=2))
    for name in (b"a", b"b"):
        store.put((name,), Kept(name, "text/plain", 0.0))
    store.get((b"a",), 1.0)

    store.put((b"c",), Kept(b"c", "text/plain", 1.0))

    assert [store.get((name,), 1.0) is not None for name in (b"a", b"b", b"c")] == [
        True,
        False,
        True,
    ]
    assert repr(store).startswith("<AnswerStore of 2 answers, ")


@pytest.mark.parametrize(
    ("header", "wish"),
    [
        ("", Wish()),
        ("no-cache", Wish(reads=False)),
        ("No-Store", Wish(reads=False, stores=False)),
        ("max-age=30", Wish(max_age_s=30.0)),
        ('max-age="30", no-transform', Wish(max_age_s=30.0)),
        ("max-age=soon", Wish(max_age_s=0.0)),
        ("max-age=-1, min-fresh=4", Wish(max_age_s=0.0)),
        ("max-age=²", Wish(max_age_s=0.0)),
        ("x-no-cache", Wish()),
    ],
)
def test_a_wish_is_read_from_cache_control(header: str, wish: Wish) -> None:
    assert wish_of(header) == wish


@given(st.text())
def test_no_header_is_too_odd_to_be_read(header: str) -> None:
    assert wish_of(header).max_age_s >= 0
