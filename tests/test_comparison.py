"""The comparison of two JSON values."""

import functools
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import json_values

from mlserve.comparison import Difference, compare

VALUES = json_values()
TOLERANCES = st.sampled_from([0.0, 1e-9, 0.01, 0.5])


def found(first: Any, second: Any, **options: Any) -> list[tuple[str, str]]:
    return [(each.pointer, each.kind) for each in compare(first, second, **options)]


@given(VALUES, TOLERANCES, TOLERANCES)
def test_a_value_never_differs_from_itself(value: Any, relative: float, absolute: float) -> None:
    assert compare(value, value, relative=relative, absolute=absolute) == []


@given(VALUES, VALUES, TOLERANCES)
def test_the_other_way_round_the_same_places_differ(one: Any, other: Any, relative: float) -> None:
    swapped = {"added": "removed", "removed": "added"}

    there = {(d.path, d.kind) for d in compare(one, other, relative=relative)}
    back = {(d.path, swapped.get(d.kind, d.kind)) for d in compare(other, one, relative=relative)}

    assert there == back


@given(VALUES, VALUES)
def test_values_without_a_difference_are_equal(one: Any, other: Any) -> None:
    if not compare(one, other):
        assert one == other


@given(VALUES, VALUES, TOLERANCES, TOLERANCES)
def test_more_tolerance_finds_no_further_place(
    one: Any, other: Any, relative: float, absolute: float
) -> None:
    strict = {d.path for d in compare(one, other)}

    assert {d.path for d in compare(one, other, relative=relative, absolute=absolute)} <= strict


@given(VALUES, VALUES)
def test_every_place_is_in_one_of_the_values(one: Any, other: Any) -> None:
    for difference in compare(one, other):
        holders = {"added": [other], "removed": [one]}.get(difference.kind, [one, other])
        for holder in holders:
            functools.reduce(operator.getitem, difference.path, holder)


CASES: list[tuple[Any, Any, list[tuple[str, str]]]] = [
    (1, 1.0, []),
    (1, True, [("", "type")]),
    (None, 0, [("", "type")]),
    ({"a": 1}, {"b": 1}, [("/a", "removed"), ("/b", "added")]),
    ({"a": [1, 2]}, {"a": [1, 3, 4]}, [("/a/2", "added"), ("/a/1", "changed")]),
    ({"a/b": {"~": "x"}}, {"a/b": {"~": "y"}}, [("/a~1b/~0", "changed")]),
    ([], {}, [("", "type")]),
    (2**53 + 1, 2**53, [("", "changed")]),
]


@pytest.mark.parametrize(("one", "other", "wanted"), CASES)
def test_each_place_is_named_with_what_differs(
    one: Any, other: Any, wanted: list[tuple[str, str]]
) -> None:
    assert found(one, other) == wanted


def test_numbers_may_differ_by_either_tolerance() -> None:
    assert found(100.0, 101.0, relative=0.01) == []
    assert found(100.0, 102.0, relative=0.01) == [("", "changed")]
    assert found(0.0, 0.001, absolute=0.001) == []
    assert found(10**400, 1.0, relative=0.5) == [("", "changed")]


def test_a_value_that_is_nested_deeper_than_the_stack_is_compared() -> None:
    one: Any = 1
    other: Any = 2
    for _ in range(50_000):
        one, other = [one], [other]

    difference = compare(one, other)

    assert [(len(d.path), d.kind) for d in difference] == [(50_000, "changed")]
    while one:  # taken apart by hand: freeing it would need as deep a stack
        one, other = (one[0], other[0]) if isinstance(one, list) else (None, None)


def test_it_ends_after_as_many_differences_as_are_wanted() -> None:
    assert compare([], [0] * 1000, limit=2) == [
        Difference((0,), "added"),
        Difference((1,), "added"),
    ]
