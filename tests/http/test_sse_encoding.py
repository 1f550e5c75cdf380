"""Events are read back by a decoder of the format's own rules."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.strategies import json_values

from mlserve.http.sse import DONE, PING, encode_event


def data_of_events(stream: bytes) -> list[str]:
    """Read events by the rules of WHATWG HTML, section 9.2.6, and give the data of each."""
    lines = stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines.pop()  # what no line end follows is no line
    events: list[str] = []
    data: list[str] = []
    for line in lines:
        if line == "":
            if data:
                events.append("\n".join(data))
            data = []
            continue
        field, _, value = line.partition(":")
        if field == "data":
            data.append(value.removeprefix(" "))
    return events


@given(json_values())
def test_what_is_decoded_is_what_was_encoded(payload: Any) -> None:
    (event,) = data_of_events(encode_event(json.dumps(payload).encode()))

    assert json.loads(event) == payload


@given(json_values(), st.sampled_from(["\n", "\r", "\r\n", "\n\n", "\r\n\r"]))
@example({"a": [1, "\n"]}, "\r\n")
def test_line_breaks_between_json_tokens_change_nothing(payload: Any, line_end: str) -> None:
    text = json.dumps(payload, indent=1, ensure_ascii=False).replace("\n", line_end)

    (event,) = data_of_events(encode_event(text.encode()))

    assert json.loads(event) == payload


@given(st.lists(json_values(max_leaves=4), max_size=6))
def test_events_stay_apart_and_in_order_between_pings(payloads: list[Any]) -> None:
    stream = b"".join(encode_event(json.dumps(p).encode()) + PING for p in payloads) + DONE

    *events, last = data_of_events(stream)

    assert [json.loads(event) for event in events] == payloads
    assert last == "[DONE]"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_event_is_one_event_whatever_the_text(text: str) -> None:
    events = data_of_events(encode_event(text.encode()))

    assert events == [text.replace("\r\n", "\n").replace("\r", "\n")]


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        (b'{"token":"a"}', b'data: {"token":"a"}\n\n'),
        (b"[1,\n2]", b"data: [1,\ndata: 2]\n\n"),
        (b"[1,\r\n2]", b"data: [1,\ndata: 2]\n\n"),
        (b"[1,\r2]", b"data: [1,\ndata: 2]\n\n"),
    ],
)
def test_the_bytes_of_an_event(payload: bytes, event: bytes) -> None:
    assert encode_event(payload) == event
