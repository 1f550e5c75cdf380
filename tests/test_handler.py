"""The contract's defaults, the context of a replica and the call of a request."""

import math
from pathlib import Path
from typing import Any

import pytest

from mlserve.handler import Call, Context, ModelHandler
from mlserve.testing import FakeClock


class Bare(ModelHandler[int, int]):
    """Overrides nothing."""


def test_hooks_that_are_not_written_pass_values_on() -> None:
    bare = Bare()

    assert bare.examples() == []
    assert bare.preprocess(5) == 5
    assert bare.postprocess(5) == 5
    assert bare.cost(5) == 1
    assert bare.batch_key(5) is None
    for hook in (bare.load, bare.warmup, bare.unload, bare.health):
        assert hook() is None


def test_infer_and_stream_are_for_the_user_to_write() -> None:
    with pytest.raises(NotImplementedError):
        Bare().infer([1])
    with pytest.raises(NotImplementedError):
        Bare().stream(1)


def test_a_context_passes_on_how_far_load_has_come() -> None:
    reports: list[tuple[float, str]] = []
    context = Context(report=lambda fraction, note: reports.append((fraction, note)))

    context.progress(0.25, "weights")
    context.progress(-1)
    context.progress(7)

    assert reports == [(0.25, "weights"), (0.0, ""), (1.0, "")]


def test_a_context_without_a_listener_takes_progress_too() -> None:
    Context().progress(0.5)


def test_a_context_says_where_it_is_in_its_repr() -> None:
    context = Context(name="bert", version="v2", replica=1, device="cuda:1")

    assert repr(context) == "<Context bert/v2 replica 1 on cuda:1>"


def test_a_call_knows_what_is_left_of_its_budget() -> None:
    clock = FakeClock(100.0)
    call = Call("r-1", timeout_s=2.0, clock=clock)

    clock.advance(0.5)

    assert call.deadline == 102.0
    assert call.remaining_s == 1.5
    assert repr(call) == "<Call r-1 1.500 s left>"


def test_a_call_stays_cancelled() -> None:
    call = Call("r-1")

    assert not call.cancelled
    call.cancel()
    call.cancel()

    assert call.cancelled
    assert repr(call) == "<Call r-1 cancelled>"


def test_a_call_collects_notes() -> None:
    call = Call()

    call.annotate(tokens=3, tenant="a")
    call.annotate(tokens=4)

    assert call.annotations == {"tokens": 4, "tenant": "a"}


def test_calls_do_not_share_notes_and_have_no_headers_by_default() -> None:
    first, second = Call(), Call()

    first.annotate(tokens=3)

    assert second.annotations == {}
    assert dict(second.headers) == {}


@pytest.mark.parametrize("fraction", [math.nan, math.inf, -math.inf])
def test_a_progress_that_is_no_number_counts_as_none(fraction: float) -> None:
    reports: list[tuple[float, str]] = []

    Context(report=lambda *report: reports.append(report)).progress(fraction)

    assert reports == [(0.0, "")]


@pytest.mark.parametrize(
    ("note", "shown"),
    [(7, "7"), (Path("weights"), "weights"), ("x" * 500, "x" * 200), ("\ud800", "?")],
)
def test_a_note_becomes_a_short_text_that_can_be_sent(note: Any, shown: str) -> None:
    reports: list[tuple[float, str]] = []

    Context(report=lambda *report: reports.append(report)).progress(0.5, note)

    assert reports == [(0.5, shown)]
