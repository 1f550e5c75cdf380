import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.testing import FakeClock


def test_a_clock_stands_still_by_itself() -> None:
    clock = FakeClock(3.0)

    assert [clock(), clock()] == [3.0, 3.0]


@given(st.lists(st.floats(0, 1e6), max_size=20))
def test_a_clock_goes_on_by_what_it_is_told_and_never_back(steps_s: list[float]) -> None:
    clock = FakeClock()

    for step_s in steps_s:
        before = clock()
        clock.advance(step_s)
        assert clock() >= before

    assert math.isclose(clock(), math.fsum(steps_s), abs_tol=1e-6)


def test_a_clock_refuses_to_go_back() -> None:
    clock = FakeClock(1.0)

    with pytest.raises(ValueError, match=r"only goes on, got -0\.5"):
        clock.advance(-0.5)

    assert clock() == 1.0


def test_a_clock_shows_its_time_in_its_repr() -> None:
    assert repr(FakeClock(1.5)) == "<FakeClock 1.5>"
