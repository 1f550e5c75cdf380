"""When a replica is suspected, and how long it is left alone."""

from hypothesis import given
from hypothesis import strategies as st

from mlserve.execution.breaker import Breaker
from mlserve.settings import Restart


@given(st.integers(1, 6), st.lists(st.booleans(), max_size=60))
def test_only_failures_in_a_row_raise_a_suspicion(failures: int, outcomes: list[bool]) -> None:
    breaker = Breaker(Restart(failures=failures))
    in_a_row = 0

    for has_failed in outcomes:
        in_a_row = in_a_row + 1 if has_failed else 0
        suspected = breaker.note(has_failed=has_failed)

        assert suspected == (in_a_row == failures)
        if suspected:
            in_a_row = 0


def test_tries_get_rarer_up_to_a_bound_and_start_anew_after_a_success() -> None:
    breaker = Breaker(Restart(backoff_s=1.0, max_backoff_s=5.0))

    waits = [breaker.open() for _ in range(5)]
    breaker.close()

    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert breaker.open() == 1.0


def test_an_open_breaker_suspects_nobody() -> None:
    breaker = Breaker(Restart(failures=1))
    breaker.open()

    assert not breaker.note(has_failed=True)
    assert breaker.is_open
