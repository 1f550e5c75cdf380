"""What a record says, and what of payloads is kept."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.job import StageTimes
from mlserve.observability.access_log import InferenceLine, inference_line
from mlserve.observability.listeners import Ended
from mlserve.records.record import payload_bytes, record_of, slimmed
from mlserve.records.redaction import REDACTED, redacted
from mlserve.records.sink import is_sampled

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
IDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)


def line(code: str | None = None, **annotations: Any) -> InferenceLine:
    times = StageTimes()
    times.queue_s, times.batch_size = 0.002, 3
    return inference_line(
        request_id="r-1",
        model="m",
        version="v2",
        status=200,
        code=code,
        total_s=0.5,
        times=times,
        annotations=annotations,
    )


def ended(request: bytes | None, response: bytes | None, **facts: Any) -> Ended:
    given = {"line": line(), "annotations": {}, "at": 0.0, "is_stream": False, **facts}
    return Ended(request=request, response=response, **given)


def payloads(request: bytes | None, response: bytes | None, **facts: Any) -> list[str | None]:
    record = record_of(ended(request, response, **facts), keep_payloads=True)
    return [record.request, record.response]


def test_a_record_has_the_facts_of_the_request() -> None:
    given = ended(b"1", b"2", at=1.5, key="team-a", annotations={"prompt_tokens": 7})

    record = record_of(given, keep_payloads=False)

    assert (record.request_id, record.model, record.version) == ("r-1", "m", "v2")
    assert record.time == datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC)
    assert (record.status, record.code, record.key) == (200, None, "team-a")
    assert (record.total_ms, record.queue_ms, record.batch_size) == (500.0, 2.0, 3)
    assert record.annotations == {"prompt_tokens": 7}
    assert (record.request, record.response) == (None, None)


def test_no_two_records_have_one_id() -> None:
    given = ended(None, None)

    ids = {record_of(given, keep_payloads=False).id for _ in range(1000)}

    assert len(ids) == 1000


def test_payloads_are_kept_as_they_came() -> None:
    assert payloads(b'{"a": 1}', '"\u00fc"'.encode()) == ['{"a": 1}', '"\u00fc"']


def test_of_a_stream_its_events_are_kept_as_a_list() -> None:
    body = b': ping\n\ndata: {"t": 1}\n\ndata: {"error": {}}\n\ndata: [DONE]\n\n'

    _, response = payloads(b"1", body, is_stream=True)

    assert json.loads(response or "") == [{"t": 1}, {"error": {}}]


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        (b"\xff", {}),
        (b'"\0"', {}),
        (b"", {}),
        (b'"' + b"x" * 2**20 + b'"', {}),
        (b"nonsense", {"line": line("invalid_json")}),
    ],
)
def test_what_is_not_json_of_at_most_a_mebibyte_is_not_kept(
    body: bytes, facts: dict[str, Any]
) -> None:
    assert payloads(body, body, **facts) == [None, None]


@pytest.mark.parametrize("keeps", [True, False])
def test_bodies_that_no_record_will_have_do_not_wait_with_it(keeps: bool) -> None:
    large, small = b"x" * (2**20 + 1), b"1"
    given = ended(large, small)

    slim = slimmed(given, keep_payloads=keeps)

    assert (slim.request, slim.response) == (None, small if keeps else None)
    assert payload_bytes(slim) == (1 if keeps else 0)
    assert given.request is large  # others are told of it as well


def test_what_a_hook_notes_later_is_not_in_the_record() -> None:
    annotations = {"language": "en"}

    record = record_of(ended(None, None, annotations=annotations), keep_payloads=False)
    annotations["late"] = "x"

    assert record.annotations == {"language": "en"}


def test_tokens_that_a_hook_has_miscounted_fit_a_database() -> None:
    record = record_of(ended(None, None, line=line(prompt_tokens=10**30)), keep_payloads=False)

    assert record.tokens == 2**63 - 1


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("u.email", {"u": {"email": "a", "age": 1}}, {"u": {"email": REDACTED, "age": 1}}),
        ("m.t", {"m": [{"t": 1}, [{"t": 2}]]}, {"m": [{"t": REDACTED}, [{"t": REDACTED}]]}),
        ("*.key", {"a": {"key": 1}, "b": 2}, {"a": {"key": REDACTED}, "b": 2}),
        ("*", {"a": 1, "b": [2]}, {"a": REDACTED, "b": REDACTED}),
        ("a.b", {"a": 1}, {"a": 1}),
        ("a", "a", "a"),
    ],
)  # fmt: skip
def test_the_values_of_a_path_are_replaced(path: str, value: Any, wanted: Any) -> None:
    assert json.loads(redacted(json.dumps(value), [path]) or "") == wanted


@pytest.mark.parametrize("text", ["nonsense", "[" * 100_000, ""])
def test_what_cannot_be_read_is_not_kept_when_something_is_to_be_taken_out(text: str) -> None:
    assert redacted(text, ["a"]) is None


def test_a_secret_that_is_named_twice_or_in_escapes_is_taken_out() -> None:
    text = '{"k": "one", "k": "two", "\\u006b": "three"}'

    assert json.loads(redacted(text, ["k"]) or "") == {"k": REDACTED}


@given(VALUES, st.lists(st.text(min_size=1), min_size=1, max_size=3), st.text(min_size=8))
def test_whatever_stands_at_the_path_does_not_stay(
    beside: Any, names: list[str], secret: str
) -> None:
    names = [name.replace(".", "-") for name in names]
    secret = f"secret-{secret}"
    value: Any = secret
    for name in reversed(names):
        value = [{name: value}, beside]

    text = redacted(json.dumps(value), [".".join(names)])

    assert text is not None
    assert json.dumps(secret) not in text


@given(VALUES)
def test_paths_that_lead_nowhere_change_nothing(value: Any) -> None:
    text = redacted(json.dumps(value), ["\0nowhere.\0at.\0all"])

    assert json.loads(text or "") == value


@given(IDS, st.floats(0, 1), st.floats(0, 1))
def test_who_is_in_a_small_sample_is_in_every_larger_one(
    request_id: str, one: float, other: float
) -> None:
    small, large = sorted((one, other))

    assert is_sampled(request_id, large) or not is_sampled(request_id, small)
    assert is_sampled(request_id, 1.0)
    assert not is_sampled(request_id, 0.0)


def test_a_sample_has_about_its_share_of_numbered_ids() -> None:
    n = sum(is_sampled(f"a1b2-{number:x}", 0.25) for number in range(10_000))

    assert 2300 < n < 2700
