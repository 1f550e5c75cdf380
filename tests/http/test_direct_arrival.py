"""How requests come and clients go: in pieces, ahead of their turn, by half, amid a shutdown."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from starlette.middleware import Middleware
from tests.http.direct_models import request_to
from tests.http.waiting import until
from tests.http.ways import DIRECT, ORDINARY, Answer, Place, lines_of, places, read_answer
from tests.http.wire import answers_of

from mlserve import Batching, Call, ModelHandler, ModelServer, ServerSettings
from mlserve.http.direct import DirectPrediction
from mlserve.records import InferenceRecord

pytestmark = pytest.mark.slow

JSON = b"Content-Type: application/json"
BODY_TIMEOUT_S = 0.3


class Held(ModelHandler[str, str]):
    """Holds texts that begin with "hold" until they are let go, or nobody waits for them."""

    batching = Batching(max_size=1)
    go_on: ClassVar[threading.Event] = threading.Event()
    begun: ClassVar[list[str]] = []
    told: ClassVar[list[str]] = []

    def infer(self, inputs: list[str], calls: list[Call]) -> list[str]:
        self.begun.append(inputs[0])
        if inputs[0].startswith("hold"):
            until(lambda: self.go_on.is_set() or calls[0].cancelled)
            if calls[0].cancelled:
                self.told.append(inputs[0])
        return inputs


class Upper(ModelHandler[str, str]):
    def infer(self, inputs: list[str]) -> list[str]:
        return [text.upper() for text in inputs]


def server_of(records: list[InferenceRecord], middleware: list[Middleware]) -> ModelServer:
    settings = ServerSettings(body_timeout_s=BODY_TIMEOUT_S)
    server = ModelServer(settings=settings, middleware=middleware)
    return server.add("m", Held).add("n", Upper)


@pytest.fixture(scope="module")
def both() -> Iterator[dict[str, Place]]:
    with places(server_of, DIRECT, ORDINARY) as found:
        yield found


@pytest.fixture(params=[DIRECT, ORDINARY])
def place(both: dict[str, Place], request: pytest.FixtureRequest) -> Iterator[Place]:
    Held.go_on.clear()
    Held.begun.clear()
    Held.told.clear()
    yield both[request.param]
    Held.go_on.set()


def post(text: str, *lines: bytes) -> bytes:
    return request_to("m", json.dumps(text).encode(), JSON, *lines)


def chunked(text: str) -> bytes:
    body = json.dumps(text).encode()
    head = b"POST /v1/models/m/predict HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    return head + JSON + b"\r\n\r\n" + chunks + b"0\r\n\r\n"


def read_all(connection: socket.socket) -> list[tuple[int, bytes]]:
    """Read until the server closes."""
    received = b""
    while piece := connection.recv(65_536):
        received += piece
    return [(answer.status, answer.body) for answer in answers_of(received)]


def wait_for_the_gone(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Wait for the line of the one client that has left; others may have been answered."""

    def gone() -> list[dict[str, Any]]:
        return [line for line in lines_of(caplog) if line["status"] == 499]

    until(lambda: len(gone()) > 0)
    [line] = gone()
    return line


def wait_for_lines(caplog: pytest.LogCaptureFixture, n: int = 1) -> list[dict[str, Any]]:
    until(lambda: len(lines_of(caplog)) >= n)
    return lines_of(caplog)


