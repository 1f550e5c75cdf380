"""A head that came before is taken for what it was; nothing of one caller is kept."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httptools
import pytest
from fastapi import Depends
from hypothesis import given
from hypothesis import strategies as st
from tests.http.waiting import until

from mlserve import Call, ModelHandler, ModelServer, ServerSettings, api_keys
from mlserve.http.heads import HeadKey, KnownHead, KnownHeads
from mlserve.http.route import ModelRoute
from mlserve.testing import running

HEAD = b"POST /v1/models/m/predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"


class Plain:
    """As much of a route as is asked."""

    guards: tuple[object, ...] = ()
    settings = ServerSettings()
    max_body_bytes = 1000


PLAIN = cast("ModelRoute", Plain())
SCOPE: dict[str, Any] = dict.fromkeys(
    "asgi client headers http_version method path query_string raw_path root_path scheme server"
    " state type".split()
)
WISHES = (30.0, 0)
ONE = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n{1}"


class Parsed:
    """What a parser finds in a request."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.n_messages = 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.n_messages += 1

    @property
    def others(self) -> list[tuple[bytes, bytes]]:
        """All headers but the length."""
        return [header for header in self.headers if header[0] != b"content-length"]


def learn(
    known: KnownHeads, data: bytes, route: ModelRoute = PLAIN
) -> tuple[HeadKey, KnownHead] | None:
    """Learn a request as the server does that has parsed it."""
    headers = Parsed(data).headers
    return known.learn(data, route, SCOPE, dict(reversed(headers)), WISHES)


def learnt(*requests: bytes) -> KnownHeads:
    known = KnownHeads()
    for data in requests:
        learn(known, data)
    return known


@pytest.mark.parametrize("body", [b"", b"[2]", b"[200]", b"x" * 1000, b"Content-Length: 3"])
@pytest.mark.parametrize("name", [b"Content-Length", b"content-length"])
@pytest.mark.parametrize("more", [b"", b"Accept: */*\r\n"])
def test_a_request_with_a_head_that_came_before_is_known_with_a_body_of_any_length(
    body: bytes, name: bytes, more: bytes
) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\n%b: %d\r\n%b\r\n"
    known = learnt(head % (name, 3, more) + b"{1}")

    found = known.find(head % (name, len(body), more) + body)

    assert found is not None
    assert found[1] == body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        ONE.replace(b"a", b"b"),
        ONE[:-1],
        ONE + b" ",
        ONE + ONE[:20],
        b" " + ONE,
        ONE.replace(b"th: 3", b"th: 03"),
        ONE.replace(b"th: 3", b"th: +3"),
        ONE.replace(b"th: 3", b"th: 3 "),
        ONE.replace(b"th: 3", b"th: "),
        ONE.replace(b"th: 3", b"th:3"),
        ONE.replace(b"th: 3", b"th: 3\r\nContent-Length: 3"),
        ONE.replace(b"3\r\n\r\n{1}", b"1001\r\n\r\n" + b"x" * 1001),
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\nContent-Length: 3\r\n\r\n{1}",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n",
    ],
)
def test_whatever_differs_is_not_known(data: bytes) -> None:
    assert learnt(ONE).find(data) is None


PIECES = [
    b"POST / HTTP/1.1\r\n",
    b"Host: a\r\n",
    b"User-Agent: b-length: 3\r\n",
    b"Accept: c\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 5\r\n",
    b"content-length: 0\r\n",
    b"content-length:3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"\r\n",
    b"{1}",
    b"[1,2]",
    b"3\r\n{1}\r\n0\r\n\r\n",
]


@given(
    st.lists(st.lists(st.sampled_from(PIECES), max_size=6), min_size=1, max_size=4),
    st.lists(st.sampled_from(PIECES), max_size=7),
)
def test_what_is_known_is_one_request_with_the_headers_that_were_learnt(
    earlier: list[list[bytes]], pieces: list[bytes]
) -> None:
    known, heads = KnownHeads(), {}
    for number, parts in enumerate(earlier):
        data = b"".join([PIECES[0], *parts])
        with suppress(httptools.HttpParserError):
            parsed = Parsed(data)
            if parsed.n_messages == 1 and b"content-length" in dict(parsed.headers):
                scope = SCOPE | {"path": str(number)}
                known.learn(data, PLAIN, scope, dict(reversed(parsed.headers)), WISHES)
                heads[str(number)] = parsed.others
    data = b"".join([PIECES[0], *pieces])

    found = known.find(data)

    if found is not None:
        parsed = Parsed(data)
        assert parsed.n_messages == 1
        assert parsed.body == found[1]
        assert parsed.others == heads[found[0].scope["path"]]


@pytest.mark.parametrize("name", [b"Cookie", b"X-Request-Id", b"Traceparent", b"X-Anything"])
def test_a_head_with_what_belongs_to_one_request_is_not_kept(name: bytes) -> None:
    assert len(learnt(ONE.replace(b"Content", name + b": secret\r\nContent"))) == 0


