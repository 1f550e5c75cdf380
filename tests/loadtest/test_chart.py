"""Charts as SVG."""

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.loadtest.chart import Series, bars, lines, scatter

POINTS = st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), max_size=20)


def circles(text: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle cx="([^"]+)" cy="([^"]+)"', text)
    return [(float(x), float(y)) for x, y in found]


@given(points=POINTS)
def test_every_point_that_is_drawn_lies_within_the_axes(points: list[tuple[float, float]]) -> None:
    text = scatter("a < b", "old", "new", [Series("all & some", points)])

    ET.fromstring(text)  # noqa: S314 - it is our own
    drawn = circles(text)
    assert len(drawn) == sum(min(x, y) >= 1e-9 for x, y in points)
    assert all(70 <= x <= 700 and 44 <= y <= 304 for x, y in drawn)


def test_equal_values_lie_on_the_line_between_the_corners() -> None:
    drawn = circles(scatter("", "", "", [Series("", [(1, 1), (10, 10), (100, 100)])]))

    assert drawn == [(70.0, 304.0), (385.0, 174.0), (700.0, 44.0)]


def test_further_to_the_right_is_larger_and_further_up_too() -> None:
    [(x, y), (x_larger, y_larger)] = circles(
        scatter("", "", "", [Series("", [(2, 3)]), Series("", [(3, 5)])])
    )

    assert x < x_larger
    assert y > y_larger


@pytest.mark.parametrize("is_one_colour", [True, False])
def test_bars_of_a_histogram_have_one_colour(is_one_colour: bool) -> None:
    text = bars("t", "n", [("a", 1), ("b", 2)], x_name="of what", is_one_colour=is_one_colour)

    ET.fromstring(text)  # noqa: S314 - it is our own
    colours = set(re.findall(r'fill="(#0[^"]+|#D[^"]+)"', text))
    assert len(colours) == (1 if is_one_colour else 2)
    assert "of what" in text


def test_a_chart_of_nothing_can_be_drawn() -> None:
    for text in (scatter("", "", "", []), bars("", "", []), lines("", "", "", [])):
        ET.fromstring(text)  # noqa: S314 - it is our own
