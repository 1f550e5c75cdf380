"""When a batch is sent: laws of the rules and of what they learn from."""

import dataclasses
import math

from hypothesis import given
from hypothesis import strategies as st

from mlserve.batching.policy import ArrivalRate, Situation, hold_s, wait_for_arrivals

seconds = st.floats(0, 1e4)
waits = st.floats(1e-6, 100)

situations = st.builds(
    Situation,
    now=seconds,
    n_waiting=st.integers(1, 64),
    is_full=st.booleans(),
    oldest_at=seconds,
    arrivals_per_s=st.floats(0, 1e5),
    fixed_cost_s=st.floats(0, 1),
    cost_each_s=st.floats(0, 1),
)


def situation(**changes: float) -> Situation:
    quiet = Situation(
        now=10.0,
        n_waiting=1,
        is_full=False,
        oldest_at=10.0,
        arrivals_per_s=0.0,
        fixed_cost_s=0.0,
        cost_each_s=0.0,
    )
    return dataclasses.replace(quiet, **changes)  # type: ignore[arg-type]  # numbers only


@given(situations, waits)
def test_a_full_batch_never_waits(drawn: Situation, max_wait_s: float) -> None:
    full = dataclasses.replace(drawn, is_full=True)

    assert hold_s(full, [wait_for_arrivals(max_wait_s), lambda _: 1.0]) == 0


@given(situations)
def test_without_a_rule_nothing_waits(drawn: Situation) -> None:
    assert hold_s(drawn, []) == 0


@given(situations, st.lists(st.floats(0, 10), min_size=1, max_size=4))
def test_the_longest_wait_of_all_rules_wins(drawn: Situation, says: list[float]) -> None:
    open_batch = dataclasses.replace(drawn, is_full=False)

    rules = [lambda _, wait_s=wait_s: wait_s for wait_s in says]

    assert hold_s(open_batch, rules) == max(says)


@given(situations, waits)
def test_a_wait_never_ends_after_max_wait_from_the_oldest_arrival(
    drawn: Situation, max_wait_s: float
) -> None:
    wait_s = wait_for_arrivals(max_wait_s)(drawn)

    assert wait_s >= 0
    if wait_s > 0:
        latest = drawn.oldest_at + max_wait_s
        assert drawn.now + wait_s <= latest or math.isclose(drawn.now + wait_s, latest)


@given(situations, waits)
def test_it_waits_only_while_at_least_one_arrival_is_expected(
    drawn: Situation, max_wait_s: float
) -> None:
    wait_s = wait_for_arrivals(max_wait_s)(drawn)

    left_s = drawn.oldest_at + max_wait_s - drawn.now
    if drawn.arrivals_per_s * left_s < 1:
        assert wait_s == 0


def test_it_waits_for_what_is_left_of_max_wait_when_arrivals_are_expected() -> None:
    busy = situation(now=10.25, arrivals_per_s=100.0)

    assert wait_for_arrivals(1.0)(busy) == 0.75


def test_it_does_not_wait_once_max_wait_is_over() -> None:
    late = situation(now=11.0, arrivals_per_s=100.0)

    assert wait_for_arrivals(1.0)(late) == 0


@given(st.lists(st.floats(0, 2), min_size=1, max_size=50), waits)
def test_one_sequential_client_never_waits(gaps_s: list[float], max_wait_s: float) -> None:
    rate = ArrivalRate(8 * max_wait_s)
    rule = wait_for_arrivals(max_wait_s)
    now = 0.0

    for gap_s in gaps_s:
        now += gap_s
        rate.observe(now, in_company=False)
        seen = situation(now=now, oldest_at=now, arrivals_per_s=rate.per_second(now))
        assert rule(seen) == 0


@given(st.lists(st.floats(0, 5), min_size=1, max_size=30), st.floats(0, 100), st.floats(0, 100))
def test_the_rate_only_fades_while_nothing_arrives(
    gaps_s: list[float], sooner_s: float, more_s: float
) -> None:
    rate = ArrivalRate(memory_s=1.0)
    now = 0.0
    for gap_s in gaps_s:
        now += gap_s
        rate.observe(now, in_company=True)

    assert 0 <= rate.per_second(now + sooner_s + more_s) <= rate.per_second(now + sooner_s)


def test_the_rate_has_faded_to_one_e_th_after_its_memory() -> None:
    rate = ArrivalRate(memory_s=2.0)
    rate.observe(5.0, in_company=True)

    assert math.isclose(rate.per_second(7.0), rate.per_second(5.0) / math.e)


def test_the_rate_of_a_steady_stream_is_found() -> None:
    rate = ArrivalRate(memory_s=4.0)
    for number in range(1000):
        rate.observe(number / 50, in_company=True)

    assert math.isclose(rate.per_second(999 / 50), 50, rel_tol=0.02)


def test_nothing_observed_is_no_arrival() -> None:
    assert ArrivalRate(memory_s=1.0).per_second(3.0) == 0


def test_a_clock_that_reads_a_little_earlier_does_not_raise_the_rate() -> None:
    rate = ArrivalRate(memory_s=1.0)
    rate.observe(5.0, in_company=True)

    assert rate.per_second(4.9) == rate.per_second(5.0)