def test_plain_predictions_go_the_short_way_under_mlserve_run_only(
    both: dict[str, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bytes] = []
    take = DirectPrediction.take

    def noted(direct: DirectPrediction, body: bytes) -> None:
        taken.append(body)
        take(direct, body)

    monkeypatch.setattr(DirectPrediction, "take", noted)

    answers = {
        name: [answer.status for text in "ab" for answer in place.ask_twice(post(text))]
        for name, place in both.items()
    }

    assert answers == dict.fromkeys(both, [200] * 4)
    assert taken == [b'"a"', b'"a"', b'"b"', b'"b"']


@pytest.mark.parametrize(
    "request_", [post("hello"), post("x" * 70_000), chunked("hello"), post("é" * 40_000)]
)
def test_where_a_request_is_cut_makes_no_difference(place: Place, request_: bytes) -> None:
    end = request_.index(b"\r\n\r\n") + 4
    whole = place.ask(request_).comparable()

    for at in (1, 10, end - 3, end - 1, end, end + 1, len(request_) - 1):
        with place.connected() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(request_)  # its head is known by then
            assert read_answer(connection).comparable() == whole
            connection.sendall(request_[:at])
            threading.Event().wait(0.002)  # it is to come alone
            connection.sendall(request_[at:])
            answer = read_answer(connection)
        assert answer.comparable() == whole

    assert whole.status == 200


def test_a_request_may_come_byte_by_byte_again_and_again(place: Place) -> None:
    with place.connected() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for byte in post("hello"):
                connection.sendall(bytes([byte]))
            answer = read_answer(connection)
            assert (answer.status, answer.body) == (200, b'"hello"')


def test_a_body_that_does_not_come_is_waited_for_until_its_time_is_over(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlserve.access")

    answer = place.ask(post("hello")[:-3])

    [line] = wait_for_lines(caplog)
    assert (answer.status, answer.is_last) == (408, True)
    assert json.loads(answer.body)["error"]["code"] == "request_timeout"
    assert (line["status"], line["code"], line["bytes_in"]) == (408, "request_timeout", 4)


@pytest.mark.parametrize("line", [b"Content-Type: text/plain", b"X-Request-Timeout: soon"])
def test_what_a_head_says_wrongly_is_refused_before_its_body_comes(
    place: Place, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlserve.access")
    request = request_to("m", b'"hello"', line)

    with place.connected() as connection:
        connection.sendall(request[:-3])
        first = read_answer(connection)
        connection.sendall(request[-3:] + post("next"))
        second = read_answer(connection)

    lines = wait_for_lines(caplog, 2)
    assert first.status in (400, 415)
    assert (second.status, second.body) == (200, b'"next"')
    assert [line["bytes_in"] for line in lines] == [0, 6]


def test_who_leaves_before_the_body_is_whole_is_logged_as_gone(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlserve.access")

    with place.connected() as connection:
        connection.sendall(post("hello")[:-3])
    [line] = wait_for_lines(caplog)

    assert (line["status"], line["code"], line["bytes_in"]) == (499, "client_closed_request", 4)
    assert Held.begun == []


@pytest.fixture(params=[False, True], ids=["new", "known"])
def connect(place: Place, request: pytest.FixtureRequest) -> Callable[[], socket.socket]:
    """Connect, and maybe send a request with the head that the next one has."""

    def connect() -> socket.socket:
        connection = place.connected()
        if request.param:
            connection.sendall(post("held"))
            assert read_answer(connection).body == b'"held"'
        return connection

    return connect


def test_who_leaves_the_queue_is_never_computed(
    place: Place, connect: Callable[[], socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlserve.access")
    model = place.models.model_for("m")

    with connect() as first, connect() as second:
        Held.begun.clear()
        first.sendall(post("hold"))
        until(lambda: Held.begun == ["hold"])
        with second:
            second.sendall(post("wait"))
            until(lambda: model.statistics().queued == 1)
        line = wait_for_the_gone(caplog)
        until(lambda: model.statistics().queued == 0)
        Held.go_on.set()
        answer = read_answer(first)

    assert answer.status == 200
    assert (line["status"], line["batch_size"]) == (499, 0)
    assert Held.begun == ["hold"]


def test_who_leaves_amid_infer_is_told_to_the_handler(
    place: Place, connect: Callable[[], socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlserve.access")

    with connect() as connection:
        Held.begun.clear()
        connection.sendall(post("hold"))
        until(lambda: Held.begun == ["hold"])
    line = wait_for_the_gone(caplog)
    until(lambda: Held.told == ["hold"])

    assert (line["status"], line["code"]) == (499, "client_closed_request")
    until(lambda: place.models.model_for("m").statistics().in_flight == 0)


@pytest.mark.parametrize("is_apart", [False, True])
def test_who_has_sent_more_requests_and_leaves_amid_the_first_is_told_as_well(
    place: Place,
    connect: Callable[[], socket.socket],
    caplog: pytest.LogCaptureFixture,
    is_apart: bool,
) -> None:
    caplog.set_level(logging.INFO, "mlserve.access")

    with connect() as connection:
        Held.begun.clear()
        connection.sendall(post("hold") if is_apart else post("hold") + post("second"))
        until(lambda: Held.begun == ["hold"])
        connection.sendall(post("second") if is_apart else b"")
        until(lambda: Held.begun == ["hold"])
    until(lambda: Held.told == ["hold"])
    until(lambda: place.models.model_for("m").statistics().in_flight == 0)

    assert wait_for_the_gone(caplog)["status"] == 499


def test_what_comes_behind_a_request_in_flight_is_answered_after_it(
    connect: Callable[[], socket.socket],
) -> None:
    later = post("next") + request_to("m", b"{", JSON) + post("last", b"Connection: close")

    with connect() as connection:
        Held.begun.clear()
        connection.sendall(post("hold"))
        until(lambda: Held.begun == ["hold"])
        for piece in (later[:20], later[20:200], later[200:]):
            connection.sendall(piece)
        Held.go_on.set()
        answers = read_all(connection)

    assert [status for status, _ in answers] == [200, 200, 400, 200]
    assert [answers[at][1] for at in (0, 1, 3)] == [b'"hold"', b'"next"', b'"last"']


def test_leave_to_send_a_body_is_given(place: Place) -> None:
    request = post("hello", b"Expect: 100-continue")

    with place.connected() as connection:
        connection.sendall(request[: -len(b'"hello"')])
        interim = connection.recv(100)
        connection.sendall(b'"hello"')
        answer = read_answer(connection)

    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (answer.status, answer.body) == (200, b'"hello"')


def test_requests_of_one_segment_are_answered_in_their_order_also_if_some_are_bad(
    place: Place,
) -> None:
    bad = request_to("m", b"{", JSON), request_to("m", b'"x"'), request_to("m", b"1", JSON)
    requests = [post("a"), bad[0], post("b"), bad[1], chunked("c"), bad[2], post("d")]

    with place.connected() as connection:
        connection.sendall(b"".join(requests) + post("last", b"Connection: close"))
        answers = read_all(connection)

    assert [status for status, _ in answers] == [200, 400, 200, 415, 200, 422, 200, 200]
    assert [body for status, body in answers if status == 200] == [
        b'"a"', b'"b"', b'"c"', b'"d"', b'"last"',
    ]  # fmt: skip


@pytest.mark.parametrize("n_good", [1, 2, 5])
def test_what_is_no_http_behind_requests_costs_none_of_them_its_answer(
    place: Place, n_good: int
) -> None:
    with place.connected() as connection:
        connection.sendall(post("hello") * n_good + b"\x00garbage\r\n\r\n")
        answers = read_all(connection)

    assert answers[:n_good] == [(200, b'"hello"')] * n_good
    assert [status for status, _ in answers[n_good:]] in ([], [400])


@pytest.mark.parametrize("is_same", [True, False])
def test_a_connection_serves_hundreds_of_requests(place: Place, is_same: bool) -> None:
    with place.connected() as connection:
        for number in range(300):
            text = "same" if is_same else f"text {number}"
            connection.sendall(post(text))
            answer = read_answer(connection)
            assert (answer.status, json.loads(answer.body)) == (200, text)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_head_that_ends_its_connection_does_so_whoever_has_sent_it_before(
    place: Place, version: bytes
) -> None:
    last = post("last", b"Connection: close").replace(b"HTTP/1.1", b"HTTP/" + version)

    def ask() -> Answer:
        with place.connected() as connection:
            connection.sendall(post("first"))
            assert read_answer(connection).status == 200
            connection.sendall(last)
            return read_answer(connection)

    answers = [place.ask(last), ask(), ask()]

    assert [(answer.status, answer.is_last) for answer in answers] == [(200, True)] * 3


def test_a_request_behind_one_that_was_refused_is_not_taken_for_it_later(place: Place) -> None:
    refused, other = request_to("m", b"[1]", JSON), request_to("n", b'"b"', JSON)

    with place.connected() as connection:
        connection.sendall(refused + other)
        until(lambda: connection.recv(65_536, socket.MSG_PEEK).endswith(b'"B"'))
        connection.recv(65_536)
        connection.sendall(post("a"))
        answer = read_answer(connection)

    assert answer.body == b'"a"'
