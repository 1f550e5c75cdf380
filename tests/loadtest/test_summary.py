"""What a load test says in numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.loadtest.chart import Series, bars, lines
from mlserve.loadtest.connection import LOST, Answer
from mlserve.loadtest.summary import Percentiles, percentile, summarised

SECONDS = st.floats(0, 1e4)


@given(values=st.lists(SECONDS, min_size=1), share=st.floats(0, 1))
def test_a_percentile_is_a_value_that_so_many_are_not_above(
    values: list[float], share: float
) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)

    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered) - 1e-6


@given(values=st.lists(SECONDS, min_size=1))
def test_percentiles_grow(values: list[float]) -> None:
    found = Percentiles.of(values)

    assert found is not None
    row = [found.p50, found.p90, found.p95, found.p99, found.p999, found.most]
    assert row == sorted(row)
    assert found.most == max(values)


def test_no_values_have_no_percentiles() -> None:
    assert Percentiles.of([]) is None


def test_successes_refusals_and_losses_are_told_apart() -> None:
    answers = [
        Answer(0.0, 200, 0.010),
        Answer(0.0, 200, 0.200),
        Answer(0.0, 503, 0.001),
        Answer(0.0, LOST, 0.500),
    ]

    found = summarised(answers, 2.0, n_unsent=3, slo_s=0.1)

    assert found.statuses == {"200": 2, "503": 1, "lost": 1}
    assert (found.per_s, found.goodput_per_s, found.n_unsent) == (1.0, 0.5, 3)
    assert found.latency is not None
    assert found.latency.most == pytest.approx(0.2)
    assert found.refusals is not None
    assert found.refusals.p50 == pytest.approx(0.001)
    assert found.first_chunk is None


def test_a_stream_has_a_first_chunk_and_gaps() -> None:
    answers = [Answer(1.0, 200, 1.9, 0, [1.5, 1.6, 1.8])]

    found = summarised(answers, 1.0)

    assert found.first_chunk is not None
    assert found.first_chunk.p50 == pytest.approx(0.5)
    assert found.between_chunks is not None
    assert found.between_chunks.p50 == pytest.approx(0.1)
    assert found.between_chunks.most == pytest.approx(0.2)
    assert found.chunks_per_s == 3


@given(st.lists(st.tuples(SECONDS, SECONDS), max_size=50))
def test_lines_are_drawn_within_the_picture(points: list[tuple[float, float]]) -> None:
    drawn = lines("A & B", "x", "y", [Series("<one>", points)])

    assert drawn.startswith("<svg")
    assert "A &amp; B" in drawn
    path = drawn.split('polyline points="')[1].split('"')[0]
    for pair in path.split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= 720
        assert 0 <= y <= 360


@given(st.lists(st.tuples(st.text("ab", max_size=3), SECONDS), max_size=8))
def test_each_value_has_its_bar(values: list[tuple[str, float]]) -> None:
    drawn = bars("Title", "per second", values)

    assert drawn.count("<rect") == 1 + len(values)
    assert 'height="-' not in drawn
