"""What came of all replayed requests, as figures and as a page."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.replay import Gap, Outcome, Report, Tolerance, page, reported

SAME = Outcome(
    request_id="r",
    verdict="same",
    was="200",
    now="200",
    absolute=0.0,
    relative=0.0,
    old_total_ms=4.0,
    new_total_ms=2.0,
    old_infer_ms=2.0,
    new_infer_ms=1.0,
    old_batch_size=1,
    new_batch_size=3,
)
GAP = Gap(pattern="/x/*", n_places=2, absolute=0.5, relative=0.1, kind="changed")
DIFFERENT = replace(SAME, request_id="d", verdict="different", gaps=(GAP,), absolute=0.5)
FAILED = replace(SAME, request_id="f", verdict="failed", now="500 model_error", absolute=None)
OUTCOMES = st.lists(st.sampled_from([SAME, DIFFERENT, FAILED]), max_size=30)


def report(*outcomes: Outcome, **facts: Any) -> Report:
    given = {
        "model": "m",
        "version": "v1",
        "target": "reviews:server",
        "against": "v2",
        "left_out": {},
        "tolerance": Tolerance(1e-4, 1e-6),
        **facts,
    }
    return reported(outcomes, **given)


@given(outcomes=OUTCOMES)
def test_every_request_is_counted_once(outcomes: list[Outcome]) -> None:
    found = report(*outcomes)

    assert found.n_same + found.n_different + found.n_failed == found.n_requests == len(outcomes)
    assert 0 <= found.share <= 1
    assert (found.share == 0) == (found.n_same == len(outcomes))
    written = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert len(written["differing"]) == found.n_different + found.n_failed


@given(outcomes=OUTCOMES)
def test_a_page_can_be_made_of_whatever_came_of_it(outcomes: list[Outcome]) -> None:
    text = page(report(*outcomes))

    assert text.count("<svg") == text.count("</svg>")
    assert text.endswith("</html>\n")


def test_the_worst_come_first() -> None:
    worse = replace(DIFFERENT, request_id="w", gaps=(replace(GAP, absolute=7.0),))
    shape = replace(DIFFERENT, request_id="s", gaps=(replace(GAP, pattern="/y", kind="added"),))

    found = report(SAME, DIFFERENT, worse, shape, FAILED)

    assert [outcome.request_id for outcome in found.named] == ["f", "s", "w", "d"]
    assert [place.pattern for place in found.places] == ["/y", "/x/*"]
    assert found.places[1].absolute == 7.0
    assert found.places[1].request_ids == ("w", "d")


def test_times_are_compared_of_what_succeeded_both_times() -> None:
    slow = replace(FAILED, new_total_ms=999.0)

    found = report(SAME, SAME, slow)

    assert found.total is not None
    assert (found.total.old_median, found.total.new_p95, found.total.ratio) == (4.0, 2.0, 0.5)
    assert found.infer is not None
    assert (found.infer.old_batch, found.infer.new_batch) == (1.0, 3.0)
    assert report(FAILED).total is None


def test_streams_have_no_time_in_infer() -> None:
    found = report(replace(SAME, old_infer_ms=0.0, new_infer_ms=0.0, new_batch_size=0))

    assert found.infer is None
    assert found.batches is None
    assert found.total is not None


@pytest.mark.parametrize("name", ["model", "version", "target", "against"])
def test_what_a_page_shows_is_text(name: str) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    gap = replace(GAP, pattern=nasty, kind=nasty)
    outcomes = [replace(DIFFERENT, gaps=(gap,), request_id=nasty), replace(FAILED, now=nasty)]

    text = page(report(*outcomes, left_out={nasty: 1}, notes=[nasty], **{name: nasty}))

    assert "<img" not in text
    assert text.count("&lt;img") >= 6
