"""Medians, spreads and ratios of what was measured."""

import statistics

import pytest
from benchmarks.compare.results import Absence, Results, Sample, Spread
from hypothesis import given
from hypothesis import strategies as st

FLOATS = st.floats(0.001, 1e9)


def _sample(system: str, round_: int, per_s: float | None) -> Sample:
    return Sample(workload="noop", system=system, cell="c", round=round_, figures={"per_s": per_s})


@given(st.lists(FLOATS, min_size=1))
def test_a_spread_encloses_its_median_and_all_values(values: list[float]) -> None:
    spread = Spread.of(values)

    assert spread is not None
    assert spread.least == min(values)
    assert spread.most == max(values)
    assert spread.median == statistics.median(values)


def test_nothing_has_no_spread() -> None:
    assert Spread.of([]) is None


@pytest.mark.parametrize(
    ("spread", "text"),
    [
        (Spread(1234.6, 1200.0, 1300.4), "1,235 (1,200-1,300)"),
        (Spread(0.123, 0.123, 0.123), "0.12"),
        (Spread(12.34, 9.99, 100.0), "12.3 (9.99-100)"),
    ],
)
def test_a_spread_is_written_with_three_digits_that_count(spread: Spread, text: str) -> None:
    assert spread.text() == text


def test_ratios_are_of_the_same_round() -> None:
    # The machine was twice as fast in the second round; the ratio does not see that.
    results = Results(
        [
            _sample("mlserve", 0, 200.0),
            _sample("fastapi", 0, 100.0),
            _sample("mlserve", 1, 400.0),
            _sample("fastapi", 1, 200.0),
            _sample("mlserve", 2, 999.0),
        ]
    )

    assert results.ratio("noop", "mlserve", "fastapi", "c", "per_s") == Spread(2.0, 2.0, 2.0)


def test_a_round_without_the_figure_does_not_count() -> None:
    results = Results([_sample("mlserve", 0, None), _sample("mlserve", 1, 5.0)])

    assert results.spread("noop", "mlserve", "c", "per_s") == Spread(5.0, 5.0, 5.0)
    assert results.median("noop", "mosec", "c", "per_s") is None
    assert results.ratio("noop", "mlserve", "mosec", "c", "per_s") is None


def test_what_failed_is_absent() -> None:
    results = Results([], [Absence(workload="noop", system="ray", why="it ended with 1")])

    assert results.is_absent("noop", "ray")
    assert not results.is_absent("sse", "ray")
