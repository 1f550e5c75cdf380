"""Waits that double up to a bound."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlserve.execution.backoff import backoff_s

n_waits = st.integers(0, 1_000_000)
lengths = st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)).map(sorted)


@given(lengths)
def test_the_first_wait_is_as_long_as_it_is_to_be(lengths: list[float]) -> None:
    assert backoff_s(0, *lengths) == lengths[0]


@given(n_waits, lengths)
@example(1024, [0.5, 30.0])  # 2.0 ** 1024 is more than a float can hold
def test_each_wait_is_twice_as_long_as_the_one_before_up_to_the_bound(
    n_waits: int, lengths: list[float]
) -> None:
    first_s, max_s = lengths

    before, after = backoff_s(n_waits, first_s, max_s), backoff_s(n_waits + 1, first_s, max_s)

    assert after == min(2 * before, max_s)


@given(n_waits, lengths)
def test_no_wait_is_shorter_than_the_first_or_longer_than_the_bound(
    n_waits: int, lengths: list[float]
) -> None:
    first_s, max_s = lengths

    assert first_s <= backoff_s(n_waits, first_s, max_s) <= max_s


@pytest.mark.parametrize("first_s", [1e-6, 0.5, 30.0])
def test_after_enough_waits_each_is_as_long_as_the_bound(first_s: float) -> None:
    assert backoff_s(60, first_s, 30.0) == 30.0