@pytest.mark.parametrize("name", [b"Authorization", b"X-API-Key"])
def test_a_head_with_credentials_is_known_to_its_own_connection_only(name: bytes) -> None:
    known = KnownHeads()
    request = ONE.replace(b"Content", name + b": key\r\nContent")

    own = learn(known, request)

    assert len(known) == 0
    assert known.find(request) is None
    found = known.find(request, own)
    assert found is not None
    assert found[1] == b"{1}"


def test_a_head_is_not_kept_whose_ordinary_header_carries_the_request_id() -> None:
    class Named(Plain):
        settings = ServerSettings(request_id_header="User-Agent")

    known = KnownHeads()
    request = ONE.replace(b"Content", b"User-Agent: 7\r\nContent")
    learn(known, request, cast("ModelRoute", Named()))

    assert len(known) == 0


def test_a_head_is_not_kept_whose_length_hooks_may_see() -> None:
    class Forwarding(Plain):
        settings = ServerSettings(forward_headers=("Content-Length",))

    known = KnownHeads()
    learn(known, ONE, cast("ModelRoute", Forwarding()))

    assert len(known) == 0


def test_a_head_is_not_kept_whose_length_is_more_than_its_digits() -> None:
    known = KnownHeads()
    data = ONE.replace(b"th: 3", b"th: 3\nX-Request-Timeout: 0.001")
    known.learn(data, PLAIN, SCOPE, {b"host": b"a", b"content-length": b"3"}, WISHES)

    assert len(known) == 0


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=40))
def test_never_more_than_so_many_are_kept(parts: list[bytes]) -> None:
    known = KnownHeads(most=8)
    for part in parts:
        learn(known, ONE.replace(b"a\r", part.hex().encode() + b"\r"))

    assert len(known) == min(8, len(set(parts)))


class Echo(ModelHandler[str, str]):
    def infer(self, inputs: list[str]) -> list[str]:
        return inputs


class Left(ModelHandler[str, float]):
    """Says how much time a request has."""

    def infer(self, inputs: list[str], calls: list[Call]) -> list[float]:
        return [call.remaining_s for call in calls]


@contextmanager
def connected(server: ModelServer | None = None) -> Iterator[socket.socket]:
    with running(server or ModelServer().add("m", Echo), timeout_s=15) as client:
        address = client.base_url.host, client.base_url.port or 0
        with socket.create_connection(address, 10) as connection:
            yield connection


def read_answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Read one answer: its head and its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    [length] = [line for line in head.split(b"\r\n") if line.startswith(b"content-length")]
    while len(body) < int(length.split()[1]):
        body += connection.recv(65_536)
    return head, body


def asked(connection: socket.socket, body: bytes, more: bytes = b"") -> tuple[bytes, bytes]:
    head = HEAD + more + b"Content-Length: %d\r\n\r\n" % len(body)
    connection.sendall(head + body)
    return read_answer(connection)


@pytest.mark.slow
def test_requests_with_one_head_are_answered_each_by_its_body_and_with_an_id_of_its_own() -> None:
    with connected() as connection:
        bodies = [b'"%0*d"' % (1 + i % 7, i) for i in range(50)]
        answers = [asked(connection, body) for body in bodies]

    assert [body for _, body in answers] == bodies
    ids = {line for head, _ in answers for line in head.split(b"\r\n") if b"x-request-id" in line}
    assert len(ids) == 50


@pytest.mark.slow
def test_a_request_has_the_time_that_its_head_names_also_when_the_head_is_known() -> None:
    with connected(ModelServer().add("m", Left)) as connection:
        short = [asked(connection, b'"one"', b"X-Request-Timeout: 5\r\n")[1] for _ in range(3)]
        usual = [asked(connection, b'"one"')[1] for _ in range(3)]

    assert all(float(left_s) <= 5 for left_s in short)
    assert all(float(left_s) > 5 for left_s in usual)


@pytest.mark.slow
def test_a_key_that_is_taken_away_opens_no_longer_on_a_connection_that_has_used_it(
    tmp_path: Path,
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a=key-number-one-of-two\n")
    server = ModelServer(dependencies=[Depends(api_keys(keys))]).add("m", Echo)
    more = b"X-API-Key: key-number-one-of-two\r\n"

    with connected(server) as connection:
        assert [asked(connection, b'"one"', more)[0].split()[1] for _ in range(3)] == [b"200"] * 3
        keys.write_text("b=key-number-two-of-two\n")
        os.utime(keys, (1, 1))

        until(lambda: asked(connection, b'"one"', more)[0].split()[1] == b"401")


@pytest.mark.slow
def test_an_error_between_requests_of_one_head_costs_the_next_nothing() -> None:
    with connected() as connection:
        bodies = [b'"one"', b"123.5", b'"two"', b'"bad:', b'"six"']
        answers = [asked(connection, body)[0].split()[1] for body in bodies]

    assert answers == [b"200", b"422", b"200", b"400", b"200"]


@pytest.mark.slow
def test_a_request_that_closes_is_obeyed_after_others_of_another_head() -> None:
    with connected() as connection:
        asked(connection, b'"one"')
        asked(connection, b'"two"')
        head, _ = asked(connection, b'"six"', b"Connection: close\r\n")

        assert b"connection: close" in head
        assert connection.recv(1) == b""
