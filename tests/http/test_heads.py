"""A head that came before is taken for what it was; nothing of one caller is kept."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import Depends
from hypothesis import given
from hypothesis import strategies as st
from tests.http.waiting import until

from mlserve import Call, ModelHandler, ModelServer, ServerSettings, api_keys
from mlserve.http.heads import KnownHeads
from mlserve.http.route import ModelRoute
from mlserve.testing import running

HEAD = b"POST /v1/models/m/predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"


class Plain:
    """As much of a route as is asked."""

    guards: tuple[object, ...] = ()
    settings = ServerSettings()


PLAIN = cast("ModelRoute", Plain())
SCOPE: dict[str, Any] = dict.fromkeys(
    "asgi client headers http_version method path query_string raw_path root_path scheme server"
    " state type".split()
)


def learnt(*heads: bytes, **more: bytes) -> KnownHeads:
    known = KnownHeads()
    for head in heads:
        headers = {b"content-type": b"application/json", b"content-length": b"3"}
        headers |= {name.replace("_", "-").encode(): value for name, value in more.items()}
        known.learn(head + b"\r\n\r\n{1}", PLAIN, SCOPE, headers)
    return known


def test_a_request_with_a_head_that_came_before_is_known_with_its_own_body() -> None:
    known = learnt(b"POST / HTTP/1.1\r\nHost: a")

    found = known.find(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n[2]")

    assert found is not None
    assert found[1] == b"[2]"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: b\r\n\r\n[2]",
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\n[2",
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\n[2] ",
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\n[2]POST / HTTP/1.1\r\n",
        b" POST / HTTP/1.1\r\nHost: a\r\n\r\n[2]",
    ],
)
def test_whatever_differs_is_not_known(data: bytes) -> None:
    assert learnt(b"POST / HTTP/1.1\r\nHost: a").find(data) is None


@pytest.mark.parametrize("name", ["cookie", "x_request_id", "traceparent", "x_anything"])
def test_a_head_with_what_belongs_to_one_request_is_not_kept(name: str) -> None:
    known = learnt(b"POST / HTTP/1.1\r\nHost: a", **{name: b"secret"})

    assert len(known) == 0


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_a_head_with_credentials_is_known_to_its_own_connection_only(name: str) -> None:
    known = KnownHeads()
    headers = {b"content-type": b"application/json", b"content-length": b"3", name.encode(): b"key"}

    own = known.learn(b"POST /\r\n\r\n{1}", PLAIN, SCOPE, headers)

    assert len(known) == 0
    assert known.find(b"POST /\r\n\r\n[2]") is None
    found = known.find(b"POST /\r\n\r\n[2]", own)
    assert found is not None
    assert found[1] == b"[2]"


def test_a_head_is_not_kept_whose_ordinary_header_carries_the_request_id() -> None:
    class Named(Plain):
        settings = ServerSettings(request_id_header="User-Agent")

    known = KnownHeads()
    headers = {b"content-type": b"application/json", b"content-length": b"0", b"user-agent": b"7"}
    known.learn(b"POST /\r\n\r\n", cast("ModelRoute", Named()), SCOPE, headers)

    assert len(known) == 0


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=40))
def test_never_more_than_so_many_are_kept(parts: list[bytes]) -> None:
    known = KnownHeads(most=8)
    for part in parts:
        head = b"POST / HTTP/1.1\r\nHost: " + part.hex().encode()
        headers = {b"content-type": b"application/json", b"content-length": b"0"}
        known.learn(head + b"\r\n\r\n", PLAIN, SCOPE, headers)

    assert len(known) <= 8


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
        answers = [asked(connection, b'"%03d"' % i) for i in range(50)]

    assert [body for _, body in answers] == [b'"%03d"' % i for i in range(50)]
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
