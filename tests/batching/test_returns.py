"""Who comes back after a batch: laws, and what the rule is worth in a simulation."""

import pytest
from benchmarks.dispatch import Learned, Load, Rule, Simulation
from hypothesis import given
from hypothesis import strategies as st

from mlserve.batching.returns import Returns

FIXED_S = 0.005
TIMES = st.floats(0, 0.02)


def after_bursts(n: int, *, gap_s: float = 0.0001, n_batches: int = 20) -> tuple[Returns, float]:
    """Let all `n` clients return after each batch, and give the time at which the last one ends."""
    returns, now = Returns(), 0.0
    for _ in range(n_batches):
        returns.note_done(now, n, FIXED_S)
        for place in range(n):
            returns.note_arrival(now + 0.0002 + place * gap_s)
        now += 0.01
    returns.note_done(now, n, FIXED_S)
    return returns, now


def held_s(returns: Returns, now: float, n_waiting: int, n_room: int) -> float:
    """Ask again and again until the batch is sent, and say how long that took."""
    began = now
    for _ in range(10_000):
        wait_s = returns.hold_s(now, n_waiting=n_waiting, n_room=n_room, fixed_s=FIXED_S)
        if wait_s == 0:
            return now - began
        now += wait_s
    raise AssertionError("It waits for ever.")


def test_without_evidence_nobody_waits() -> None:
    assert held_s(Returns(), 1.0, n_waiting=1, n_room=31) == 0


def test_clients_who_return_together_are_waited_for() -> None:
    returns, now = after_bursts(8)
    returns.note_arrival(now + 0.0002)

    assert returns.hold_s(now + 0.0002, n_waiting=1, n_room=31, fixed_s=FIXED_S) > 0


def test_once_all_have_returned_the_batch_is_sent() -> None:
    returns, now = after_bursts(8)
    for place in range(8):
        returns.note_arrival(now + 0.0002 + place * 0.0001)

    assert returns.hold_s(now + 0.001, n_waiting=8, n_room=24, fixed_s=FIXED_S) == 0


def test_a_lone_client_is_never_held_up() -> None:
    returns, now = after_bursts(1)
    returns.note_arrival(now + 0.0002)

    assert returns.hold_s(now + 0.0002, n_waiting=1, n_room=31, fixed_s=FIXED_S) == 0


def test_who_has_stopped_returning_is_not_waited_for_any_more() -> None:
    returns, now = after_bursts(8)
    for _ in range(10):
        now += 0.02
        returns.note_done(now, 8, FIXED_S)

    assert held_s(returns, now, n_waiting=1, n_room=31) == 0


def test_more_than_can_come_in_time_are_not_waited_for() -> None:
    returns, now = after_bursts(32, gap_s=0.00015)
    returns.note_arrival(now + 0.0002)

    assert returns.hold_s(now + 0.0002, n_waiting=1, n_room=31, fixed_s=FIXED_S) == 0


def test_a_cheap_model_waits_for_nobody() -> None:
    returns, now = after_bursts(8)
    returns.note_done(now, 8, 0.00005)
    returns.note_arrival(now + 0.00002)

    assert returns.hold_s(now + 0.00002, n_waiting=1, n_room=31, fixed_s=0.00005) == 0


@given(
    batches=st.lists(st.tuples(st.integers(1, 32), st.lists(TIMES, max_size=32)), max_size=20),
    n_waiting=st.integers(1, 32),
    n_room=st.integers(0, 31),
)
def test_no_batch_is_held_for_longer_than_most_of_what_another_one_costs(
    batches: list[tuple[int, list[float]]], n_waiting: int, n_room: int
) -> None:
    returns, now = Returns(), 0.0
    for n, arrivals in batches:
        returns.note_done(now, n, FIXED_S)
        for since_s in sorted(arrivals):
            returns.note_arrival(now + since_s)
        now += 0.02
        returns.note_sent()
    returns.note_done(now, 8, FIXED_S)

    assert held_s(returns, now, n_waiting, n_room) <= 0.6 * FIXED_S + 0.0003


@given(n_waiting=st.integers(1, 32), since_s=TIMES)
def test_a_full_batch_is_never_held(n_waiting: int, since_s: float) -> None:
    returns, now = after_bursts(16)

    assert returns.hold_s(now + since_s, n_waiting=n_waiting, n_room=0, fixed_s=FIXED_S) == 0


@pytest.mark.parametrize("n_clients", [2, 4, 8, 16])
def test_few_clients_who_ask_again_at_once_are_served_together(n_clients: int) -> None:
    load = Load("closed loop", n_clients)

    learned = Simulation(Learned(), load).run(3.0)

    assert learned.per_s >= 1.15 * Simulation(Rule(), load).run(3.0).per_s


@pytest.mark.parametrize(
    "load",
    [
        *(Load("closed loop", n) for n in (1, 24, 32, 48, 64, 256)),
        *(Load("thinking", n, think_s=0.01) for n in (1, 2, 4, 8, 16, 32)),
        *(Load("far away", n, network_s=0.02) for n in (1, 4, 16)),
        *(Load("at random", rate=rate) for rate in (50, 500, 2000)),
    ],
    ids=str,
)
def test_nobody_else_loses_by_it(load: Load) -> None:
    learned, instant = (Simulation(rule, load).run(3.0) for rule in (Learned(), Rule()))

    assert learned.per_s >= 0.95 * instant.per_s
    assert learned.median_s <= 1.1 * instant.median_s + 0.0005
