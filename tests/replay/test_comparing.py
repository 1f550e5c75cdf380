"""What became of one recorded request."""

import copy
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.records import InferenceRecord
from mlserve.records.redaction import REDACTED
from mlserve.replay import Answer, Outcome, Tolerance, judged

EXACT = Tolerance()
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def outcome(
    was: Any,
    now: Any,
    tolerance: Tolerance = EXACT,
    *,
    status: int = 200,
    code: str | None = None,
    answer: Answer | None = None,
) -> Outcome:
    record = InferenceRecord(
        id="a-1",
        request_id="r-1",
        model="m",
        version="v1",
        time=datetime(2026, 11, 1, tzinfo=UTC),
        status=status,
        code=code,
        annotations={},
        request="1",
        response=json.dumps(was),
    )
    return judged(record, answer or Answer(status=200, body=json.dumps(now).encode()), tolerance)


@given(value=VALUES)
def test_the_same_answer_is_the_same_whatever_it_is(value: Any) -> None:
    found = outcome(value, copy.deepcopy(value))

    assert (found.verdict, found.gaps, found.absolute, found.relative) == ("same", (), 0.0, 0.0)


@given(was=VALUES, now=VALUES)
def test_every_answer_that_differs_has_a_place_and_finite_figures(was: Any, now: Any) -> None:
    found = outcome(was, now)

    assert (found.verdict == "different") == bool(found.gaps)
    json.dumps([found.absolute, found.relative], allow_nan=False)
    for gap in found.gaps:
        assert gap.n_places >= 1
        assert 0 <= gap.absolute < float("inf")
        assert 0 <= gap.relative <= 2


@given(was=NUMBERS, now=NUMBERS, relative=st.floats(0, 1), absolute=st.floats(0, 1e3))
def test_more_tolerance_never_finds_more(
    was: float, now: float, relative: float, absolute: float
) -> None:
    strict = outcome([was], [now])
    lax = outcome([was], [now], Tolerance(relative, absolute))

    assert lax.verdict == "same" or strict.verdict == "different"
    assert (lax.absolute, lax.relative) == (strict.absolute, strict.relative)


def test_differences_within_the_tolerance_are_measured_all_the_same() -> None:
    found = outcome({"x": [1.0, 2.0]}, {"x": [1.0, 2.0002]}, Tolerance(relative=1e-3))

    assert found.verdict == "same"
    assert found.absolute == pytest.approx(2e-4)
    assert found.relative == pytest.approx(1e-4, rel=1e-3)


def test_places_that_are_alike_but_for_indices_are_one() -> None:
    found = outcome(
        {"label": "a", "rows": [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]},
        {"label": "b", "rows": [{"x": 1.5}, {"x": 2.0}, {"x": 1.0}]},
    )

    by_pattern = {gap.pattern: gap for gap in found.gaps}
    assert set(by_pattern) == {"/label", "/rows/*/x"}
    rows = by_pattern["/rows/*/x"]
    assert (rows.n_places, rows.absolute) == (2, 2.0)
    assert rows.relative == pytest.approx(2 / 3)


def test_another_shape_comes_before_other_numbers() -> None:
    found = outcome({"a": 1.0, "b": 1, "c": 5}, {"a": 900.0, "b": "1", "d": 5})

    assert [(gap.pattern, gap.kind) for gap in found.gaps][-1] == ("/a", "changed")
    assert {gap.kind for gap in found.gaps} == {"changed", "type", "added", "removed"}


def test_what_was_redacted_is_not_compared_but_what_is_beside_it_is() -> None:
    redacted = {"user": REDACTED, "score": 1}

    assert outcome(redacted, {"user": {"name": "x"}, "score": 1}).verdict == "same"
    assert outcome(redacted, {"user": "x", "score": 2}).verdict == "different"
    assert outcome(redacted, {"score": 1}).verdict == "same"


@pytest.mark.parametrize(
    ("was", "now", "verdict"),
    [
        ((200, None), (500, "model_error"), "failed"),
        ((200, None), (200, "model_error"), "failed"),  # a stream that breaks off
        ((422, "validation_error"), (422, "validation_error"), "same"),
        ((422, "validation_error"), (400, "invalid_input"), "different"),
        ((500, "model_error"), (200, None), "different"),
    ],
)
def test_of_errors_the_status_and_the_code_are_compared(
    was: tuple[int, str | None], now: tuple[int, str | None], verdict: str
) -> None:
    answer = Answer(status=now[0], code=now[1], body=b"1")

    found = outcome(1, 1, status=was[0], code=was[1], answer=answer)

    assert found.verdict == verdict
    assert found.absolute is None


def test_numbers_that_no_float_can_hold_are_compared() -> None:
    assert outcome(10**400, 10**400).verdict == "same"
    assert outcome(10**400, 10**400 + 1).verdict == "different"
    assert outcome(10**400, 1.5).gaps[0].relative == 1.0
