"""Whatever a client sends, the short way and the ordinary one give the same answers."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.middleware import Middleware
from tests.http.direct_models import Plain
from tests.http.waiting import until
from tests.http.ways import DIRECT, ORDINARY, Place, places
from tests.http.wire import answers_of

from mlserve import Limits, ModelServer, ServerSettings
from mlserve.records import InferenceRecord

pytestmark = pytest.mark.slow

LAST = b"GET /health HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
VARYING = re.compile(r"dur=[0-9.]+|127\.0\.0\.1:\d+")
ID = re.compile(rb"[0-9a-f]{12}-[0-9a-f]+")

VALUES: dict[bytes, list[bytes]] = {
    b"Content-Type": [
        b"application/json",
        b"application/json; charset=utf-8",
        b"Application/JSON",
        b"  application/json  ",
        b"application/ld+json",
        b"application/jsonp",
        b"text/plain",
        b"",
        b"\xff",
    ],
    b"Accept": [b"*/*", b"application/json", b"text/event-stream", b""],
    b"Connection": [b"close", b"keep-alive", b"Close", b"close, x", b"x", b""],
    b"Content-Encoding": [b"identity", b"gzip", b" IDENTITY ", b""],
    b"X-Request-Timeout": [b"5", b"soon", b"0", b"-1", b"inf", b"nan", b"1e3", b" 5 ", b"5_0", b""],
    b"X-Request-Priority": [b"0", b"9", b"10", b"first", b"", b"\xb2"],
    b"X-Request-Id": [b"mine", b"", b"a b", b"x" * 200, b"\xff"],
    b"X-Color": [b"red", b"", b"\xff"],
    b"Authorization": [b"Bearer nobody-asks-for-this-key"],
    b"Cookie": [b"a=b"],
    b"X-Forwarded-For": [b"1.2.3.4"],
    b"Host": [b"test", b"", b"other"],
    b"User-Agent": [b"hypothesis"],
}


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(sorted(VALUES)))
    value = draw(st.sampled_from(VALUES[name]))
    name = draw(st.sampled_from([name, name.lower(), name.upper()]))
    return b"%b:%b%b" % (name, draw(st.sampled_from([b" ", b"", b"\t"])), value)


orders = st.fixed_dictionaries(
    {"text": st.text(max_size=8)},
    optional={"score": st.floats(), "output": st.sampled_from(["NaN", "nothing", ""])},
)
bodies = st.one_of(
    st.sampled_from([b'{"text":"a"}', b'{"text":"b"}', b'{"text":1}', b"{", b"", b"[]", b"\xff"]),
    orders.map(lambda order: json.dumps(order).encode()),
    st.binary(max_size=40),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body = draw(bodies)
    # Most are nearly good, so that they get far.
    head = draw(st.sampled_from([[b"Host: test", b"Content-Type: application/json"]] * 3 + [[]]))
    head = draw(st.permutations([*head, *draw(st.lists(lines(), max_size=4))]))
    lengths = [b"%d", b"%d", b"%d", b"%d", b"000%d", b"+%d", b"%d, %d", b" %d ", b"1%d", None]
    length = draw(st.sampled_from(lengths))
    if length is None:
        head = [*head, b"Transfer-Encoding: chunked"]
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    else:
        head = [*head, b"Content-Length: " + length.replace(b"%d", b"%d" % len(body))]
    method = draw(st.sampled_from([b"POST"] * 8 + [b"GET", b"PUT", b"OPTIONS", b"post"]))
    path = draw(st.sampled_from([b"predict"] * 8 + [b"predict?a=b", b"predict/", b"pre%64ict"]))
    version = draw(st.sampled_from([b"1.1"] * 8 + [b"1.0", b"2.0", b"0.9"]))
    first = b"%b /v1/models/m/%b HTTP/%b" % (method, path, version)
    return b"\r\n".join([first, *head, b"", b""]) + body


def server_of(records: list[InferenceRecord], middleware: list[Middleware]) -> ModelServer:
    options = ServerSettings(body_timeout_s=0.1, forward_headers=("x-color",))
    server = ModelServer(settings=options, middleware=middleware)
    return server.add("m", Plain, limits=Limits(priorities=True, max_body_bytes=200))


@pytest.fixture(scope="module")
def both() -> Iterator[dict[str, Place]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlserve.http.exchange._numbers", count(16**7))  # ids of one length
        with places(server_of, DIRECT, ORDINARY) as found:
            yield found


def answers_to(place: Place, request: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Send a request twice, then a last one, and give all answers but for what always differs."""
    received = b""
    with place.connected() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request)
        received += connection.recv(65_536)
        with suppress(ConnectionError):
            connection.sendall(request)  # alone, so that its head is known by now
            with suppress(TimeoutError):  # it may be taken for the rest of the first one's body
                connection.settimeout(0.2)
                received += connection.recv(65_536)
            connection.settimeout(10)
            connection.sendall(LAST)
        with suppress(ConnectionError):
            while piece := connection.recv(65_536):
                received += piece
    found = []
    for answer in answers_of(received):
        headers = {
            name: VARYING.sub("", ID.sub(b"", value.encode("latin-1")).decode("latin-1"))
            for name, value in answer.headers.items()
            if name != "date"
        }
        found.append((answer.status, headers, ID.sub(b"", answer.body)))
    return found


@settings(max_examples=250, deadline=None)
@given(request=requests())
def test_the_same_bytes_get_the_same_answers(both: dict[str, Place], request: bytes) -> None:
    direct, ordinary = (answers_to(place, request) for place in both.values())

    assert direct == ordinary
    assert direct
    for place in both.values():
        until(lambda place=place: place.models.model_for("m").statistics().in_flight == 0)  # type: ignore[misc]
