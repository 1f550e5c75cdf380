"""Sliding windows: the laws of what they let through, and what they say."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlserve.access.windows import N_PARTS, Rate, Window
from mlserve.errors import ConfigurationError

RATES = st.builds(Rate, st.integers(1, 20), st.sampled_from([1, 7, 60]))
STEPS = st.lists(
    st.tuples(st.floats(0, 30, allow_subnormal=False), st.integers(1, 5)), min_size=1, max_size=60
)


def taken(rate: Rate, steps: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Ask after each pause for a cost, and give when how much was let through."""
    window, now_s, admitted = Window(), 0.0, []
    for pause_s, cost in steps:
        now_s += pause_s
        if window.take(rate, now_s, needs=cost, cost=cost).is_admitted:
            admitted.append((now_s, cost))
    return admitted


@given(RATES, STEPS)
@example(Rate(2, 60), [(59.9, 2), (0.2, 2), (59.8, 2)])
def test_no_interval_as_long_as_the_period_gets_more_than_the_limit(
    rate: Rate, steps: list[tuple[float, int]]
) -> None:
    admitted = taken(rate, steps)

    for start_s, _ in admitted:
        within = [cost for at_s, cost in admitted if start_s <= at_s < start_s + rate.period_s]
        assert sum(within) <= rate.limit


@given(RATES, STEPS)
def test_all_of_the_limit_is_there_again_a_part_after_the_period(
    rate: Rate, steps: list[tuple[float, int]]
) -> None:
    window, now_s = Window(), 0.0
    for pause_s, cost in steps:
        now_s += pause_s
        window.take(rate, now_s, needs=cost, cost=cost)

    later_s = now_s + rate.period_s * (1 + 1 / N_PARTS) + 1e-6
    reading = window.take(rate, later_s, needs=rate.limit, cost=0)

    assert (reading.is_admitted, reading.remaining) == (True, rate.limit)


@given(RATES, STEPS, st.integers(1, 5))
def test_there_is_room_when_the_window_says_so_and_not_before(
    rate: Rate, steps: list[tuple[float, int]], needs: int
) -> None:
    window, now_s = Window(), 0.0
    for pause_s, cost in steps:
        now_s += pause_s
        window.take(rate, now_s, needs=cost, cost=cost)

    reading = window.take(rate, now_s, needs=needs, cost=0)

    wait_s = reading.retry_after_s
    if reading.is_admitted:
        assert wait_s == 0
    elif needs > rate.limit:
        assert wait_s == math.inf
    else:
        part_s = rate.period_s / N_PARTS
        assert 0 < wait_s <= rate.period_s + part_s + 1e-6
        if wait_s > part_s / 2:
            early_s = now_s + wait_s - part_s / 2
            assert not window.take(rate, early_s, needs=needs, cost=0).is_admitted
        assert window.take(rate, now_s + wait_s + 1e-6, needs=needs, cost=0).is_admitted


@given(RATES, STEPS)
def test_what_remains_is_the_limit_without_what_was_taken(
    rate: Rate, steps: list[tuple[float, int]]
) -> None:
    window, total = Window(), 0
    for _, cost in steps:
        reading = window.take(rate, 5.0, needs=cost, cost=cost)
        total += cost if reading.is_admitted else 0

        assert reading.remaining == rate.limit - total
        assert 0 <= reading.reset_s <= rate.period_s * (1 + 1 / N_PARTS)


def test_what_is_charged_later_may_be_more_than_there_was() -> None:
    rate, window = Rate(10, 60), Window()

    first = window.take(rate, 0.0, needs=1, cost=0)
    window.take(rate, 0.0, needs=0, cost=25)
    second = window.take(rate, 30.0, needs=1, cost=0)
    third = window.take(rate, 61.0, needs=1, cost=0)

    assert (first.is_admitted, second.is_admitted, third.is_admitted) == (True, False, True)
    assert (second.remaining, second.retry_after_s) == (-15, 31.0)


def test_a_clock_that_goes_back_frees_nothing() -> None:
    rate, window = Rate(2, 60), Window()

    answers = [
        window.take(rate, now_s, needs=1, cost=1).is_admitted for now_s in (1000, 10, 10, 1000)
    ]

    assert answers == [True, True, False, False]


def test_a_window_holds_a_part_for_each_sixtieth_at_most() -> None:
    rate, window = Rate(10_000, 60), Window()

    for n in range(5000):
        window.take(rate, n / 10, needs=1, cost=1)

    assert len(window._parts) <= N_PARTS + 1


@pytest.mark.parametrize(
    ("text", "limit", "period_s"),
    [
        ("100/minute", 100, 60),
        ("1/second", 1, 1),
        ("5/10 seconds", 5, 10),
        ("7/2hours", 7, 7200),
        ("1000000/day", 10**6, 86_400),
        ("3/30 days", 3, 2_592_000),
    ],
)
def test_a_rate_is_read(text: str, limit: int, period_s: int) -> None:
    assert Rate.parse(text) == Rate(limit, period_s)


@pytest.mark.parametrize(
    "text",
    ["", "100", "minute", "-1/minute", "0/minute", "1.5/minute", "10/0 seconds", "10/week",
     "10 / minute", "1e3/day", "10/400 days", "1/minute;2/day", None, 100],
)  # fmt: skip
def test_a_malformed_rate_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="rate must"):
        Rate.parse(text)
